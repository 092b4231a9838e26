"""What is wrong with a cluster, in plain words: every check says what it found, and what to do where that is bad."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.base import ClusterError
from cluster.token import read_token
from cluster.versions import CODE, MEND, Told, compare, own_versions

SKEW_SECONDS = 2.0
"""Clocks that differ by more make times of logs and the stall watch misleading."""
ANSWER_SECONDS = 30.0
SEEING_SECONDS = 120.0
DASHBOARD_PORT = 8265

State = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: what: `versions`, `gpus`, `storage`, `clock`, `token`, `dashboard`, `nodes`.
        state: whether it is well.
        text: what was found, and what to do.
    """

    about: str
    state: State
    text: str


@dataclass(frozen=True)
class Facts:
    """What one machine says of itself.

    Attributes:
        host: its name.
        versions: as `cluster.versions.own_versions` there.
        clock: seconds since the epoch, when it was asked.
        smi: GPUs that nvidia-smi lists; None without nvidia-smi.
        storage: why the probe in the storage folder can't be read, or the folder not written; empty when both can.
    """

    host: str
    versions: Mapping[str, str]
    clock: float
    smi: int | None
    storage: str = ""


def facts(storage: str | None = None, probe: str = "") -> Facts:
    """What this machine says.

    Args:
        storage: folder that trials write to; None looks at none.
        probe: name of a file that must be there.
    """
    return Facts(socket.gethostname(), own_versions(), time.time(), _smi(), _storage(storage, probe))


def _smi() -> int | None:
    from cluster.machine import this_machine

    return None if shutil.which("nvidia-smi") is None else len(this_machine(hidden_gpus=True).gpus)


def _storage(storage: str | None, probe: str) -> str:
    if storage is None:
        return ""
    folder = Path(storage)
    try:
        (folder / probe).read_bytes()
    except OSError as error:
        return f"can't see what was written there ({error.strerror})"
    own = folder / f"{probe}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    try:
        own.write_bytes(b"")
        own.unlink()
    except OSError as error:
        return f"can't write there ({error.strerror})"
    return ""


@dataclass(frozen=True)
class NodeAnswer:
    """A node's facts, or why there are none.

    Attributes:
        address: the node's.
        gpus: that Ray counts on it.
        said: what it said.
        asked: this machine's clock when it was asked, seconds since the epoch.
        lag: seconds until the answer was here.
        error: why it said nothing.
        holds_trials: whether trials run on it.
    """

    address: str
    gpus: float
    said: Facts | None
    asked: float = 0.0
    lag: float = 0.0
    error: str = ""
    holds_trials: bool = True


def ask_nodes(storage: str | None, probe: str) -> list[NodeAnswer]:
    """Every living node's facts; this process is connected."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(facts)
    answers = []
    for node in [node for node in ray.nodes() if node["Alive"]]:
        pinned = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        where, gpus = str(node["NodeManagerAddress"]), float(node["Resources"].get("GPU", 0.0))
        try:
            ray.get(pinned.remote(), timeout=ANSWER_SECONDS)
            began = time.time()
            said: Facts = ray.get(pinned.remote(storage, probe), timeout=ANSWER_SECONDS)
            holds = gpus > 0 or node["Resources"].get("CPU", 0.0) > 0
            answers.append(NodeAnswer(where, gpus, said, began, time.time() - began, holds_trials=holds))
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            answers.append(NodeAnswer(where, gpus, None, error=lines[-1]))
    return answers


def unseen(folder: Path) -> list[str]:
    """What the nodes say that can't read and write a folder as this machine does; empty where all can. This process is connected.

    Raises:
        ClusterError: if the folder can't be written here.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    made = [place for place in (folder, *folder.parents) if not place.exists()]
    probe = f".stockpot-probe-{uuid.uuid4().hex[:8]}"
    task = ray.remote(num_cpus=0, max_retries=0)(_storage)
    alive = [node for node in ray.nodes() if node["Alive"]]
    _leave(folder, probe)
    try:
        asked = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                str(folder), probe
            )
            for node in alive
        ]
        said: list[str] = ray.get(asked, timeout=SEEING_SECONDS)
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ClusterError(f"a node of the cluster does not say whether it sees {folder}: {lines[-1]}") from error
    finally:
        (folder / probe).unlink(missing_ok=True)
        for place in made:
            with contextlib.suppress(OSError):  # somebody else is at work there
                place.rmdir()
    return [f"node {node['NodeManagerAddress']} {text}" for node, text in zip(alive, said, strict=True) if text]


