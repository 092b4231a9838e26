"""Which nodes the lease after a lost one avoids; no Ray."""

from __future__ import annotations

from typing import get_args

import pytest

from cluster.base import Node, Placement, holds
from sweeps.elsewhere import Elsewhere
from sweeps.failures import Failure, FailureKind

A, B = frozenset({"a"}), frozenset({"b"})


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_only_a_failure_that_is_no_fault_of_the_trial_is_avoided(kind: FailureKind) -> None:
    elsewhere = Elsewhere()
    elsewhere.begun("l0", "run")
    elsewhere.stand({"l0": A})
    elsewhere.ended("l0", Failure(kind, "gone"))
    elsewhere.begun("l1", "run")
    assert elsewhere.avoided("l1") == (A if kind in ("node", "stall") else frozenset())


def test_the_node_of_the_last_failure_counts_for_one_lease_of_that_run_alone() -> None:
    elsewhere = Elsewhere()
    for lease, nodes in (("l0", A), ("l1", B)):
        elsewhere.begun(lease, "run")
        elsewhere.stand({lease: nodes, "other": A})
        elsewhere.ended(lease, Failure("node", "gone"))
    elsewhere.begun("m0", "another")
    elsewhere.begun("l2", "run")
    assert (elsewhere.avoided("m0"), elsewhere.avoided("l2")) == (frozenset(), B)
    elsewhere.stand({"l2": A})
    elsewhere.ended("l2")
    elsewhere.begun("l3", "run")
    assert elsewhere.avoided("l3") == frozenset()


def test_a_lease_may_go_anywhere_in_the_end_and_one_without_a_place_says_nothing() -> None:
    elsewhere = Elsewhere()
    elsewhere.begun("l0", "run")
    elsewhere.stand({"l0": A})
    elsewhere.ended("l0", Failure("stall", "silent"))
    elsewhere.begun("l1", "run")
    elsewhere.anywhere("l1")
    assert elsewhere.avoided("l1") == frozenset()
    elsewhere.ended("l1", Failure("node", "withdrawn before it had a place"))
    elsewhere.begun("l2", "run")
    assert elsewhere.avoided("l2") == frozenset()


@pytest.mark.parametrize(
    ("nodes", "placement", "held"),
    [
        ([Node(4, 1)], Placement(1, 4.0, 1.0), True),
        ([Node(4), Node(8)], Placement(1, 4.0, 1.0), False),
        ([Node(2), Node(1)], Placement(2, 1.0, 0.0, workers=3), True),
        ([Node(2)], Placement(2, 1.0, 0.0, workers=3), False),
        ([], Placement(1, 1.0, 0.0), False),
    ],
)
def test_whether_nodes_hold_a_trial(nodes: list[Node], placement: Placement, held: bool) -> None:
    assert holds(nodes, placement) is held
