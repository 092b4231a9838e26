import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from evaluators.base import Direction, ItemSet, Score, summarise
from sweeps.board import Leaderboard, Measured, to_csv, to_json
from sweeps.board_text import aligned, score_text, to_text
from sweeps.events import Event, StoredItems
from sweeps.fold import fold
from sweeps.leaderboard import _valued_first, leaderboard, trial_items
from sweeps.ledger import number
from sweeps.metrics import Metric
from sweeps.seeds import combined

ITEMS = ItemSet(tuple(f"i{i}" for i in range(60)), groups=tuple(f"g{i // 2}" for i in range(60)))
BASE = np.random.default_rng(0).normal(2.0, 0.5, 60)


@dataclass
class Sweep:
    """Builds a ledger's events and item scores by hand, and is the plan as well."""

    metric: str = "tune/loss"
    direction: Direction = "minimize"
    milestones: tuple[int, ...] = (8, 30)
    events: list[Event] = field(default_factory=lambda: [Event("sweep_created", {"name": "demo", "spec": {}})])
    stored: dict[tuple[str, int, str, str], StoredItems] = field(default_factory=dict)
    trials: int = 0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (Metric(self.metric, self.direction),)

    def milestones_of(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        return config.get("milestones", self.milestones)

    def items(self, owner: str, resource: int, name: str, split: str) -> StoredItems | None:
        return self.stored.get((owner, resource, name, split))

    def add(self, kind: str, /, **body: Any) -> None:
        self.events.append(Event(kind, body, len(self.events)))

    def trial(
        self, parameters: Mapping[str, Any] | None = None, *, duplicate_of: str | None = None, **config: Any
    ) -> str:
        name = f"{self.trials:04d}-abc"
        self.add(
            "suggested",
            trial=name,
            order=self.trials,
            config=config,
            parameters=dict(parameters or {}),
            choices={},
            duplicate_of=duplicate_of,
        )
        self.trials += 1
        return name

    def lease(self, trial: str, seed: int = 0, **changes: Any) -> str:
        run = f"{trial}/seed-{seed}"
        self.add("lease_started", lease="l", run=run, attempt=0, milestones=[30], changes=changes)
        return run

    def report(
        self, run: str, resource: int, x: Any, item_set: ItemSet = ITEMS, telemetry: Mapping[str, float] | None = None
    ) -> None:
        split, _, name = self.metric.partition("/")
        score = summarise(name, split, self.direction, item_set, x)  # type: ignore[arg-type]
        assert score.items is not None
        self.stored[run, resource, name, split] = StoredItems(item_set, score.items)
        self.add(
            "reported",
            run=run,
            attempt=0,
            resource=resource,
            scores=[score.record()],
            telemetry={k: number(v) for k, v in (telemetry or {}).items()},
            worker_seconds=10.0,
        )

    def ran(self, shift: float, reached: int = 30, seed: int = 0, noise: float = 0.02, phase: str = "") -> str:
        """A trial whose item losses are the base's plus a shift."""
        trial = self.trial({"learning_rate": 1e-3 * (1 + self.trials), "lora_r": 8})
        self.ran_run(self.lease(trial, seed), shift, reached, noise, phase)
        return trial

    def ran_run(self, run: str, shift: float, reached: int = 30, noise: float = 0.02, phase: str = "") -> None:
        rng = np.random.default_rng(len(self.events))
        for milestone in [m for m in self.milestones if m <= reached]:
            self.report(run, milestone, BASE + shift + noise * rng.normal(size=60))
        self.add("run_ended", run=run, state=phase or ("finished" if reached == 30 else "stopped"), reason="")

    def board(self, **settings: Any) -> Leaderboard:
        return leaderboard(fold(self.events), self, self, **settings)


def names(board: Leaderboard) -> list[str]:
    return [row.name for row in board.rows]


def test_orders_by_rung_then_score() -> None:
    sweep = Sweep()
    best_low = sweep.ran(-1.0, reached=8)
    worse, better = sweep.ran(0.5), sweep.ran(0.1)
    waiting = sweep.trial()
    board = sweep.board()
    assert names(board) == [better, worse, best_low, waiting]
    assert [row.rank for row in board.rows] == [1, 2, 3, None]
    assert [row.rung for row in board.rows] == [30, 30, 8, None]
    assert [row.whole for row in board.rows] == [True, True, False, False]
    first = board.rows[0]
    assert (first.score.n, first.state, first.resource, first.seconds) == (60, "finished", 30, 20.0)
    assert first.score.value == pytest.approx(float((BASE + 0.1).mean()), abs=0.02)
    assert 0 < first.score.se < 0.2
    assert math.isnan(board.rows[3].score.value)
    assert board.rows[3].state == "waiting"


def test_larger_is_better_where_the_evaluator_says_so() -> None:
    sweep = Sweep(metric="tune/exact_match", direction="maximize")
    low, high = sweep.ran(0.0), sweep.ran(1.0)
    assert names(sweep.board()) == [high, low]


def test_what_has_no_score_stands_after_what_has_and_failed_last() -> None:
    sweep = Sweep()
    failed = sweep.ran(-1.0, reached=8)
    sweep.add("failed", run=f"{failed}/seed-0", kind="oom", message="out of memory", final=True)
    early = sweep.trial()
    sweep.add("failed", run=sweep.lease(early), kind="user", message="no such file", final=True)
    unscored = sweep.trial()
    run = sweep.lease(unscored)
    for resource in (8, 30):
        sweep.report(run, resource, np.full(60, np.nan))
    good = sweep.ran(0.0)
    repeated = sweep.trial(duplicate_of=good)
    board = sweep.board()
    assert names(board) == [good, unscored, repeated, failed, early]
    assert [row.rank for row in board.rows] == [1, None, None, None, None]
    assert [row.state for row in board.rows] == ["finished", "running", "duplicate", "failed", "failed"]
    assert board.rows[1].score.unscored == 60
    assert board.rows[2].reason == f"same configuration as {good}"
    assert board.rows[2].score == board.rows[0].score
    assert [row.reason for row in board.rows[3:]] == ["out of memory", "no such file"]
    assert board.rows[3].score.value < board.rows[0].score.value
    assert (board.rows[4].resource, math.isnan(board.rows[4].seconds)) == (None, True)


def test_an_infinite_score_is_the_worst_of_its_rung() -> None:
    sweep = Sweep()
    trial = sweep.trial()
    sweep.report(sweep.lease(trial), 30, np.array([np.inf, *BASE[1:]]))
    good = sweep.ran(0.0)
    board = sweep.board()
    assert names(board) == [good, trial]
    assert board.rows[1].rank == 2
    assert board.rows[1].tie is False
    assert to_json(board)["rows"][1]["score"]["value"] == "inf"
    json.dumps(to_json(board), allow_nan=False)


def test_marks_what_can_not_be_told_from_the_first() -> None:
    sweep = Sweep()
    first = sweep.ran(0.0)
    near = sweep.ran(0.001, noise=0.05)
    far = sweep.ran(0.5)
    low = sweep.ran(0.0, reached=8)
    rows = {row.name: row for row in sweep.board().rows}
    assert rows[first].rank == 1
    assert (rows[first].tie, rows[near].tie, rows[far].tie, rows[low].tie) == (None, True, False, None)
    assert rows[far].p < 0.001 < 0.05 < rows[near].p
    # unpaired the two would overlap: the spread of the items hides the shift
    gap = rows[far].score.value - rows[first].score.value
    assert 0.02 < rows[near].score.se < gap


def test_ties_are_holm_adjusted_over_the_rows_compared() -> None:
    sweep = Sweep()
    for shift in (0.0, 0.3, 0.3, 0.3):
        sweep.ran(shift)
    one = Sweep()
    one.ran(0.0)
    one.ran(0.3)
    smallest = 1 / 10_001
    assert one.board().rows[1].p == pytest.approx(smallest)
    assert [row.p for row in sweep.board().rows[1:]] == pytest.approx([3 * smallest] * 3)


def test_other_items_are_not_compared() -> None:
    sweep = Sweep()
    sweep.ran(0.0)
    other = sweep.trial()
    sweep.report(sweep.lease(other), 30, BASE + 0.001, ItemSet(ITEMS.ids))
    bare = sweep.ran(0.002)
    sweep.stored.pop((f"{bare}/seed-0", 30, "loss", "tune"))
    assert [row.tie for row in sweep.board().rows] == [None, None, None]


def test_only_the_newest_attempt_counts() -> None:
    sweep = Sweep()
    trial = sweep.trial()
    run = sweep.lease(trial)
    sweep.add("lease_started", lease="l2", run=run, attempt=1, milestones=[30])
    sweep.report(run, 8, BASE)
    assert sweep.board().rows[0].rung is None


def test_a_telemetry_metric_has_neither_error_nor_ties() -> None:
    sweep = Sweep(metric="train/loss")
    for value in (0.5, 0.4):
        run = sweep.lease(sweep.trial())
        sweep.add("reported", run=run, attempt=0, resource=30, scores=[], telemetry={"train/loss": value})
    board = sweep.board()
    assert [row.score.value for row in board.rows] == [0.4, 0.5]
    assert [row.score.n for row in board.rows] == [None, None]
    assert [row.tie for row in board.rows] == [None, None]
    assert " 0.4 " in to_text(board)
    assert "±" not in to_text(board)


def test_runs_of_different_lengths_rank_by_score_at_their_own_end() -> None:
    sweep = Sweep()
    long, short, half = (sweep.trial(milestones=m) for m in [(60,), (20,), (60,)])
    sweep.report(sweep.lease(long), 60, BASE + 0.4)
    sweep.report(sweep.lease(short), 20, BASE)
    sweep.lease(half)
    board = sweep.board()
    assert names(board) == [short, long, half]
    assert board.rows[1].tie is False


class TestSeeds:
    def test_a_trial_is_the_mean_of_its_seeds_at_its_rung(self) -> None:
        sweep = Sweep()
        trial = sweep.trial()
        for seed, shift in ((0, 0.2), (1, 0.4)):
            sweep.ran_run(sweep.lease(trial, seed), shift, 8, noise=0)
        [row] = sweep.board().rows
        assert (row.seeds, row.rung, row.resource, row.seconds) == ((0, 1), 8, 16, 20.0)
        assert row.score.value == pytest.approx(BASE.mean() + 0.3, abs=1e-6)
        stored = trial_items(row, sweep, "tune/loss")
        assert stored is not None
        np.testing.assert_allclose(stored.values, BASE + 0.3, atol=1e-6)

    def test_only_seeds_that_have_reported_at_the_rung_count(self) -> None:
        sweep = Sweep()
        trial = sweep.trial()
        sweep.ran_run(sweep.lease(trial, 0), 0.2, 30, noise=0)
        sweep.ran_run(sweep.lease(trial, 1), 0.4, 8, noise=0)
        sweep.lease(trial, 2)
        [row] = sweep.board().rows
        assert (row.seeds, row.rung) == ((0,), 30)
        assert row.score.value == pytest.approx(BASE.mean() + 0.2, abs=1e-6)

    def test_fewer_seeds_stand_behind_more(self) -> None:
        sweep = Sweep()
        lucky, solid = sweep.trial(), sweep.trial()
        sweep.ran_run(sweep.lease(lucky, 0), -1.0)
        for seed in (0, 1):
            sweep.ran_run(sweep.lease(solid, seed), 0.0)
        assert names(sweep.board()) == [solid, lucky]

    def test_the_spread_of_seeds_keeps_a_tie_that_rows_alone_would_break(self) -> None:
        sweep = Sweep()
        first, second = sweep.trial(), sweep.trial()
        for trial, shifts in ((first, (-0.4, 0.4)), (second, (-0.25, 0.65))):
            for seed, shift in enumerate(shifts):
                sweep.ran_run(sweep.lease(trial, seed), shift, noise=0.01)
        board = sweep.board()
        assert names(board) == [first, second]
        assert board.rows[1].tie is True

    def test_the_error_has_the_seeds_in_it(self) -> None:
        score = combined([Measured(1.0, 0.3, 50, 1), Measured(2.0, 0.3, 49, 2)])
        assert score.value == 1.5
        assert score.se == pytest.approx(math.sqrt(0.3**2 + 0.5 / 2))
        assert (score.n, score.unscored) == (49, 2)

    def test_a_failed_seed_is_told_and_left_out(self) -> None:
        sweep = Sweep()
        trial = sweep.trial()
        sweep.ran_run(sweep.lease(trial, 0), 0.0)
        sweep.add("failed", run=sweep.lease(trial, 1), kind="oom", message="too big", final=True)
        [row] = sweep.board().rows
        assert (row.state, row.seeds, row.rank) == ("finished", (0,), 1)
        assert row.reason == "seed 1 failed: too big"


def test_soup_baseline_and_final_scores() -> None:
    sweep = Sweep()
    winner, other = sweep.ran(0.0), sweep.ran(0.1)
    ingredients = [{"run": f"{t}/seed-0"} for t in (winner, other)]
    sweep.add("soup_started", soup="s1", method="greedy", metric="select/loss", ingredients=ingredients)
    sweep.add("soup_finished", soup="s1", ingredients=[[ingredients[0]["run"], 1.0]], folder="f", score=None, hash="h")
    sweep.add(
        "final_frozen",
        candidates=[
            {"role": "winner", "run": f"{winner}/seed-0"},
            {"role": "baseline", "model": "base"},
            {"role": "soup", "soup": "s1"},
        ],
    )
    sweep.add("test_opened", by="final", candidates=[], metrics=[])

    def score(value: float) -> list[dict[str, Any]]:
        return [Score("loss", "test", value, 0.1, 90, 0, "minimize").record()]

    for role, value, seed in (("winner", 1.0, 100), ("winner", 2.0, 101), ("soup", 0.9, None), ("baseline", 3.0, None)):
        sweep.add("final_scored", role=role, candidate="x", scores=score(value), seed=seed)
    for p in (0.04, 0.03, None):
        sweep.add("verdict", left="soup", right="winner", metric="test/loss", p=p)
    board = sweep.board()
    assert [(r.kind, r.name) for r in board.rows[2:]] == [("soup", "s1"), ("baseline", "baseline")]
    tests = {row.name: row.test for row in board.rows}
    assert tests[winner] is not None
    assert tests[winner].value == 1.5
    assert tests[other] is None
    assert [tests[name].value for name in ("s1", "baseline")] == [0.9, 3.0]  # type: ignore[union-attr]
    assert board.rows[2].reason == "greedy, 1 of 2 runs"
    assert [v["p_holm"] for v in board.verdicts] == [0.06, 0.06, None]
    assert board.test_openings == 1
    record = json.loads(json.dumps(to_json(board), allow_nan=False))
    assert record["finals"][0]["scores"]["test/loss"]["value"] == 1.0
    assert record["rows"][1]["test"] is None
    text = to_text(board)
    assert "0.90 ± 0.10" in text
    assert board.head(1).rows == (board.rows[0], *board.rows[2:])


def test_missing_is_a_dash_in_text_and_empty_in_csv() -> None:
    sweep = Sweep()
    sweep.ran(0.0)
    sweep.trial({"lora_r": 16})
    board = sweep.board()
    waiting = to_text(board).splitlines()[3]
    assert waiting.split() == ["-", "0001-abc", "-", "-", "-", "-", "-", "waiting", "-", "16"]
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert [rows[1][key] for key in ("rank", "score", "se", "n", "seconds", "parameters.learning_rate")] == [""] * 6
    assert rows[1]["parameters.lora_r"] == "16"
    assert float(rows[0]["score"]) == board.rows[0].score.value
    assert rows[0]["parameters.learning_rate"] == "0.001"


def test_an_empty_sweep_has_a_board() -> None:
    board = Sweep().board()
    assert board.rows == ()
    assert to_text(board) == "demo: tune/loss (lower is better), 0 trials"
    assert to_csv(board).count("\n") == 1
    assert to_json(board)["rows"] == []


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60])
def test_the_table_is_aligned_and_as_narrow_as_it_is_told(width: int) -> None:
    sweep = Sweep()
    for shift in (0.0, 0.001, 0.4):
        sweep.ran(shift)
    bad = sweep.trial({"adapter.kind": "x" * 50})
    sweep.add("failed", run=sweep.lease(bad), kind="oom", message="out of memory: " + "gigabytes " * 30, final=True)
    lines = to_text(sweep.board(), width).splitlines()
    table = lines[1:6]
    assert max(map(len, table)) <= width
    assert "1" in table[1].split()[0]
    start = table[0].index("state")
    assert [line[start:].split()[0] for line in table[1:]] == ["finished", "finished", "finished", "failed"]
    left_out = [line for line in lines if line.startswith("left out for width")]
    assert bool(left_out) == (width <= 120)
    assert any("out of memory" in line for line in lines)
    assert any("can't be told from the first" in line for line in lines)


