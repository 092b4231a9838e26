"""The leaderboard's rows, as JSON and as CSV; `sweeps.board_text` has the table for people.

Missing is not zero: a number that is not there is NaN here, null in JSON and empty in CSV.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from evaluators.base import Direction
from sweeps.front import Front
from sweeps.ledger import number
from sweeps.metrics import Metric
from sweeps.state import Round

ALPHA = 0.05


@dataclass(frozen=True)
class Measured:
    """A number with its error; NaN is unknown. `n` is None for telemetry, which has no items."""

    value: float = math.nan
    se: float = math.nan
    n: int | None = None
    unscored: int = 0

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"value": number(self.value), "se": number(self.se), "n": self.n, "unscored": self.unscored}


@dataclass(frozen=True)
class Interval:
    """A mean with its error and interval, over rows and, where there are several, training seeds."""

    value: float
    se: float
    low: float
    high: float
    n: int
    seeds: tuple[int, ...] = ()

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        numbers = {name: number(getattr(self, name)) for name in ("value", "se", "low", "high")}
        return {**numbers, "n": self.n, "seeds": list(self.seeds)}


@dataclass(frozen=True)
class Gap:
    """A judged candidate on what chose it and on test (`sweeps.gap`).

    Attributes:
        role: `winner`, `front-<k>`, `soup` or a soup's id.
        name: the trial's or the soup's.
        chosen_on: full name of the metric that chose it.
        tested_on: full name on test.
        tuned: the score that chose it.
        tested: the score on test.
        worse: by how much test is worse; positive where the choice flattered it.
    """

    role: str
    name: str
    chosen_on: str
    tested_on: str
    tuned: Interval
    tested: Interval
    worse: Interval

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        whole = {name: getattr(self, name).record() for name in ("tuned", "tested", "worse")}
        return {**self.__dict__, **whole}


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        rank: counts from 1; None where there is no score to rank.
        kind: `trial`, or a `soup` or the `baseline`, which are scored on other splits and never ranked.
        name: trial id, soup id or `baseline`.
        seeds: seeds of its runs.
        rung: the milestone that `score` comes from; None before the first.
        whole: whether that is the trial's total.
        score: the sweep's metric.
        tie: not distinguishable from the first; None where it was not compared (another rung, no items).
        p: against the first, adjusted by Holm.
        resource: furthest that its runs have reported, all of them together.
        seconds: worker seconds of all its runs.
        cost: newest `cost/...` telemetry but the seconds, summed over its runs.
        trainable: numbers that a run of it trains; None before its first report, and where nothing is trained.
        state: its runs' phase, or `duplicate`, `soup`, `baseline`.
        reason: why it stopped or failed, what it repeats, or what a soup is made of.
        latency: of a RAG configuration that was probed: `n`, `p50`, `p95` (seconds a question), `stages`.
        parameters: dotted path -> value.
        changes: what a retry changed against the file.
        test: the metric on `test`, for the final step's candidates.
        scores: every metric of the sweep by its full name; `score` is the primary one.
        front: with several metrics, its front among the trials that got as far, from 1.
        possible: not on front 1 by the values, but not shown to be dominated either; None where it was not tested.
        tests: every metric on `test`, by its full name there.
        also: of a RAG configuration that has answered, what its answers were scored by besides, by full name.
        baseline: of a trial that is the baseline, its name; such a one has no rank.
        signs: of a fine-tune, early signs by rows seen, a mapping a report of its first seed: `resource`, `samples`,
            `grad_norm` (before clipping), `loss` (of training).
    """

    rank: int | None
    kind: Literal["trial", "soup", "baseline"]
    name: str
    seeds: tuple[int, ...] = ()
    rung: int | None = None
    whole: bool = False
    score: Measured = Measured()
    tie: bool | None = None
    p: float = math.nan
    resource: int | None = None
    seconds: float = math.nan
    cost: Mapping[str, float] = field(default_factory=dict)
    trainable: int | None = None
    state: str = ""
    reason: str = ""
    latency: Mapping[str, Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    test: Measured | None = None
    scores: Mapping[str, Measured] = field(default_factory=dict)
    front: int | None = None
    possible: bool | None = None
    tests: Mapping[str, Measured] = field(default_factory=dict)
    also: Mapping[str, Measured] = field(default_factory=dict)
    baseline: str = ""
    signs: tuple[Mapping[str, float], ...] = ()

    def record(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes null."""
        return {
            **self.__dict__,
            "seeds": list(self.seeds),
            "score": self.score.record(),
            "p": number(self.p),
            "seconds": number(self.seconds),
            "cost": {name: number(value) for name, value in self.cost.items()},
            "parameters": dict(self.parameters),
            "changes": dict(self.changes),
            "test": None if self.test is None else self.test.record(),
            "scores": {name: score.record() for name, score in self.scores.items()},
            "tests": {name: score.record() for name, score in self.tests.items()},
            "also": {name: score.record() for name, score in self.also.items()},
            "signs": [{name: number(value) for name, value in sign.items()} for sign in self.signs],
        }


@dataclass(frozen=True)
class Leaderboard:
    """The rows and what belongs under them.

    Attributes:
        sweep: name.
        metric: full name; of several, the primary one.
        direction: which way is better on it.
        alpha: level of the tie marks.
        rows: trials, best first, then soups and the baseline.
        finals: what the final step scored: {role, candidate, seed, scores}, scores by full name.
        verdicts: of the present final step, as in the ledger, with `p_holm` over all that the sweep has had.
        tests: how many those are.
        same: role of each judged soup that is one run alone -> the role of that run.
        earlier: final steps before the sweep was given another budget, oldest first.
        test_openings: how often `test` was opened.
        tuned_after: reports of trials that came in after `test` was first opened; 0 in a sweep that only tuned before it.
        gaps: of each judged candidate that something chose, what chose it beside test.
        finished: whether the sweep is over.
        metrics: all of them, the primary one first.
        front: with several metrics, the Pareto front of the trials that got furthest; None before there is one.
        compared: how many trials were compared with the first.
        tied: how many of them can't be told from it.
    """

    sweep: str
    metric: str
    direction: Direction
    alpha: float
    rows: tuple[Row, ...]
    finals: tuple[Mapping[str, Any], ...] = ()
    verdicts: tuple[Mapping[str, Any], ...] = ()
    tests: int = 0
    same: Mapping[str, str] = field(default_factory=dict)
    earlier: tuple[Round, ...] = ()
    test_openings: int = 0
    tuned_after: int = 0
    gaps: tuple[Gap, ...] = ()
    finished: bool = False
    metrics: tuple[Metric, ...] = ()
    front: Front | None = None
    compared: int = 0
    tied: int = 0

    @property
    def also(self) -> tuple[str, ...]:
        """What answers were scored by besides the metrics, in any row."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.also))

    @property
    def trainable_differs(self) -> bool:
        """Whether trials train different numbers of parameters."""
        return len({row.trainable for row in self.trials if row.trainable is not None}) > 1

    @property
    def others(self) -> tuple[Metric, ...]:
        """The metrics besides the primary one."""
        return self.metrics[1:]

    @property
    def trials(self) -> tuple[Row, ...]:
        """The trials' rows alone."""
        return tuple(row for row in self.rows if row.kind == "trial")

    def head(self, count: int | None) -> Leaderboard:
        """With the first `count` trials only; soups and the baseline stay."""
        if count is None:
            return self
        return replace(self, rows=self.trials[:count] + tuple(row for row in self.rows if row.kind != "trial"))


def to_json(board: Leaderboard) -> dict[str, Any]:
    """JSON-ready; unknown numbers are null."""
    return {
        "sweep": board.sweep,
        "metric": board.metric,
        "direction": board.direction,
        "metrics": [{"name": metric.name, "direction": metric.direction} for metric in board.metrics],
        "front": None if board.front is None else board.front.record(),
        "alpha": board.alpha,
        "finished": board.finished,
        "rows": [row.record() for row in board.rows],
        "finals": _finals(board.finals),
        "verdicts": [dict(verdict) for verdict in board.verdicts],
        "earlier": [
            {"trials": done.trials, "finals": _finals(done.finals), "verdicts": done.verdicts} for done in board.earlier
        ],
        "test_openings": board.test_openings,
        "tuned_after_test": board.tuned_after,
        "gaps": [gap.record() for gap in board.gaps],
    }


def _finals(finals: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**final, "scores": {key: score.record() for key, score in final["scores"].items()}} for final in finals]


def to_csv(board: Leaderboard) -> str:
    """One line a row, one column a parameter (`parameters.<path>`); unknown is empty."""
    axes = sorted({path for row in board.rows for path in row.parameters})
    costs = sorted({name for row in board.rows for name in row.cost})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["rank", "kind", "name", "seeds", "rung", "metric", "score", "se", "n", "unscored", "tie", "p"]
    head += ["front", "possible"] if board.others else []
    head += [f"{m.name}{end}" for m in board.others for end in ("", "_se", "_n", "_unscored")]
    head += [f"{name}{end}" for name in board.also for end in ("", "_se", "_n", "_unscored")]
    counted = any(row.trainable is not None for row in board.rows)
    head += [
        "resource",
        "seconds",
        *costs,
        *(["trainable"] if counted else []),
        "state",
        "reason",
        "test",
        "test_se",
        "test_n",
    ]
    tested = [f"test/{metric.bare}" for metric in board.others if metric.scored]
    head += [f"{name}{end}" for name in tested for end in ("", "_se", "_n")]
    writer.writerow([*head, *(f"parameters.{path}" for path in axes)])
    for row in board.rows:
        test = row.test or Measured()
        score = row.score
        cells: list[Any] = [row.rank, row.kind, row.name, " ".join(map(str, row.seeds)), row.rung, board.metric]
        cells += [score.value, score.se, score.n, score.unscored, row.tie, row.p]
        cells += [row.front, row.possible] if board.others else []
        for metric in board.others:
            other = row.scores.get(metric.name, Measured())
            cells += [other.value, other.se, other.n, other.unscored]
        for name in board.also:
            other = row.also.get(name, Measured())
            cells += [other.value, other.se, other.n, other.unscored]
        cells += [row.resource, row.seconds]
        cells += [row.cost.get(name) for name in costs]
        cells += [row.trainable] if counted else []
        cells += [row.state, row.reason, test.value, test.se, test.n]
        for name in tested:
            other = row.tests.get(name, Measured())
            cells += [other.value, other.se, other.n]
        cells += [row.parameters.get(path) for path in axes]
        writer.writerow([_cell(cell) for cell in cells])
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)
