"""Ray in this process, or an existing cluster by its address.

Embedded Ray is private: its token is on and lies in a file of its own (mode 0600), its temporary folder is readable by
this user alone, there is no dashboard, and nothing is reported home. Its processes share the fate of this one, also
after a kill -9 (Ray's two idle agents take up to a minute to notice); folders that a killed process left behind are
removed by the next start.

Ray is imported inside functions, so that reading a sweep file stays fast.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.asking import ask_each, holds_trials, living, where
from cluster.base import ClusterError, Node
from cluster.door import Door, ask_head, find_address, refuse_door, refuse_versions
from cluster.machine import Machine, this_machine, unset
from cluster.packages import has_travelled, stage
from cluster.processes import await_end, below
from cluster.token import reread_environment, token_settings, write_private
from cluster.versions import MEND, Told, compare, own_versions

REACH_SECONDS = 10.0
END_SECONDS = 10.0
"""How long embedded Ray may take to end all its processes."""
LONGEST_FOLDER = 36
"""Ray puts Unix sockets 66 characters below its folder, and Linux allows 107."""
PREFIX = "stockpot-"
OBJECT_STORE_BYTES = 256 * 1024 * 1024
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


class RayCluster:
    """The connection. Use `embedded` or `attach`."""

    def __init__(self, folder: Path, lock: int, before: dict[str, str | None], embedded: bool, door: Door) -> None:
        self._lock = lock
        self._before = before
        self._closed = False
        self.folder = folder
        """Private scratch folder of this connection, gone after `close`."""
        self.embedded = embedded
        """Whether Ray was started here."""
        self.door = door
        """Whom the head lets in."""

    @property
    def head(self) -> str:
        """`host:port` of the head."""
        import ray

        return str(ray.get_runtime_context().gcs_address)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What the living nodes have in all, in use or not."""
        resources = [node["Resources"] for node in living()]
        return tuple(Node(float(has.get("CPU", 0.0)), float(has.get("GPU", 0.0))) for has in resources)

    def machines(self, seconds: float = 60.0) -> tuple[tuple[Node, Machine], ...]:
        """Every living node with the machine it is on, asked by a task that takes no resources.

        Raises:
            ClusterError: when a node does not answer in time.
        """
        found: list[Machine] = ask_each(living(), seconds, this_machine, hidden_gpus=True)
        return tuple(zip(self.nodes, found, strict=True))

    def refuse_unset(self, names: Sequence[str], seconds: float = 60.0) -> None:
        """Raise where a living node that can hold trials lacks environment variables; nodes are asked for names, not for values.

        Raises:
            ClusterError: saying which are missing where, or that a node does not answer in time.
        """
        if not names:
            return
        holding = [node for node in living() if holds_trials(node)]
        lacking = ask_each(holding, seconds, unset, list(names))
        if any(lacking):
            raise ClusterError(_unset_told(list(zip(map(where, holding), lacking, strict=True))))

    def differences(self, seconds: float = 120.0) -> tuple[str, ...]:
        """What a person should know of the living nodes' versions; a node may still have to start a worker and to unpack our packages.

        Raises:
            ClusterError: where versions differ that must not, node by node, or a node does not answer in time.
        """
        nodes = living()
        said: list[Mapping[str, str]] = ask_each(nodes, seconds, own_versions)
        told = [Told(where(node), own, holds_trials(node)) for node, own in zip(nodes, said, strict=True)]
        found = compare(own_versions(), told)
        if found.wrong:
            raise ClusterError("\n".join((*found.wrong, MEND)))
        return found.notes

    def close(self) -> None:
        """Disconnect; embedded Ray ends with all its processes, and the folder goes. Any number of times."""
        if self._closed:
            return
        self._closed = True
        import ray

        started = below(os.getpid()) if self.embedded else []
        ray.shutdown()
        await_end(started, END_SECONDS)
        _restore(self._before)
        reread_environment()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _unset_told(lacking: Sequence[tuple[str, Sequence[str]]]) -> str:
    """What nodes lack in their environments, and the mend; those that lack the same are named together.

    Args:
        lacking: addresses of nodes, each with the names.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for address, names in lacking:
        where = alike.setdefault(tuple(names), [])
        where += [] if address in where else [address]
    lines = []
    for names, where in alike.items():
        are, them = ("are", "them") if len(names) > 1 else ("is", "it")
        nodes, their = ("nodes", "their") if len(where) > 1 else ("node", "its")
        if names:
            lines.append(
                f"{nodes} {', '.join(where)}: {', '.join(names)} {are} not in the environment {their} Ray was started in; export "
                f"{them} there and start the {nodes} again"
            )
    return "\n".join(lines)


def connect(address: str | None = None, cpus: int | None = None, *, insecure: bool = False) -> RayCluster:
    """Start Ray here, or attach to the cluster at `address` (`host:port`, or `auto`). Call it from the main thread.

    Args:
        address: the cluster's, let in by the token of the environment, else by this user's (`cluster.token`); None starts Ray here.
        cpus: what Ray started here counts as its CPUs; default: the machine's.
        insecure: also to a cluster that lets in whoever has no token.

    Raises:
        ClusterError: when the address is of a kind that can't run a sweep, nobody answers there, everybody is let in, or
            this process is not.
    """
    import ray

    if ray.is_initialized():
        raise ClusterError("this process is already connected to a Ray cluster")
    door = Door(open=False, admits=True)
    if address is not None:
        address = head_address(address)
        refuse_silence(address)
        door = ask_head(address, os.environ)
        refuse_door(address, door, os.environ, insecure=insecure)
        refuse_versions(address, door)
    _sweep_leftovers()
    folder, lock = _private_folder()
    settings = dict(ENVIRONMENT)
    if address is None:
        token = folder / "token"
        write_private(token, secrets.token_hex(32))
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        # A token in the environment would win over our file and leave it unused.
        settings |= {"RAY_AUTH_TOKEN": "", "RAY_ADDRESS": ""}
    else:
        settings |= token_settings(os.environ) | {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
    before = _set(settings)
    cluster = RayCluster(folder, lock, before, address is None, door)
    with contextlib.ExitStack() as undo:
        undo.callback(cluster.close)
        travelling = {} if address is None else _with_packages(folder)
        try:
            _start(address, folder, cpus, travelling)
        except Exception as error:  # Ray raises a bare one where its node times out at the start
            where = f"the Ray cluster at {address}" if address else "Ray on this machine"
            first = str(error).strip().splitlines() or [type(error).__name__]
            hint = "; is it running, and is RAY_AUTH_TOKEN_PATH its token file?" if address else ""
            raise ClusterError(f"can't reach {where}: {first[0]}{hint}") from error
        undo.pop_all()
    return cluster


def head_address(address: str) -> str:
    """`host:port` of the head that an address means.

    Raises:
        ClusterError: as `refuse_address`, and for `auto` if no Ray runs here, or more than one does.
    """
    refuse_address(address)
    return find_address(address)


def refuse_address(address: str) -> None:
    """Raise for addresses that can't carry a sweep, naming what does.

    Raises:
        ClusterError: for Ray Client and Ray Jobs addresses, and for what is no address.
    """
    if address.startswith("ray://"):
        raise ClusterError(
            f"--address {address}: a Ray Client connection can't drive a sweep; run stockpot on a node of the cluster "
            "with --address auto, or give the head's host:port (usually port 6379)"
        )
    if "://" in address:
        raise ClusterError(
            f"--address {address}: legal are host:port of the cluster's head (usually port 6379) and auto"
        )
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdigit()):
        raise ClusterError(
            f"--address {address}: legal are host:port of the cluster's head (usually port 6379) and auto"
        )


def refuse_silence(address: str) -> None:
    """Raise where nobody listens: Ray itself would try for a minute and then end the process.

    Raises:
        ClusterError: when the head can't be reached within `REACH_SECONDS`.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"can't reach the Ray cluster at {address}: {getattr(error, 'strerror', None) or error}; is it running, and is "
            "this its head's host:port (usually port 6379)?"
        ) from error