def rag_sweep() -> Sweep:
    """Three RAG configurations that tie, the first two with answers that were scored and cost something."""
    sweep = Sweep(metric="tune/span_recall", direction="maximize")
    for shift, price in ((0.002, 0.0031), (0.001, 0.0007), (0.0, None)):
        run = sweep.lease(sweep.trial({"chunk.size": 400, "retrieve.type": "bm25", "rerank.type": "none", "k": 5}))
        telemetry = {"cost/latency": 0.25, "cost/tokens": 310.0 if price else 0.0, "cost/calls": 60.0}
        noise = 0.05 * np.random.default_rng(sweep.trials).normal(size=60)
        sweep.report(
            run, 30, BASE + shift + noise - noise.mean(), telemetry=telemetry | ({"cost/price": price} if price else {})
        )
        if price:
            answers = summarise("token_f1", "tune", "maximize", ItemSet(ITEMS.ids[:40]), 0.3 + 0.1 * BASE[:40])
            body = dict(sweep.events[-1].body)
            sweep.events[-1] = Event("reported", {**body, "scores": [*body["scores"], answers.record()]}, 0)
        sweep.add("run_ended", run=run, state="finished", reason="reached the last question")
    return sweep


def test_quality_latency_tokens_and_price_stand_side_by_side() -> None:
    board = rag_sweep().board(also=["tune/token_f1", "tune/exact_match"])
    lines = to_text(board).splitlines()
    titles = lines[1].split()
    assert titles[3:9] == ["tune/span_recall", "token_f1", "(n=40)", "s/question", "tokens", "price"]
    assert "~0.25" in lines[2]
    assert "0.0031" in lines[2]
    assert "~0.25" in lines[4]
    assert "0.0007" not in lines[4]
    said = "~ mean of stored times; tokens and price: of a question"
    assert any(line.startswith("s/question: median") and line.endswith(said) for line in lines)
    assert max(map(len, lines)) <= 120
    rows = to_json(board)["rows"]
    assert rows[0]["also"]["tune/token_f1"]["n"] == 40
    assert rows[2]["also"] == {}
    [first, _, last] = csv.DictReader(io.StringIO(to_csv(board)))
    assert float(first["tune/token_f1"]) == board.rows[0].also["tune/token_f1"].value
    assert (first["tune/token_f1_n"], last["tune/token_f1"]) == ("40", "")


