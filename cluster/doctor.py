"""What is wrong with a cluster, in plain words: every check says what it found, and what to do where that is bad."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.asking import ask_each, asked_of, holds_trials, living, where, why_silent
from cluster.base import ClusterError
from cluster.door import Door
from cluster.versions import CODE, MEND, Told, compare, own_versions

SKEW_SECONDS = 2.0
"""Clocks that differ by more make times of logs and the stall watch misleading."""
ANSWER_SECONDS = 30.0
SEEING_SECONDS = 120.0

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
        remote: why remote storage can't be read and written from there; empty when it can, or nobody asked.
    """

    host: str
    versions: Mapping[str, str]
    clock: float
    smi: int | None
    storage: str = ""
    remote: str = ""


Proof = Callable[[], str]
"""Tries remote storage where it runs; why that can't be read and written, empty when it can."""


def facts(storage: str | None = None, probe: str = "", remote: Proof | None = None) -> Facts:
    """What this machine says.

    Args:
        storage: folder that trials write to; None looks at none.
        probe: name of a file that must be there.
        remote: tries remote storage; None where there is none.
    """
    seen, proved, clock = _storage(storage, probe), "" if remote is None else remote(), time.time()
    return Facts(socket.gethostname(), own_versions(), clock, _smi(), seen, proved)


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
        own.write_text(probe)
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


def ask_nodes(storage: str | None, probe: str, remote: Proof | None = None) -> list[NodeAnswer]:
    """Every living node's facts, as `facts` takes its arguments; this process is connected."""
    import ray

    answers = []
    for node in living():
        address, gpus = where(node), float(node["Resources"].get("GPU", 0.0))
        try:
            ray.get(asked_of(node, facts), timeout=ANSWER_SECONDS)
            began = time.time()
            said: Facts = ray.get(asked_of(node, facts, storage, probe, remote), timeout=SEEING_SECONDS)
            lag = time.time() - began
            answers.append(NodeAnswer(address, gpus, said, began, lag, holds_trials=holds_trials(node)))
        except ray.exceptions.RayError as error:
            answers.append(NodeAnswer(address, gpus, None, error=why_silent(error)))
    return answers


def unseen(folder: Path) -> list[str]:
    """What the nodes say that can't read and write a folder as this machine does; empty where all can. This process is connected.

    Raises:
        ClusterError: if the folder can't be written here, or a node does not answer.
    """
    probe, nodes = f".stockpot-probe-{uuid.uuid4().hex[:8]}", living()
    with _left(folder, probe):
        said: list[str] = ask_each(nodes, SEEING_SECONDS, _storage, str(folder), probe)
    return [f"node {where(node)} {text}" for node, text in zip(nodes, said, strict=True) if text]


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
                f"no answer from {told}",
            )
        ]
    heard = [(answer, answer.said) for answer in answers if answer.said is not None]
    return [*found, _versions(own, heard), _gpus(heard), *_folders(heard), *_buckets(heard), _clocks(heard)]


Heard = Sequence[tuple[NodeAnswer, Facts]]


def _versions(own: Facts, heard: Heard) -> Finding:
    if not heard:
        return Finding("versions", "warning", "no node says what it has")
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


def _buckets(heard: Heard) -> list[Finding]:
    """Which nodes can't use remote storage; the driver alone does, so this matters where it is to run there."""
    bad = [f"{answer.address}: {said.remote}" for answer, said in heard if said.remote]
    if not bad:
        return []
    return [Finding("storage", "warning", "; ".join(bad) + ". A sweep can't be driven from there (Ray Jobs: the head)")]


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


def token_finding(door: Door) -> Finding:
    """Whether the cluster asks for a token."""
    if door.open:
        return Finding(
            "token", "wrong", "the cluster lets in whoever has no token: who reaches its ports runs programs on it; see "
            "docs/guides/deploying.md"
        )  # fmt: skip
    return Finding("token", "ok", "whoever has none is refused")


def dashboard_finding(address: str) -> Finding:
    """Where the dashboard listens, and whom it answers.

    Args:
        address: its `host:port`, as the head knows it; empty where there is none.
    """
    if not address:
        return Finding("dashboard", "ok", "there is none")
    if _is_loopback(address.rpartition(":")[0]):
        return Finding("dashboard", "ok", f"listens on the head's loopback alone ({address})")
    try:
        return judge_dashboard(address, _status(f"http://{address}/api/version"))
    except OSError:
        return Finding("dashboard", "ok", f"nobody answers on {address} from here")


def judge_dashboard(address: str, status: int) -> Finding:
    """What it means that a dashboard beyond loopback gives this HTTP status to whoever has no token."""
    if status == 200:
        return Finding(
            "dashboard", "wrong", f"{address} is open to the world: anybody who reaches it submits jobs; start the head with "
            "RAY_AUTH_MODE=token and --dashboard-host=127.0.0.1"
        )  # fmt: skip
    return Finding(
        "dashboard", "warning", f"{address} listens beyond loopback; it refuses whoever has no token, which travels to it in "
        "plain text. --dashboard-host=127.0.0.1 keeps it on the head"
    )  # fmt: skip


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def examine(address: str, storage: str | None, remote: Proof | None = None) -> list[Finding]:
    """Look at a cluster from here, also at one that lets everybody in, to say so.

    Args:
        address: `host:port`, or `auto`.
        storage: folder of sweeps that nodes must read and write; None looks at none.
        remote: tries remote storage where it runs; Ray carries it to every node.

    Raises:
        ClusterError: if the cluster can't be reached.
    """
    from cluster.local import connect

    cluster = connect(address, insecure=True)
    probe = f".stockpot-probe-{uuid.uuid4().hex[:8]}"
    found = []
    try:
        with contextlib.ExitStack() as left:
            if storage is not None:
                try:
                    left.enter_context(_left(Path(storage), probe))
                    found = [Finding("storage", "ok", f"{storage} is read and written by every node")]
                except ClusterError as error:
                    storage, found = None, [Finding("storage", "wrong", str(error))]
            findings = judge(facts(), ask_nodes(storage, probe, remote))
        if any((finding.about, finding.state) == ("storage", "wrong") for finding in findings):
            found = []
        return [*findings, *found, token_finding(cluster.door), dashboard_finding(cluster.door.dashboard)]
    finally:
        cluster.close()


@contextlib.contextmanager
def _left(folder: Path, probe: str) -> Iterator[None]:
    """A file for others to find in a folder, and after that the folder as it was before.

    Raises:
        ClusterError: if the folder can't be written here.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / probe).write_text(probe)
    except OSError as error:
        raise ClusterError(f"storage {folder}: can't be written here: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder is lost, or somebody else is at work there
            (folder / probe).unlink(missing_ok=True)
            for place in made:
                place.rmdir()
