import json
import math
from typing import Any

import numpy as np
import pytest

from evaluators.base import Direction, ItemSet, summarise
from sweeps.board import Leaderboard
from sweeps.compare import CompareError, Comparison, Source, compare
from sweeps.compare_text import to_json, to_text
from sweeps.events import Event, StoredItems
from sweeps.fold import fold
from sweeps.leaderboard import leaderboard
from sweeps.metrics import Metric

ITEMS = ItemSet(tuple(f"i{i}" for i in range(60)))
BASE = np.random.default_rng(0).normal(2.0, 0.5, 60)


class Machine:
    """A sweep with given item scores: ledger, plan and fold in one."""

    metric = "tune/loss"
    direction: Direction = "minimize"

    def __init__(self, name: str) -> None:
        self.name = name
        self.events = [Event("sweep_created", {"name": name, "spec": {}})]
        self.stored: dict[tuple[str, int], StoredItems] = {}
        self.count = 0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (Metric(self.metric, self.direction),)

    def milestones_of(self, config: Any) -> tuple[int, ...]:
        return (8, 30)

    def items(self, owner: str, resource: int, name: str, split: str) -> StoredItems | None:
        assert (name, split) == tuple(self.metric.split("/")[::-1])
        return self.stored.get((owner, resource))

    def ran(self, x: Any, rung: int = 30, item_set: ItemSet = ITEMS, store: bool = True) -> str:
        trial, run = f"{self.count:04d}-t", f"{self.count:04d}-t/seed-0"
        _, _, name = self.metric.partition("/")
        score = summarise(name, "tune", self.direction, item_set, x)
        assert score.items is not None
        suggested = {"trial": trial, "order": self.count, "config": {}, "parameters": {}, "choices": {}}
        started = {"lease": "l", "run": run, "attempt": 0, "milestones": [30]}
        reported = {"run": run, "attempt": 0, "resource": rung, "scores": [score.record()]}
        self.events += [Event("suggested", suggested), Event("lease_started", started)]
        if rung == 30:
            self.events.append(Event("reported", {**reported, "resource": 8}))
        self.events.append(Event("reported", reported))
        if store:
            self.stored[run, rung] = StoredItems(item_set, score.items)
        self.count += 1
        return trial

    def near(self, shift: float, seed: int = 0, **settings: Any) -> str:
        return self.ran(BASE + shift + 0.05 * np.random.default_rng(seed).normal(size=60), **settings)

    def source(self) -> Source:
        return Source(self.name, fold(self.events), self, self)

    def board(self) -> Leaderboard:
        return leaderboard(fold(self.events), self, self)


def one(*shifts: float) -> Machine:
    machine = Machine("one")
    for i, shift in enumerate(shifts):
        machine.near(shift, i)
    return machine


def test_within_a_sweep_it_agrees_with_the_leaderboards_marks() -> None:
    machine = one(0.0, 0.3, 0.001, 0.02)
    comparison = compare([machine.source()])
    rows = machine.board().trials
    assert [c.name for c in comparison.contestants] == [row.name for row in rows]
    assert [c.tied for c in comparison.contestants[1:]] == [row.tie for row in rows[1:]]
    assert comparison.tied_best[0] == rows[0].name
    assert [pair.against_best for pair in comparison.pairs[:3]] == [row.p for row in rows[1:]]


def test_every_pair_is_judged_once_with_holm_over_all() -> None:
    comparison = compare([one(0.0, 0.3, 0.6).source()])
    assert [(p.left, p.right) for p in comparison.pairs] == [
        ("0000-t", "0001-t"),
        ("0000-t", "0002-t"),
        ("0001-t", "0002-t"),
    ]
    assert {p.better for p in comparison.pairs} == {"left"}
    assert [p.p for p in comparison.pairs] == pytest.approx([3 / 10_001] * 3)
    assert [p.against_best for p in comparison.pairs] == [pytest.approx(2 / 10_001)] * 2 + [None]
    assert comparison.tied_best == ("0000-t",)
    difference = comparison.pairs[1].result
    assert difference.difference == pytest.approx(-0.6, abs=0.03)
    assert difference.low < difference.difference < difference.high < 0