def test_fewer_rows_are_told_what_all_were_compared_with() -> None:
    board = rag_sweep().board()
    tie = next(line for line in to_text(board).splitlines() if line.startswith("= can't be told"))
    assert "Holm over 2" in tie
    assert tie in to_text(board.head(1)).splitlines()


def test_a_tie_is_marked_in_the_text() -> None:
    sweep = Sweep()
    for shift in (0.0, 0.0001, 0.4):
        sweep.ran(shift, noise=0.05)
    lines = to_text(sweep.board()).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2=", "3"]
    lonely = Sweep()
    lonely.ran(0.0)
    lonely.ran(0.9)
    assert "the first is better than each of the 1 compared" in to_text(lonely.board())


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        (Measured(0.41234, 0.0113, 60), "0.412 ± 0.011"),
        (Measured(12.3456, 1.5, 60), "12.3 ± 1.5"),
        (Measured(1234.5, 150.0, 60), "1234 ± 150"),
        (Measured(0.5, 0.0, 60), "0.5 ± 0"),
        (Measured(0.5, math.nan, 1), "0.5 ± -"),
        (Measured(0.5), "0.5"),
        (Measured(math.inf, math.nan, 60), "inf"),
        (Measured(), "-"),
        (Measured(1e30, 1e29, 60), "1e+30 ± 1e+29"),
        (Measured(1.0, 1e-12, 60), "1.00000000 ± 0.00000000"),
    ],
)
def test_score_text(measured: Measured, text: str) -> None:
    assert score_text(measured) == text


