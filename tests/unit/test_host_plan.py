"""Where resident models and trials go, on machines of all sizes."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.base import ClusterError, Node, Placement, reserve
from sweeps.host_plan import HostProcess, plan_hosts
from sweeps.spec import SweepSpec


def spec(hosts: dict[str, Any] | None = None, **more: Any) -> SweepSpec:
    rag = {"type": "rag", "corpus": "c", "questions": "q", "retrieve": {"type": "bm25"}}
    return SweepSpec.model_validate(
        {"name": "s", "pipeline": rag, "metric": {"name": "m"}, "hosts": hosts or {}, **more}
    )


@pytest.mark.parametrize(
    ("nodes", "shared", "placement"),
    [
        ([Node(1)], HostProcess("models", 0.5, 0, 1), Placement(2, 0.1, 0)),
        ([Node(2)], HostProcess("models", 1.0, 0, 2), Placement(4, 0.1, 0)),
        ([Node(4)], HostProcess("models", 2.0, 0, 4), Placement(8, 0.1, 0)),
        ([Node(16)], HostProcess("models", 8.0, 0, 8), Placement(32, 0.1, 0)),
        ([Node(16, 2)], HostProcess("models", 8.0, 1, 8), Placement(32, 0.1, 0)),
        ([Node(8), Node(8, 1)], HostProcess("models", 4.0, 1, 4), Placement(32, 0.1, 0)),
    ],
)
def test_without_a_section_all_models_share_a_process(
    nodes: list[Node], shared: HostProcess, placement: Placement
) -> None:
    plan = plan_hosts(spec(), nodes)
    assert (plan.processes, plan.placement, plan.note) == ((shared,), placement, "")


def test_roles_of_the_section_have_processes_of_their_own() -> None:
    hosts = {"generator": {"cpus": 4, "gpus": 1}, "embedder": {"cpus": 2, "gpus": 0}}
    plan = plan_hosts(spec(hosts), [Node(16, 2)])
    assert plan.processes == (
        HostProcess("generator", 4, 1, 4),
        HostProcess("embedder", 2, 0, 2),
        HostProcess("models", 5.0, 1, 5),
    )
    assert plan.placement == Placement(32, 0.1, 0)


def test_automatic_gpus_are_given_while_there_are_some() -> None:
    hosts: dict[str, Any] = {"embedder": {"cpus": 9}, "reranker": {"cpus": 9}, "generator": {}, "judge": {}}
    plan = plan_hosts(spec(hosts), [Node(40, 2)])
    assert [(process.name, process.cpus, process.gpus) for process in plan.processes] == [
        ("generator", 10.0, 1.0),
        ("judge", 10.0, 1.0),
        ("embedder", 9.0, 0.0),
        ("reranker", 9.0, 0.0),
        ("models", 0.0, 0.0),
    ]


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_on_few_cores_sections_that_dont_fit_share_a_process(cpus: int) -> None:
    hosts: dict[str, Any] = {role: {"cpus": 2} for role in ("embedder", "reranker", "generator", "judge")}
    plan = plan_hosts(spec(hosts), [Node(cpus)])
    assert [process.name for process in plan.processes] == ["models"]
    assert (
        plan.note
        == "hosts: generator, judge, embedder, reranker don't fit beside a trial, so all models share one process"
    )


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 8, 64])
@pytest.mark.parametrize("trial", ["auto", 0.1, 1.0])
@pytest.mark.parametrize("hosts", [{}, {"generator": {}}, {"generator": {"cpus": 1}, "embedder": {"cpus": 1}}])
def test_hosts_and_a_trial_always_fit_together(cpus: int, trial: Any, hosts: dict[str, Any]) -> None:
    """What is reserved for both is there, so neither waits for the other for ever."""
    nodes = [Node(float(cpus))]
    plan = plan_hosts(spec(hosts, resources={"cpus": trial}), nodes)
    left = reserve(nodes, [Node(process.cpus, process.gpus) for process in plan.processes])
    assert left is not None
    assert plan.placement.slots >= 1
    assert plan.placement.slots * plan.placement.cpus <= left[0].cpus + 1e-6
    assert all(process.threads >= 1 for process in plan.processes)


def test_a_gpu_that_is_insisted_on_and_not_there_is_an_error() -> None:
    with pytest.raises(
        ClusterError, match=r"hosts: generator 4 CPUs \+ 1 GPUs and one trial don't fit; the nodes have 8 CPUs"
    ):
        plan_hosts(spec({"generator": {"cpus": 4, "gpus": 1}}), [Node(8)])


def test_a_trial_that_fits_nowhere_is_told_as_such() -> None:
    with pytest.raises(ClusterError, match=r"resources.cpus: 9 is more than any node has"):
        plan_hosts(spec(resources={"cpus": 9}), [Node(8)])
    with pytest.raises(ClusterError, match="no living node"):
        plan_hosts(spec(), [])


def test_most_trials_is_the_files() -> None:
    assert plan_hosts(spec(max_concurrent_trials=1), [Node(8)]).placement.slots == 1
    assert plan_hosts(spec(resources={"cpus": 0.1}), [Node(2)]).placement.slots == 10
    assert plan_hosts(spec(resources={"cpus": 1, "gpus": 0}), [Node(2)]).placement.slots == 1


def test_reserve_takes_the_tightest_place_for_the_largest_first() -> None:
    nodes = [Node(8, 1), Node(4), Node(2)]
    assert reserve(nodes, [Node(2), Node(4), Node(1, 1)]) == (Node(7, 0), Node(0, 0), Node(0, 0))
    assert reserve(nodes, [Node(9)]) is None
    assert reserve(nodes, [Node(1, 1), Node(1, 1)]) is None
    assert reserve(nodes, []) == tuple(nodes)
