"""What a cluster is to a sweep: an address, what its nodes have, and an end. Plain arithmetic says what fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

AUTO_CPUS = 4.0
"""CPUs of a trial where neither the file nor a GPU says anything: more rarely helps one trial, and memory runs out."""
MAX_SLOTS = 256
"""Trials at once at most, whatever the cluster has."""

HEALTH = {
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "8000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_grpc_keepalive_timeout_ms": "60000",
}
"""Environment of every node: one that answers none of 3 looks, 8 s each and 2 s apart, is lost: after 30 s in place of Ray's 65.

Until then its connections must last. Ray's own give up after 20 s, and only the side with something to say notices: a node that
was cut off for 25 s would be back, and what its workers had reported meanwhile lost for up to five minutes.
"""


@dataclass(frozen=True)
class Node:
    """What one machine of a cluster offers."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Placement:
    """What every worker of a trial gets, how many workers a trial has, and how many trials run at once."""

    slots: int
    cpus: float
    gpus: float
    workers: int = 1

    @property
    def each(self) -> str:
        """What one trial has, in words."""
        cpus = f"{self.cpus:g} CPU{'' if self.cpus == 1 else 's'}"
        has = f"{cpus} and {self.gpus:g} GPU{'' if self.gpus == 1 else 's'}" if self.gpus else cpus
        return has if self.workers == 1 else f"{self.workers} workers of {has}"


class ClusterError(RuntimeError):
    """The cluster can't be reached, or can never run a trial; a user's mistake, with the mend in the message."""


class ClusterLost(RuntimeError):
    """The cluster that a sweep was running on is gone; the sweep goes on from its ledger, on this one or another.

    Args:
        message: what was seen.
        mend: what a person does about it.
    """

    def __init__(self, message: str, mend: str = "resume the sweep") -> None:
        super().__init__(message)
        self.mend = mend


class Cluster(Protocol):
    """A Ray cluster that this process is connected to."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What the living nodes have in all, in use or not."""
        ...

    def close(self) -> None:
        """Disconnect, and end what was started here."""
        ...