def test_aligned_puts_numbers_right_and_words_left() -> None:
    lines: Sequence[str] = aligned(["name", "n"], [["a", "5"], ["long name", ""], ["b", "1234"]])
    assert list(lines) == ["name          n", "a             5", "long name     -", "b          1234"]


def test_settings_that_do_not_fit_stand_below_and_many_reasons_share_lines() -> None:
    board = rag_sweep().board()
    [below] = [line for line in to_text(board, 60).splitlines() if line.startswith(f"{board.rows[0].name}: chunk")]
    assert below.startswith(f"{board.rows[0].name}: chunk.size 400, retrieve.type bm25")
    assert "chunk.size 400" not in to_text(board, 400)
    many = Sweep()
    for shift in range(10):
        many.ran(0.1 * shift)
    board = many.board()
    rows = tuple(replace(row, reason="reached the total") for row in board.rows)
    said = to_text(replace(board, rows=rows), 60)
    [shared] = [line for line in said.splitlines() if line.startswith("reached the total: ")]
    assert shared.startswith(f"reached the total: {rows[0].name}, {rows[1].name}")
    assert all(row.name in said.partition(shared)[1] + said.partition(shared)[2] for row in rows)
    few = to_text(replace(board, rows=rows[:2]), 60)
    assert f"{rows[1].name}: reached the total" in few