def _start(address: str | None, folder: Path, cpus: int | None, travelling: Mapping[str, Any]) -> None:
    import ray

    reread_environment()
    _hush()
    shared: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address is not None:
        with _held_back(folder / "stderr"):
            ray.init(address=address, job_config=_own_paths_alone(), **travelling, **shared)
        return
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=str(folder / "ray"),
        **shared,
    )


def _with_packages(folder: Path) -> dict[str, Any]:
    """What has the workers run this process' code, also where their nodes have other or none; nothing in a job that brought it.

    Raises:
        ClusterError: if it can't be copied to where Ray takes it from.
    """
    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {}
    theirs = given.get("py_modules") or []
    if theirs and has_travelled(os.environ):
        return {}
    try:
        return {"runtime_env": {"py_modules": [*stage(folder / "code"), *theirs]}}
    except OSError as error:
        raise ClusterError(
            f"can't copy what travels with the sweep to {folder}: {error.strerror}; set TMPDIR to a folder with room"
        ) from error


def _own_paths_alone() -> Any:
    """Keep Ray from putting this process' working directory first on the workers' path, where it is another thing on each node.

    A folder `sweeps` in it, or a checkout of another day, would be taken for our packages.
    """
    from ray.job_config import JobConfig

    config = JobConfig()
    config._runtime_env_has_working_dir = lambda: True
    return config


def _hush() -> None:
    """Have Ray print nothing of lost nodes (its stack, in colours) on standard output, which may be JSON: we say it in our words."""
    from ray._private import worker

    worker._worker_logs_enabled = False


@contextlib.contextmanager
def _held_back(file: Path) -> Iterator[None]:
    """Keep what Ray's core prints while it joins, a line a second where it is refused: told after, unless it failed."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with file.open("wb") as aside:
            os.dup2(aside.fileno(), 2)
        yield
        os.write(before, file.read_bytes())
    finally:
        os.dup2(before, 2)
        os.close(before)


def _private_folder() -> tuple[Path, int]:
    """A new folder of this user alone with a short path, and a lock that lives as long as this process."""
    for parent in (tempfile.gettempdir(), "/tmp"):
        if len(parent) + len(PREFIX) + 9 > LONGEST_FOLDER:
            continue
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        except OSError:
            continue
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder, lock
    raise ClusterError(
        f"no short temporary folder can be written: Ray's sockets need one of at most {LONGEST_FOLDER} characters; "
        "set TMPDIR to such a folder"
    )


def _sweep_leftovers() -> None:
    """Remove folders of this user whose process is gone."""
    for parent in {tempfile.gettempdir(), "/tmp"}:
        for folder in Path(parent).glob(f"{PREFIX}????????"):
            with contextlib.suppress(OSError):
                if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                    continue
                lock = os.open(folder / "lock", os.O_RDWR)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(lock)


def _set(settings: dict[str, str]) -> dict[str, str | None]:
    """Set (or, for an empty text, remove) environment variables; what they were before."""
    before = {name: os.environ.get(name) for name in settings}
    _restore({name: value or None for name, value in settings.items()})
    return before


def _restore(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