def place(
    nodes: Sequence[Node],
    cpus: float | Literal["auto"],
    gpus: float | Literal["auto"],
    most: int | None,
    workers: int = 1,
) -> Placement:
    """How trials fit on the nodes.

    `gpus: auto` is one GPU where any node has one. `cpus: auto` shares the CPUs evenly among the trials that run at
    once: as many as the GPUs carry, or one for every 4 CPUs where there are none, and `most` of them where it is given.
    The workers of a trial may stand on several nodes, each of them on one.

    Args:
        nodes: the cluster.
        cpus: CPU threads of a worker.
        gpus: GPUs of a worker.
        most: trials at once at most (`max_concurrent_trials`).
        workers: processes of a trial.

    Raises:
        ClusterError: when the nodes can never run one trial.
    """
    if not nodes:
        raise ClusterError("the Ray cluster has no living node; start one, or leave --address out to run here")
    wanted_gpus = (1.0 if any(node.gpus >= 1 for node in nodes) else 0.0) if gpus == "auto" else float(gpus)
    limit = min(most or MAX_SLOTS, MAX_SLOTS)
    wanted_cpus = _even_share(nodes, wanted_gpus, most, workers) if cpus == "auto" else float(cpus)
    places = sum(_fit(node, wanted_cpus, wanted_gpus) for node in nodes)
    if not places:
        raise ClusterError(_infeasible(nodes, wanted_cpus, wanted_gpus))
    if places < workers:
        raise ClusterError(_too_few(nodes, wanted_cpus, wanted_gpus, workers, places))
    return Placement(min(places // workers, limit), wanted_cpus, wanted_gpus, workers)


def holds(nodes: Sequence[Node], placement: Placement) -> bool:
    """Whether the nodes, were they empty, have room for one trial."""
    return sum(_fit(node, placement.cpus, placement.gpus) for node in nodes) >= placement.workers


def _fit(node: Node, cpus: float, gpus: float) -> int:
    """Trials that fit on a node; a hair of rounding is forgiven."""
    by_cpu = math.floor(node.cpus / cpus + 1e-6)
    return min(by_cpu, _fit_gpus(node, gpus)) if gpus else by_cpu


def _fit_gpus(node: Node, gpus: float) -> int:
    """Trials that a node's GPUs carry; a share never spans two GPUs."""
    if gpus >= 1:
        return math.floor(node.gpus / gpus + 1e-6)
    return int(node.gpus) * math.floor(1 / gpus + 1e-6)


def _even_share(nodes: Sequence[Node], gpus: float, most: int | None, workers: int) -> float:
    """The most CPUs a worker can have while as many trials run at once as should; rounded down to what Ray can count."""
    if gpus:
        carried = sum(_fit_gpus(node, gpus) for node in nodes) // workers
        trials = min(carried, most or MAX_SLOTS)
    else:
        trials = most or sum(max(1, math.floor(node.cpus / AUTO_CPUS)) for node in nodes) // workers
    wanted = workers * max(1, min(trials, MAX_SLOTS))
    shares = {math.floor(node.cpus / k * 1e4) / 1e4 for node in nodes for k in range(1, wanted + 1)}
    fair = [share for share in shares if share > 0 and sum(_fit(node, share, gpus) for node in nodes) >= wanted]
    return max(fair, default=1.0)


def _too_few(nodes: Sequence[Node], cpus: float, gpus: float, workers: int, places: int) -> str:
    """Why the workers of one trial never run together."""
    has = Placement(1, cpus, gpus, workers).each
    there = ", ".join(f"{node.cpus:g} CPUs + {node.gpus:g} GPUs" for node in nodes)
    key = "gpus" if gpus and sum(_fit_gpus(node, gpus) for node in nodes) < workers else "workers"
    return (
        f"resources.{key}: a trial needs {has}, and the cluster ({there}) has room for {places}; legal: up to {places}"
    )


def _infeasible(nodes: Sequence[Node], cpus: float, gpus: float) -> str:
    most_cpus, most_gpus = max(node.cpus for node in nodes), max(node.gpus for node in nodes)
    wrong = []
    if cpus > most_cpus:
        wrong.append(f"resources.cpus: {cpus:g} is more than any node has; legal: up to {most_cpus:g}, or auto")
    if gpus > most_gpus:
        legal = f"up to {most_gpus:g}, or auto" if most_gpus else "0 or auto (this cluster has no GPU)"
        wrong.append(f"resources.gpus: {gpus:g} is more than any node has; legal: {legal}")
    if not wrong:
        wrong.append(
            f"resources: no single node has {cpus:g} CPUs and {gpus:g} GPUs together; "
            f"the nodes have {', '.join(f'{node.cpus:g} CPUs + {node.gpus:g} GPUs' for node in nodes)}"
        )
    return "\n".join(wrong)


def reserve(nodes: Sequence[Node], wanted: Sequence[Node]) -> tuple[Node, ...] | None:
    """What is left of the nodes when each of the wanted shares has its place; None where one has none.

    The largest shares are placed first, each on the node where it leaves the least.
    """
    left = list(nodes)
    for share in sorted(wanted, key=lambda one: (one.gpus, one.cpus), reverse=True):
        fitting = [
            (node.gpus - share.gpus, node.cpus - share.cpus, place)
            for place, node in enumerate(left)
            if node.cpus + 1e-6 >= share.cpus and node.gpus + 1e-6 >= share.gpus
        ]
        if not fitting:
            return None
        gpus, cpus, place = min(fitting)
        left[place] = Node(max(0.0, round(cpus, 4)), max(0.0, round(gpus, 4)))
    return tuple(left)


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def reason(error: BaseException) -> str:
    """The last line that an error says, or what it is."""
    return last_line(str(error)) or type(error).__name__