def judge(own: Facts, answers: Sequence[NodeAnswer]) -> list[Finding]:
    """What the answers say of the cluster."""
    silent = [answer for answer in answers if answer.said is None]
    found = [Finding("nodes", "ok", f"{len(answers) - len(silent)} of {len(answers)} nodes answer")]
    if silent:
        told = "; ".join(f"{answer.address}: {answer.error}" for answer in silent)
        found = [
            Finding(
                "nodes",
                "wrong",
                f"no answer from {told}. Its Ray unpacks Stockpot's packages first: see logs/runtime_env_agent.log in its folder",
            )
        ]
    heard = [(answer, answer.said) for answer in answers if answer.said is not None]
    return [*found, _versions(own, heard), _gpus(heard), *_folders(heard), _clocks(heard)]


Heard = Sequence[tuple[NodeAnswer, Facts]]


def _versions(own: Facts, heard: Heard) -> Finding:
    nodes = [Told(answer.address, said.versions, answer.holds_trials) for answer, said in heard]
    found = compare(own.versions, nodes)
    if found.wrong or found.notes:
        mend = f". {MEND[0].upper()}{MEND[1:]}" if found.wrong else ""
        state: State = "wrong" if found.wrong else "warning"
        return Finding("versions", state, "; ".join((*found.wrong, *found.notes)) + mend)
    listed = ", ".join(f"{name} {version}" for name, version in own.versions.items() if name != CODE)
    return Finding("versions", "ok", f"the same everywhere: {listed}")


def _gpus(heard: Heard) -> Finding:
    total = sum(answer.gpus for answer, _ in heard)
    hidden = [answer.address for answer, said in heard if (said.smi or 0) > answer.gpus]
    if hidden:
        return Finding(
            "gpus",
            "wrong",
            f"{', '.join(hidden)}: Ray counts fewer GPUs than nvidia-smi lists; start the node with --num-gpus",
        )
    if not total:
        return Finding("gpus", "warning", "no node has one: fine-tunes run on CPUs")
    return Finding("gpus", "ok", f"{total:g} in all")


def _folders(heard: Heard) -> list[Finding]:
    bad = [f"{answer.address} {said.storage}" for answer, said in heard if said.storage]
    if not bad:
        return []
    return [
        Finding(
            "storage",
            "wrong",
            "; ".join(bad) + ". Put storage on a file system that every node mounts at the same path",
        )
    ]


def _clocks(heard: Heard) -> Finding:
    """An answer was made after its question and before it was here: what lies outside is a clock's fault."""
    worst, where = 0.0, ""
    for answer, said in heard:
        skew = max(answer.asked - said.clock, said.clock - (answer.asked + answer.lag))
        if skew > worst:
            worst, where = skew, answer.address
    if worst > SKEW_SECONDS:
        return Finding("clock", "warning", f"{where} is {worst:.0f} s off this machine's; have NTP set both")
    return Finding("clock", "ok", f"within {SKEW_SECONDS:g} s of this machine's")


def token_finding(environment: Mapping[str, str]) -> Finding:
    """Whether this process has a token."""
    if read_token(environment) is None:
        return Finding(
            "token", "wrong", "the cluster let us in without a token: whoever reaches its ports runs programs on it; see "
            "docs/guides/deploying.md"
        )  # fmt: skip
    return Finding("token", "ok", "there is one")


def dashboard_finding(host: str, port: int = DASHBOARD_PORT) -> Finding:
    """Whether the dashboard answers on this address, and whom."""
    try:
        status = _status(f"http://{host}:{port}/api/version")
    except OSError:
        return Finding("dashboard", "ok", f"nobody answers on {host}:{port}")
    if status == 200:
        return Finding(
            "dashboard", "wrong", f"{host}:{port} answers without a token: anybody who reaches it submits jobs; start the head "
            "with RAY_AUTH_MODE=token and --dashboard-host=127.0.0.1"
        )  # fmt: skip
    return Finding("dashboard", "ok", f"{host}:{port} refuses whoever has no token")


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def examine(address: str, storage: str | None) -> list[Finding]:
    """Look at a cluster from here.

    Args:
        address: `host:port`, or `auto`.
        storage: folder of sweeps that nodes must read and write; None looks at none.

    Raises:
        ClusterError: if the cluster can't be reached.
    """
    from cluster.local import connect

    cluster = connect(address)
    probe = f".stockpot-probe-{uuid.uuid4().hex[:8]}"
    try:
        if storage is not None:
            _leave(Path(storage), probe)
        answers = ask_nodes(storage, probe)
        findings = judge(facts(), answers)
        import ray

        head = next((str(node["NodeManagerAddress"]) for node in ray.nodes() if _is_head(node)), "127.0.0.1")
        if storage is not None and not any(finding.about == "storage" for finding in findings):
            findings.append(Finding("storage", "ok", f"{storage} is read and written by every node"))
        return [*findings, token_finding(os.environ), dashboard_finding(head)]
    finally:
        cluster.close()
        if storage is not None:
            (Path(storage) / probe).unlink(missing_ok=True)


def _is_head(node: Mapping[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]


def _leave(folder: Path, probe: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / probe).write_bytes(b"")
    except OSError as error:
        raise ClusterError(f"storage {folder}: can't be written here: {error.strerror}") from error