def test_trained_parameters_are_a_column_where_they_differ() -> None:
    sweep = Sweep()
    counts = (460_800, 460_800, 11_520)
    for place, count in enumerate(counts):
        run = sweep.lease(sweep.trial({"adapter": f"a{place}"}))
        sweep.report(run, 30, BASE + place, telemetry={"train/trainable_parameters": count})
        board = sweep.board()
        assert [row.trainable for row in board.trials] == list(counts[: place + 1])
        assert ("trainable" in to_text(board).splitlines()[1].split()) == (place == 2)
    assert [row["trainable"] for row in to_json(board)["rows"]] == list(counts)
    assert [line["trainable"] for line in csv.DictReader(io.StringIO(to_csv(board)))] == [
        str(count) for count in counts
    ]
    assert "460800" in to_text(board)
    assert "trainable" not in to_csv(Sweep().board())


def test_metrics_that_nobody_has_a_value_of_come_behind_the_others() -> None:
    none = Score("span_recall", "test", math.nan, math.nan, 0, 3, "maximize")
    some = Score("document_recall", "test", 0.5, 0.1, 3, 0, "maximize")
    finals = [{"role": role, "scores": {"test/span_recall": none, "test/document_recall": some}} for role in "ab"]
    for final in _valued_first(finals):
        assert list(final["scores"]) == ["test/document_recall", "test/span_recall"]
