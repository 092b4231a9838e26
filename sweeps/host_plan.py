"""Which processes have the resident models, and with what: plain arithmetic over the nodes and the `hosts` section.

The rule: a role that the section names has a process of its own with what it asks for. All other roles, and every
endpoint, share one process. Where the processes of the section don't fit beside one trial and none insists on a GPU, all
roles share the one process. On a machine of few cores that process computes with all of them: trials wait while a model
computes, and need no core meanwhile. A model never waits for a trial, so nothing can wait for itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.base import ClusterError, Node, Placement, place, reserve

if TYPE_CHECKING:
    from sweeps.spec import HostResources, SweepSpec

TRIAL_CPUS = 0.1
"""CPUs of a trial that asks resident models, where the file says nothing."""
TRIALS_PER_CPU = 2
"""Such trials at once for every CPU, where the file says nothing: each is a process, and takes memory and a start."""
FEW_CPUS = 4
"""On a node of so many CPUs or fewer the shared process computes with all of them."""
SHARED = "models"
"""The process of all roles that have none of their own, and of endpoints."""
ROLES = ("generator", "judge", "embedder", "reranker")


@dataclass(frozen=True)
class HostProcess:
    """A process with resident models.

    Attributes:
        name: its role, or `models`.
        cpus: that Ray counts for it.
        gpus: that Ray gives it.
        threads: that its models compute with.
    """

    name: str
    cpus: float
    gpus: float
    threads: int


@dataclass(frozen=True)
class HostPlan:
    """Where models and trials go.

    Attributes:
        processes: of resident models; the shared one is the last.
        placement: of trials.
        note: what is other than the file says, for people; empty mostly.
    """

    processes: tuple[HostProcess, ...]
    placement: Placement
    note: str = ""


def plan_hosts(spec: SweepSpec, nodes: Sequence[Node]) -> HostPlan:
    """Processes and placement of a sweep whose trials ask models.

    Raises:
        ClusterError: when no node can ever run one trial beside them.
    """
    if not nodes:
        place(nodes, "auto", "auto", None)
    asked = {role: section for role in ROLES if (section := getattr(spec.hosts, role)) is not None}
    own = _own(asked, nodes)
    found = _fitted(spec, nodes, own)
    if found is not None:
        return found
    insisting = [role for role, section in asked.items() if section.gpus != "auto" and section.gpus > 0]
    alone = None if insisting else _fitted(spec, nodes, ())
    if alone is None:
        wanted = ", ".join(f"{process.name} {process.cpus:g} CPUs + {process.gpus:g} GPUs" for process in own)
        there = ", ".join(f"{node.cpus:g} CPUs + {node.gpus:g} GPUs" for node in nodes)
        _place_trials(spec, nodes, nodes)  # a trial that fits nowhere has a message of its own
        raise ClusterError(
            f"hosts: {wanted or 'the resident models'} and one trial don't fit; the nodes have {there}; lower hosts or resources"
        )
    note = f"hosts: {', '.join(asked)} don't fit beside a trial, so all models share one process"
    return HostPlan(alone.processes, alone.placement, note)


def _own(asked: Mapping[str, HostResources], nodes: Sequence[Node]) -> tuple[HostProcess, ...]:
    """A process for each role that the file names; `auto` is a GPU while there is one, and a quarter of the CPUs."""
    free = sum(int(node.gpus) for node in nodes) - sum(
        math.ceil(section.gpus) for section in asked.values() if section.gpus != "auto"
    )
    cpus = max(1.0, math.floor(max(node.cpus for node in nodes) / 4))
    made = []
    for role, section in asked.items():
        gpus = section.gpus
        if gpus == "auto":
            gpus = 1.0 if free >= 1 else 0.0
            free -= int(gpus)
        own = cpus if section.cpus == "auto" else section.cpus
        made.append(HostProcess(role, own, gpus, max(1, int(own))))
    return tuple(made)


def _fitted(spec: SweepSpec, nodes: Sequence[Node], own: Sequence[HostProcess]) -> HostPlan | None:
    """The plan with these processes and the largest shared one that leaves room for a trial; None where none does."""
    left = reserve(nodes, [Node(process.cpus, process.gpus) for process in own])
    if left is None:
        return None
    whole = len(own) == len(ROLES)
    host = max(left, key=lambda node: (node.gpus >= 1, node.cpus))
    gpus = 1.0 if host.gpus >= 1 and not whole else 0.0
    for share in (0.0,) if whole else (0.5, 0.25, 0.0):
        cpus = math.floor(host.cpus * share * 10) / 10
        after = reserve(left, [Node(cpus, gpus)])
        if after is None:
            continue
        try:
            placement = _place_trials(spec, nodes, after)
        except ClusterError:
            continue
        most = max(node.cpus for node in nodes)
        threads = int(most) if most <= FEW_CPUS and not own else int(cpus)
        return HostPlan((*own, HostProcess(SHARED, cpus, gpus, max(1, threads))), placement)
    return None


def _place_trials(spec: SweepSpec, nodes: Sequence[Node], left: Sequence[Node]) -> Placement:
    wanted, most = spec.resources, spec.max_concurrent_trials
    if most is None and wanted.cpus == "auto":
        most = max(2, math.floor(TRIALS_PER_CPU * sum(node.cpus for node in nodes)))
    cpus = TRIAL_CPUS if wanted.cpus == "auto" else wanted.cpus
    return place(left, cpus, 0.0 if wanted.gpus == "auto" else wanted.gpus, most)
