"""Who a running cluster lets in, and what it is: asked of its head before this process connects.

Ray's core reads its token once, and aborts the process where a head does not answer, so a process of its own asks:
`python -m cluster.door ADDRESS`, first without a token and then with ours. It prints a JSON object after each.

Source: Ray 2.60's `GcsClient` and the keys of its head's store.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.base import ClusterError
from cluster.token import no_token, open_door, reread_environment, token_settings, wrong_token
from cluster.versions import MEND

ANSWER_SECONDS = 60.0
"""How long the asking process may take, Python's and Ray's start on a busy machine included."""
SILENCE_SECONDS = 20
"""After so long without an answer Ray gives up."""
RAYS_TOKEN = Path("~/.ray/auth_token")
"""Ray's own place for a token, which it reads under `RAY_AUTH_MODE=token` where nothing else is set."""


@dataclass(frozen=True)
class Door:
    """What a head answers.

    Attributes:
        open: whether it answers without a token.
        admits: whether it answers us.
        ray: version of Ray that it runs; empty where it does not admit us.
        python: version of its Python.
        dashboard: `host:port` of its dashboard; empty without one.
    """

    open: bool
    admits: bool
    ray: str = ""
    python: str = ""
    dashboard: str = ""


def find_address(address: str) -> str:
    """`host:port` of the head, also for `auto`: this node's cluster.

    Raises:
        ClusterError: if no Ray runs here, or more than one does.
    """
    if address != "auto":
        return address
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except (ConnectionError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ClusterError(f"--address auto: {first}; give the head's host:port (usually port 6379)") from error


def ask_head(address: str, environment: Mapping[str, str]) -> Door:
    """Whom the head lets in.

    Args:
        address: its `host:port`.
        environment: of this process; the token is taken from it, else it is this user's.

    Raises:
        ClusterError: if nothing there answers as Ray's head does.
    """
    asking = {**environment, **token_settings(environment)}
    asking["STOCKPOT_AUTH_MODE"] = asking.get("RAY_AUTH_MODE", "")
    asking |= {"RAY_AUTH_MODE": "disabled", "RAY_gcs_rpc_server_reconnect_timeout_s": str(SILENCE_SECONDS)}
    words = [sys.executable, "-P", "-m", "cluster.door", address]
    try:
        done = subprocess.run(words, env=asking, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
        lines = done.stdout.splitlines()
    except subprocess.TimeoutExpired:
        lines = []
    told = [json.loads(line) for line in lines if line.startswith("{")]
    if not told:
        raise ClusterError(
            f"can't reach the Ray cluster at {address}: nothing there answers as Ray's head does; is it running, and is this "
            "its head's host:port (usually port 6379)?"
        )
    return Door(**told[-1])


def refuse_door(address: str, door: Door, environment: Mapping[str, str], *, insecure: bool) -> None:
    """Raise where everybody is let in, or this user is not.

    Args:
        address: the head's.
        door: what it answered.
        environment: of this process.
        insecure: also where it lets everybody in.

    Raises:
        ClusterError: saying what to do.
    """
    if door.open and not insecure:
        raise ClusterError(open_door(address))
    if door.admits:
        return
    if _has_token({**environment, **token_settings(environment)}):
        raise ClusterError(wrong_token(address))
    raise ClusterError(no_token(address))


def refuse_join(address: str, token: Path) -> None:
    """Raise where a node of this machine should not join a head: whoever that lets in runs programs on its nodes.

    Args:
        address: the head's.
        token: file of the token that the node would have.

    Raises:
        ClusterError: if the head lets everybody in, does not take the token, or runs another Ray or Python.
    """
    own = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    door = ask_head(address, own)
    if door.open:
        raise ClusterError(
            f"{address} lets everybody in: whoever reaches it would run programs on this machine too. Start it with a token "
            "(stockpot cluster up does, docs/guides/deploying.md)"
        )
    if not door.admits:
        raise ClusterError(f"{address} does not take the token in {token}: copy the file of its own machine there")
    refuse_versions(address, door)


def refuse_versions(address: str, door: Door) -> None:
    """Raise where the cluster's Ray or Python is not the one here, by Ray's own rule: it refuses such a driver, in words of its own.

    Raises:
        ClusterError: naming both.
    """
    import ray
    from ray._private.utils import check_version_info

    if not door.ray:
        return
    try:
        check_version_info({"ray_version": door.ray, "python_version": door.python}, "this machine")
    except RuntimeError as error:
        raise ClusterError(
            f"{address} runs Ray {door.ray} on Python {door.python}, and here it is Ray {ray.__version__} on Python "
            f"{platform.python_version()}: {MEND}"
        ) from error


def _has_token(settings: Mapping[str, str]) -> bool:
    """Whether Ray finds a token: it aborts where it is told to use one and there is none."""
    if settings.get("RAY_AUTH_TOKEN"):
        return True
    named = settings.get("RAY_AUTH_TOKEN_PATH")
    if named:
        return Path(named).expanduser().is_file()
    return settings.get("RAY_AUTH_MODE") == "token" and RAYS_TOKEN.expanduser().is_file()


def main(words: Sequence[str] | None = None) -> int:
    """Print what a head answers without our token, and where it refuses that, with it."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError

    (address,) = sys.argv[1:] if words is None else words
    try:
        _tell({"open": True, "admits": True, **_described(GcsClient(address=address))})
        return 0
    except AuthenticationError:
        _tell({"open": False, "admits": False})
    os.environ["RAY_AUTH_MODE"] = os.environ["STOCKPOT_AUTH_MODE"]
    if not _has_token(os.environ):
        return 0
    reread_environment()
    try:
        _tell({"open": False, "admits": True, **_described(GcsClient(address=address))})
    except AuthenticationError:
        return 0
    return 0


def _tell(told: Mapping[str, Any]) -> None:
    print(json.dumps(told), flush=True)


def _described(client: Any) -> dict[str, str]:
    """What the head's store says of the cluster."""
    versions = client.internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=SILENCE_SECONDS)
    dashboard = client.internal_kv_get(b"dashboard", b"dashboard", timeout=SILENCE_SECONDS)
    said = json.loads(versions or b"{}")
    return {
        "ray": str(said.get("ray_version", "")),
        "python": str(said.get("python_version", "")),
        "dashboard": (dashboard or b"").decode(),
    }


if __name__ == "__main__":
    sys.exit(main())
