"""The front in the tables: order, who may be on it by chance, the hypervolume's interval, and pairs on every metric."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from evaluators.base import ItemSet, summarise
from evaluators.statistics import paired
from sweeps.board import Leaderboard, to_csv, to_json
from sweeps.board_text import to_text
from sweeps.compare import CompareError, Source, compare_all
from sweeps.compare_text import all_to_json, all_to_text
from sweeps.events import Event, StoredItems
from sweeps.fold import fold
from sweeps.leaderboard import leaderboard
from sweeps.ledger import number
from sweeps.metrics import Metric
from sweeps.pareto import hypervolume

N = 80
ROWS = ItemSet(
    tuple(f"i{i}" for i in range(N)), tuple(1.0 + i % 3 for i in range(N)), tuple(f"g{i // 2}" for i in range(N))
)
PLAIN = ItemSet(ROWS.ids, groups=ROWS.groups)
LOSS, EXACT = Metric("tune/loss", "minimize"), Metric("tune/exact_match", "maximize")
SECONDS = Metric("cost/seconds", "minimize")


def centred(draw: np.random.Generator, weights: Any = None) -> Any:
    """Noise that leaves the mean where it is."""
    noise = draw.normal(size=N)
    return noise - np.average(noise, weights=weights)


class Machine:
    """A sweep with given item scores on several metrics: ledger, plan and fold in one."""

    def __init__(self, *metrics: Metric, name: str = "demo") -> None:
        self.metrics = metrics
        self.name = name
        self.events = [Event("sweep_created", {"name": name, "spec": {}})]
        self.stored: dict[tuple[str, int, str], StoredItems] = {}
        self.count = 0

    def milestones_of(self, config: Any) -> tuple[int, ...]:
        return (8, 30)

    def items(self, owner: str, resource: int, name: str, split: str) -> StoredItems | None:
        return self.stored.get((owner, resource, f"{split}/{name}"))

    def ran(
        self,
        loss: float,
        exact: float | None = None,
        seconds: float | None = None,
        *,
        rung: int = 30,
        noise: float = 0.02,
        store: bool = True,
        same_as: str | None = None,
    ) -> str:
        """A trial with about these means; its items are the common ones plus noise of its own."""
        trial = f"{self.count:04d}-t"
        run, draw = f"{trial}/seed-0", np.random.default_rng(self.count)
        common = np.random.default_rng(99).normal(size=N)
        values: list[tuple[str, Any, ItemSet, Any]] = [
            ("loss", "minimize", ROWS, loss + 0.3 * common + noise * centred(draw, ROWS.weights))
        ]
        if exact is not None:
            values.append(("exact_match", "maximize", PLAIN, exact + 0.1 * common + noise * centred(draw)))
        scores = [summarise(name, "tune", direction, rows, x) for name, direction, rows, x in values]
        body = {"trial": trial, "order": self.count, "config": {}, "parameters": {"x": loss}, "choices": {}}
        self.events.append(Event("suggested", {**body, "duplicate_of": same_as}))
        self.count += 1
        if same_as is not None:
            return trial
        self.events.append(Event("lease_started", {"lease": "l", "run": run, "attempt": 0, "milestones": [30]}))
        telemetry = {} if seconds is None else {"cost/seconds": number(seconds)}
        for resource in [8, 30][: 1 + (rung == 30)]:
            records = [score.record() for score in scores]
            body = {"run": run, "attempt": 0, "resource": resource, "scores": records, "telemetry": telemetry}
            self.events.append(Event("reported", body))
            for score in scores:
                if store and score.items is not None and score.item_set is not None:
                    self.stored[run, resource, score.key] = StoredItems(score.item_set, score.items)
        return trial

    def board(self) -> Leaderboard:
        return leaderboard(fold(self.events), self, self)

    def source(self) -> Source:
        return Source(self.name, fold(self.events), self, self)


def test_rows_stand_by_rung_then_front_then_the_primary_metric() -> None:
    machine = Machine(LOSS, SECONDS)
    slow, fast, worse, low, lower = (
        machine.ran(1.0, seconds=9.0),
        machine.ran(2.0, seconds=1.0),
        machine.ran(1.5, seconds=10.0),
        machine.ran(0.1, seconds=0.1, rung=8),
        machine.ran(0.2, seconds=0.2, rung=8),
    )
    dominated_but_better = machine.ran(1.2, seconds=9.5)
    board = machine.board()
    assert [row.name for row in board.rows] == [slow, fast, dominated_but_better, worse, low, lower]
    assert [row.front for row in board.rows] == [1, 1, 2, 3, 1, 2]
    assert [row.rank for row in board.rows] == [1, 2, 3, 4, 5, 6]
    assert board.front is not None
    assert (board.front.members, board.front.rung, board.front.compared) == ((slow, fast), 30, 4)
    assert [row.tie for row in board.rows[:2]] == [None, False]


def test_with_one_metric_there_is_no_front() -> None:
    machine = Machine(LOSS)
    machine.ran(1.0)
    board = machine.board()
    assert board.front is None
    assert board.rows[0].front is None
    assert "front" not in to_text(board)
    assert to_csv(board).splitlines()[0].count("front") == 0


def test_a_trial_that_lacks_a_metric_stands_behind() -> None:
    machine = Machine(LOSS, SECONDS)
    lacking, broken, whole = machine.ran(0.1), machine.ran(0.2, seconds=math.nan), machine.ran(0.9, seconds=5.0)
    board = machine.board()
    assert [row.name for row in board.rows] == [whole, lacking, broken]
    assert [row.rank for row in board.rows] == [1, None, None]
    assert [row.front for row in board.rows] == [1, None, None]


def test_a_repeated_configuration_is_on_no_front() -> None:
    machine = Machine(LOSS, SECONDS)
    first = machine.ran(1.0, seconds=1.0)
    machine.ran(1.0, same_as=first)
    assert [row.front for row in machine.board().rows] == [1, None]


def test_who_is_dominated_by_chance_may_be_on_the_front() -> None:
    """Near: not told from the first. Apart: shown to be worse on both. Half: shown on one, not on the other."""
    machine = Machine(LOSS, EXACT)
    best = machine.ran(1.0, 0.9)
    near = machine.ran(1.001, 0.899)
    half = machine.ran(1.5, 0.8999)
    apart = machine.ran(2.0, 0.5)
    board = machine.board()
    assert board.front is not None
    rows = {row.name: row for row in board.rows}
    assert board.front.members == (best,)
    assert [rows[name].possible for name in (best, near, half, apart)] == [None, True, True, False]
    assert board.front.possible == (near, half)
    assert board.front.tested == 3


def test_a_shown_dominance_is_the_intersection_of_its_metrics_with_holm() -> None:
    machine = Machine(LOSS, EXACT)
    names = [machine.ran(1.0, 0.9, noise=0.3), machine.ran(1.1, 0.86, noise=0.3), machine.ran(1.3, 0.5, noise=0.3)]

    def p(left: str, right: str) -> float:
        found = []
        for metric in ("tune/loss", "tune/exact_match"):
            a, b = (machine.stored[f"{name}/seed-0", 30, metric] for name in (left, right))
            found.append(paired(a.values, b.values, a.item_set).p)
        return max(found)

    raw = {name: p(names[0], name) for name in names[1:]}
    smaller, larger = sorted(raw, key=lambda name: raw[name])
    shown = {smaller: raw[smaller] * 2 <= 0.05, larger: raw[larger] <= 0.05 and raw[smaller] * 2 <= 0.05}
    rows = {row.name: row for row in machine.board().rows}
    assert {name: not rows[name].possible for name in raw} == shown


def test_a_false_not_on_the_front_is_rare() -> None:
    """100 sweeps of a first trial and one that equals it in truth on one metric: that it is off is said about 5 % at most."""
    wrong = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        machine = Machine(LOSS, EXACT)
        for loss in (1.0, 1.6):
            machine.ran(loss, 0.5)
        for trial in ("0000-t", "0001-t"):
            fresh = summarise("exact_match", "tune", "maximize", PLAIN, 0.5 + 0.2 * draw.normal(size=N))
            assert fresh.items is not None
            machine.stored[f"{trial}/seed-0", 30, "tune/exact_match"] = StoredItems(PLAIN, fresh.items)
            for event in machine.events:
                if event.kind == "reported" and event.body["run"].startswith(trial):
                    event.body["scores"][1] = fresh.record()
        wrong += any(row.possible is False for row in machine.board().rows)
    assert wrong <= 10


def test_telemetry_is_taken_as_it_is() -> None:
    machine = Machine(LOSS, SECONDS)
    machine.ran(1.0, seconds=1.0)
    machine.ran(2.0, seconds=2.0)
    machine.ran(1.0001, seconds=1.5)
    assert [row.possible for row in machine.board().rows] == [None, True, False]


def test_without_items_nothing_is_tested() -> None:
    machine = Machine(LOSS, SECONDS)
    machine.ran(1.0, seconds=1.0, store=False)
    machine.ran(2.0, seconds=2.0, store=False)
    board = machine.board()
    assert [row.possible for row in board.rows] == [None, None]
    assert board.front is not None
    assert (board.front.tested, board.front.possible, board.front.dominated) == (0, (), ())
    assert math.isnan(board.front.volume.low)
    assert "[" not in board.front.lines()[-1]


def test_the_hypervolume_is_measured_from_the_worst_and_its_interval_is_the_items() -> None:
    machine = Machine(LOSS, EXACT)
    for loss, exact in ((1.0, 0.5), (1.2, 0.7), (1.5, 0.9), (2.0, 0.4)):
        machine.ran(loss, exact, noise=0.3)
    board = machine.board()
    assert board.front is not None
    volume = board.front.volume
    points = np.array([[row.scores["tune/loss"].value, -row.scores["tune/exact_match"].value] for row in board.rows])
    corner = points.max(axis=0)
    assert dict(volume.reference) == {"tune/loss": corner[0], "tune/exact_match": -corner[1]}
    assert volume.value == pytest.approx(hypervolume(points, corner))
    assert volume.low < volume.value < volume.high
    by_hand = []
    generator = np.random.default_rng(7)
    for _ in range(400):
        drawn = generator.integers(0, N // 2, N // 2)
        rows = np.concatenate([[2 * g, 2 * g + 1] for g in drawn])
        weights = np.array([1.0 + i % 3 for i in rows])
        again = []
        for row in board.rows:
            one, other = (machine.stored[f"{row.name}/seed-0", 30, m].values for m in ("tune/loss", "tune/exact_match"))
            again.append([float((one[rows] * weights).sum() / weights.sum()), -float(other[rows].mean())])
        by_hand.append(hypervolume(again, corner))
    low, high = np.quantile(by_hand, [0.025, 0.975])
    assert (volume.low, volume.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))


def test_unscored_items_count_for_neither_weight_nor_sum() -> None:
    machine = Machine(LOSS, SECONDS)
    machine.ran(1.0, seconds=1.0)
    machine.ran(1.5, seconds=0.5)
    key = ("0000-t/seed-0", 30, "tune/loss")
    values = machine.stored[key].values.copy()
    values[::2] = np.nan
    machine.stored[key] = StoredItems(ROWS, values)
    front = machine.board().front
    assert front is not None
    assert math.isfinite(front.volume.low)


def test_text_csv_and_json_hold_the_front() -> None:
    machine = Machine(LOSS, EXACT, SECONDS)
    machine.ran(1.0, 0.9, 5.0)
    machine.ran(1.001, 0.899, 6.0)
    machine.ran(3.0, 0.1, 1.0)
    board = machine.board()
    text = to_text(board, 160)
    head, titles, *rows = text.splitlines()
    assert head.startswith(
        "demo: tune/loss (lower is better), tune/exact_match (higher is better), cost/seconds (lower"
    )
    assert titles.split()[:4] == ["#", "front", "trial", "rung"]
    assert {"tune/loss", "tune/exact_match", "cost/seconds"} <= set(titles.split())
    assert [row.split()[1] for row in rows[:3]] == ["1", "1", "2?"]
    assert "as good on all of tune/loss, tune/exact_match and cost/seconds and better on one: 2 of 3 at rung 30" in text
    assert "? = possibly on it" in text
    assert "up to the worst seen there: tune/loss 3" in text
    record = json.loads(json.dumps(to_json(board), allow_nan=False))
    assert record["front"]["members"] == ["0000-t", "0002-t"]
    assert record["front"]["possible"] == ["0001-t"]
    assert record["rows"][0]["scores"]["cost/seconds"] == {"value": 5.0, "se": None, "n": None, "unscored": 0}
    table = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert [(row["front"], row["possible"]) for row in table] == [("1", ""), ("1", ""), ("2", "True")]
    assert float(table[0]["tune/exact_match"]) == board.rows[0].scores["tune/exact_match"].value
    assert table[0]["cost/seconds_se"] == ""
    assert table[0]["tune/exact_match_n"] == str(N)


def test_compare_has_a_block_a_metric_and_the_front() -> None:
    machine = Machine(LOSS, EXACT, SECONDS)
    machine.ran(1.0, 0.5, 5.0)
    machine.ran(1.5, 0.9, 6.0)
    machine.ran(3.0, 0.1, 7.0)
    found = compare_all([machine.source()])
    assert [block.metric for block in found.blocks] == ["tune/loss", "tune/exact_match", "cost/seconds"]
    assert [block.contestants[0].name for block in found.blocks] == ["0000-t", "0001-t", "0000-t"]
    assert [len(block.pairs) for block in found.blocks] == [3, 3, 0]
    assert found.front is not None
    assert found.front.members == ("0000-t", "0001-t")
    record = json.loads(json.dumps(all_to_json(found), allow_nan=False))
    assert record["front"] == found.front.record()
    assert [block["tested"] for block in record["metrics"]] == [True, True, False]
    text = all_to_text(found)
    assert "cost/seconds (lower is better), telemetry without an error: nothing is judged" in text
    table = text[text.index("front  trial") :].splitlines()
    assert [line.split()[:2] for line in table[1:3]] == [["1", "0000-t"], ["1", "0001-t"]]
    assert "hypervolume" in text


def test_any_reported_metric_can_be_compared_by() -> None:
    machine = Machine(LOSS)
    machine.ran(1.0, 0.5, 5.0)
    machine.ran(1.5, 0.9, 6.0)
    machine.ran(3.0, 0.1, 7.0)
    [block] = compare_all([machine.source()], metrics=[EXACT]).blocks
    assert [c.name for c in block.contestants] == ["0001-t", "0000-t", "0002-t"]
    assert (block.metric, block.tested, len(block.pairs)) == (EXACT.name, True, 3)
    [seconds] = compare_all([machine.source()], metrics=[SECONDS]).blocks
    assert (seconds.contestants[0].name, seconds.tested) == ("0000-t", False)
    found = compare_all([machine.source()], metrics=[EXACT, SECONDS], top=2)
    assert found.front is not None
    assert (found.front.compared, found.front.members) == (3, ("0001-t", "0000-t"))
    own = Machine(EXACT, SECONDS)
    own.events, own.stored = machine.events, machine.stored
    assert found.front == own.board().front
    text = all_to_text(found)
    half = 1.959964 * found.fronted[0].scores[EXACT.name].se
    assert f"0.913 ± {half:.3f}" in text[text.index("front  trial") :]
    with pytest.raises(
        CompareError, match=r"demo reports tune/x; reported are: cost/seconds, tune/exact_match, tune/loss"
    ):
        compare_all([machine.source()], metrics=[Metric("tune/x", "minimize")])


def test_trials_can_be_named_and_told_how_many_items_they_lack() -> None:
    machine = Machine(LOSS)
    for loss in (1.0, 1.3, 1.001):
        machine.ran(loss)
    found = compare_all([machine.source()], only=["0000-t", "0002-t"])
    [pair] = found.blocks[0].pairs
    assert (pair.left, pair.right) == ("0000-t", "0002-t")
    record = pair.record()
    assert record["more_items_to_tell"] == pytest.approx(record["items_to_tell"] - N)
    assert record["more_items_to_tell"] > 0
    assert f"items in all ({N} now) that would show" in all_to_text(found)
    far = compare_all([machine.source()], only=["0000-t", "0001-t"]).blocks[0].pairs[0]
    assert far.record()["more_items_to_tell"] == 0


def test_the_score_on_test_stands_below_what_chose() -> None:
    machine = Machine(LOSS)
    machine.ran(1.0)
    machine.ran(1.3)
    score = summarise("loss", "test", "minimize", PLAIN, np.full(N, 1.25)).record()
    machine.events.append(Event("final_frozen", {"candidates": [{"role": "winner", "run": "0000-t/seed-0"}]}))
    machine.events.append(Event("final_scored", {"role": "winner", "candidate": "0000-t/seed-0", "scores": [score]}))
    found = compare_all([machine.source()])
    record = all_to_json(found)
    assert [one["test"] and one["test"]["value"] for one in record["contestants"]] == [1.25, None]
    assert "on test, which chose nothing: 0000-t 1.25 ± 0 (n=80)" in all_to_text(found)


def test_sweeps_with_other_metrics_are_not_compared() -> None:
    left, right = Machine(LOSS, EXACT, name="left"), Machine(LOSS, SECONDS, name="right")
    left.ran(1.0, 0.5)
    right.ran(1.0, seconds=1.0)
    with pytest.raises(CompareError, match=r"left has tune/loss and tune/exact_match, right has tune/loss and cost"):
        compare_all([left.source(), right.source()])


def test_two_sweeps_meet_on_every_metric() -> None:
    left, right = Machine(LOSS, EXACT, name="left"), Machine(LOSS, EXACT, name="right")
    left.ran(1.0, 0.5)
    right.count = 5
    right.ran(2.0, 0.9)
    found = compare_all([left.source(), right.source()])
    assert found.front is not None
    assert set(found.front.members) == {"left:0000-t", "right:0005-t"}
    assert math.isfinite(found.front.volume.low)
    assert all(len(block.pairs) == 1 for block in found.blocks)


def test_a_duplicates_scores_are_its_originals() -> None:
    machine: Machine = Machine(LOSS, SECONDS)
    first = machine.ran(1.0, seconds=2.0)
    machine.ran(1.0, same_as=first)
    rows: Mapping[str, Any] = {row.name: row for row in machine.board().rows}
    assert rows["0001-t"].scores == rows[first].scores