def test_sweeps_that_share_items_meet() -> None:
    left, right = Machine("left"), Machine("right")
    left.near(0.2, 1)
    right.near(0.0, 2)
    right.near(0.001, 3)
    comparison = compare([left.source(), right.source()])
    assert {c.name for c in comparison.contestants} == {"left:0000-t", "right:0000-t", "right:0001-t"}
    assert set(comparison.tied_best) == {"right:0000-t", "right:0001-t"}
    assert comparison.left_out == ()


def test_other_items_are_left_out_and_named() -> None:
    left, right = Machine("left"), Machine("right")
    left.near(0.0)
    right.near(0.1, item_set=ItemSet(tuple(f"j{i}" for i in range(60))))
    right.near(0.1, 1, store=False)
    comparison = compare([left.source(), right.source()])
    assert [c.name for c in comparison.contestants] == ["left:0000-t"]
    assert dict(comparison.left_out) == {
        "right:0000-t": "it was scored on other items than left:0000-t",
        "right:0001-t": "its item scores are not stored",
    }
    assert "left out: right:0000-t" in to_text(comparison)


def test_only_the_highest_rung_takes_part_and_top_bounds_it() -> None:
    machine = one(0.0, 0.1, 0.2)
    machine.near(-1.0, 9, rung=8)
    machine.ran(np.full(60, np.nan))
    comparison = compare([machine.source()], top=2)
    assert [c.name for c in comparison.contestants] == ["0000-t", "0001-t"]
    assert [c.rung for c in comparison.contestants] == [30, 30]


def test_before_the_end_the_highest_rung_is_compared() -> None:
    machine = Machine("early")
    machine.near(0.0, rung=8)
    machine.near(0.2, 1, rung=8)
    assert [c.rung for c in compare([machine.source()]).contestants] == [8, 8]


def test_different_metrics_are_refused() -> None:
    left, right = Machine("left"), Machine("right")
    right.metric = "tune/exact_match"
    with pytest.raises(CompareError, match="left has tune/loss, right has tune/exact_match"):
        compare([left.source(), right.source()])


def test_nothing_to_compare_is_said() -> None:
    with pytest.raises(CompareError, match="no trial has item scores of tune/loss"):
        compare([Machine("empty").source()])


def comparison() -> Comparison:
    machine = one(0.0, 0.3, 0.001)
    machine.ran(np.array([np.nan, *BASE[1:]]) + 0.01)
    return compare([machine.source()])


def test_json_has_no_nan() -> None:
    record = json.loads(json.dumps(to_json(comparison()), allow_nan=False))
    assert len(record["contestants"]) == 4
    assert len(record["pairs"]) == 6
    dropped = [p["dropped"] for p in record["pairs"] if "0003-t" in (p["left"], p["right"])]
    assert dropped == [1, 1, 1]
    assert record["contestants"][0]["name"] in record["tied_best"]


def test_text_says_who_ties() -> None:
    lines = to_text(comparison()).splitlines()
    assert lines[0] == "tune/loss (lower is better), each minus the best, paired on the same items"
    assert lines[2].split()[0] == "="
    assert "best" in lines[2]
    worst = next(line for line in lines if "0001-t" in line)
    assert "=" not in worst
    assert "+0.29" in worst
    assert any("can't be told from the best (marked =)" in line for line in lines)


def test_one_contestant_stands_without_a_test() -> None:
    alone = compare([one(0.0).source()])
    assert alone.pairs == ()
    assert alone.tied_best == ("0000-t",)
    assert len(to_text(alone).splitlines()) == 3


def test_one_item_can_not_tell_anything() -> None:
    machine = Machine("tiny")
    item_set = ItemSet(("a",))
    machine.ran([1.0], item_set=item_set)
    machine.ran([9.0], item_set=item_set)
    tiny = compare([machine.source()])
    assert tiny.tied_best == ("0000-t", "0001-t")
    assert math.isnan(tiny.pairs[0].result.se)
    assert "+8 " in to_text(tiny) + " "
