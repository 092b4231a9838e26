"""Paired comparison of the best trials of one sweep, or of several that were scored on the same items.

Two families of tests, each with its own Holm adjustment: every contestant against the best one gives the tied-best set,
and every pair against each other gives the pairs' words. Trials at the end of their budget are compared where any are there,
else those at the highest rung; a trial with several seeds is the mean of its seeds, item by item, and the variance between
them is part of every error (`sweeps.verdicts`).

With several metrics there is one comparison a metric, of the same trials, and the Pareto front of all that stand as far
(`sweeps.front`). Telemetry has no items: its values stand side by side, and no pair is judged. Any metric that the trials
report can be looked at instead of the sweep's own; the trials are then ranked by it, though it chose none of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluators.base import Direction
from evaluators.statistics import Paired, Side, holm, items_to_tell
from sweeps.board import ALPHA, Measured, Row
from sweeps.costs import CostAxis, cost_axes
from sweeps.effects import Effect, Trial, effects
from sweeps.events import StoredItems
from sweeps.front import Front, find_front, numbered
from sweeps.leaderboard import ItemReader, Plan, leaderboard, trial_items, trial_side
from sweeps.ledger import number
from sweeps.metrics import Metric
from sweeps.state import SweepState
from sweeps.verdicts import Side as Measurements
from sweeps.verdicts import compare as compare_sides


class CompareError(ValueError):
    """Nothing can be compared; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """One sweep to take contestants from: its name, its fold, its ledger and its loaded file."""

    name: str
    state: SweepState
    items: ItemReader
    plan: Plan


@dataclass(frozen=True)
class Contestant:
    """A trial that takes part.

    Attributes:
        name: trial id; `<sweep>:<trial>` where several sweeps take part.
        sweep: whose.
        rung: where it is compared.
        score: the metric there.
        tied: whether it can't be told from the best; true for the best itself.
        test: the metric on `test`, which chose nothing; None for a trial that the final step did not score there.
    """

    name: str
    sweep: str
    rung: int
    score: Measured
    tied: bool = True
    test: Measured | None = None


@dataclass(frozen=True)
class Pair:
    """Left minus right; left stands higher.

    Attributes:
        left: contestant's name.
        right: contestant's name.
        result: the paired comparison.
        p: adjusted by Holm over all pairs.
        better: by the adjusted p.
        against_best: p adjusted by Holm over the pairs with the best alone; None for other pairs.
    """

    left: str
    right: str
    result: Paired
    p: float
    better: Side
    against_best: float | None = None

    def record(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes null."""
        shown = {name: number(getattr(self.result, name)) for name in ("difference", "se", "low", "high")}
        return {
            "left": self.left,
            "right": self.right,
            **shown,
            "n": self.result.n,
            "clusters": self.result.clusters,
            "dropped": self.result.dropped,
            "p": number(self.result.p),
            "p_holm": number(self.p),
            "p_against_best": None if self.against_best is None else number(self.against_best),
            "better": self.better,
            "items_to_tell": number(items_to_tell(self.result)),
            "more_items_to_tell": number(max(0.0, items_to_tell(self.result) - self.result.n)),
        }


@dataclass(frozen=True)
class Comparison:
    """Contestants best first, every pair of them, and who could not take part and why ((name, reason), ...).

    `tested` is false for telemetry, which has no pairs.
    """

    metric: str
    direction: Direction
    alpha: float
    contestants: tuple[Contestant, ...]
    pairs: tuple[Pair, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    tested: bool = True

    @property
    def tied_best(self) -> tuple[str, ...]:
        """Names of those that can't be told from the best, itself included."""
        return tuple(contestant.name for contestant in self.contestants if contestant.tied)


@dataclass(frozen=True)
class Comparisons:
    """One comparison a metric, the primary one first, and with several the front of all trials that stand as far."""

    blocks: tuple[Comparison, ...]
    front: Front | None = None
    fronted: tuple[Row, ...] = ()
    """Who is on the front, or possibly so."""
    effects: tuple[tuple[str, str, tuple[Effect, ...]], ...] = ()
    """(sweep, metric, effects of its axes), for every metric with items."""
    costs: tuple[tuple[str, str, tuple[CostAxis, ...]], ...] = ()
    """(sweep, metric, what its axes cost), for every `cost/` metric."""


@dataclass(frozen=True)
class _Chosen:
    """A sweep's plan with other metrics than its own."""

    metrics: tuple[Metric, ...]
    plan: Plan

    def milestones_of(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """As the plan has them."""
        return self.plan.milestones_of(config)


def compare_all(
    sources: Sequence[Source],
    *,
    metrics: Sequence[Metric] = (),
    only: Sequence[str] = (),
    top: int = 8,
    alpha: float = ALPHA,
) -> Comparisons:
    """Compare the best `top` trials of each sweep on every metric.

    Args:
        sources: the sweeps.
        metrics: what to compare by; the sweeps' own where it is empty.
        only: trials to compare; all where it is empty.
        top: how many of each sweep, the best first.
        alpha: level of all tests and 1 - coverage of all intervals.

    Raises:
        CompareError: when the sweeps have different metrics, or no trial has item scores of a metric that has items.
    """
    sources, wanted = with_metrics(sources, metrics)
    ranked = [(source, leaderboard(source.state, source.items, source.plan).trials) for source in sources]
    furthest = [(source, row) for source, trials in ranked for row in _furthest(trials, only)]
    rows = [entry for source in sources for entry in [e for e in furthest if e[0] is source][:top]]
    axes = tuple(
        (source.name, metric.name, found)
        for source, trials in ranked
        for metric in wanted
        if metric.scored and (found := _effects(source, trials, metric, alpha))
    )
    blocks = tuple(
        _compare(sources, rows, metric, alpha) if metric.scored else _side_by_side(sources, rows, metric, alpha)
        for metric in wanted
    )
    costs = tuple(
        (source.name, metric.name, priced)
        for source in sources
        for metric in wanted
        if metric.name.startswith("cost/")
        and (priced := cost_axes(source.state, source.plan, metric.name, alpha=alpha))
    )
    if len(wanted) == 1:
        return Comparisons(blocks, effects=axes, costs=costs)
    front, fronted = _front(sources, furthest, wanted, alpha)
    return Comparisons(blocks, front, fronted, axes, costs)


def with_metrics(sources: Sequence[Source], metrics: Sequence[Metric]) -> tuple[Sequence[Source], tuple[Metric, ...]]:
    """The sweeps with the metrics that are asked for, or their own, and these.

    Raises:
        CompareError: when no trial reports one, or the sweeps have different metrics of their own.
    """
    if metrics:
        _refuse_unreported(sources, metrics)
        sources = [replace(source, plan=_Chosen(tuple(metrics), source.plan)) for source in sources]
    asked = {source.plan.metrics for source in sources}
    if len(asked) > 1:
        said = ", ".join(f"{source.name} has {_names(source.plan.metrics)}" for source in sources)
        raise CompareError(
            f"sweeps with different metrics can't be compared: {said}; name one that both report: --metric"
        )
    [wanted] = asked
    return sources, wanted


def _refuse_unreported(sources: Sequence[Source], metrics: Sequence[Metric]) -> None:
    """Check that some trial reports each metric.

    Raises:
        CompareError: naming what is reported.
    """
    reports = [report for source in sources for run in source.state.runs.values() for report in run.reports.values()]
    known = {name for report in reports for name in (*report.scores, *report.telemetry)}
    for metric in metrics:
        if metric.name not in known:
            said = ", ".join(sorted(known)) or "nothing yet"
            raise CompareError(f"no trial of {_sweeps(sources)} reports {metric.name}; reported are: {said}")


def _front(
    sources: Sequence[Source], entries: Sequence[tuple[Source, Row]], metrics: Sequence[Metric], alpha: float
) -> tuple[Front | None, tuple[Row, ...]]:
    """The front of all trials that stand as far, and the rows that are on it, or possibly so."""
    named = {_label(sources, *entry): entry for entry in entries}
    rows = [replace(row, name=name) for name, (_, row) in named.items()]
    rows = [replace(row, front=front) for row, front in zip(rows, numbered(rows, metrics), strict=True)]
    known: dict[tuple[str, str], StoredItems | None] = {}

    def read(row: Row, metric: str) -> StoredItems | None:
        if (row.name, metric) not in known:
            source, own = named[row.name]
            known[row.name, metric] = trial_items(own, source.items, metric)
        return known[row.name, metric]

    front = find_front(rows, metrics, read, alpha)
    there = () if front is None else (*front.members, *front.possible)
    return front, tuple(row for row in rows if row.name in there)


def _effects(source: Source, rows: Sequence[Row], metric: Metric, alpha: float) -> tuple[Effect, ...]:
    """What the sweep's axes are worth, over all trials that have item scores."""
    trials = []
    for row in rows:
        stored = trial_items(row, source.items, metric.name)
        if stored is not None:
            trials.append(Trial(row.parameters, stored))
    return tuple(effects(trials, metric.direction, alpha=alpha)) if len(trials) > 1 else ()


def compare(sources: Sequence[Source], *, top: int = 8, alpha: float = ALPHA) -> Comparison:
    """Compare the best `top` trials of each sweep on the primary metric.

    Items decide what is comparable: contestants whose items (ids, weights and groups) differ from the best one's are left
    out and named.

    Raises:
        CompareError: as `compare_all`.
    """
    return compare_all(sources, top=top, alpha=alpha).blocks[0]


def _compare(sources: Sequence[Source], rows: Sequence[tuple[Source, Row]], metric: Metric, alpha: float) -> Comparison:
    found: list[tuple[Contestant, Measurements]] = []
    left_out: list[tuple[str, str]] = []
    for source, row in rows:
        name = _label(sources, source, row)
        side = trial_side(row, source.items, metric.name)
        if side is None:
            left_out.append((name, "its item scores are not stored"))
        else:
            found.append((_contestant(name, source, row, metric), side))
    if not found:
        raise CompareError(f"nothing to compare: no trial has item scores of {metric.name} at a rung yet")
    found.sort(key=lambda entry: metric.sign * entry[0].score.value)
    same = [entry for entry in found if entry[1].item_set == found[0][1].item_set]
    why = f"it was scored on other items than {found[0][0].name}"
    left_out += [(c.name, why) for c, side in found if side.item_set != found[0][1].item_set]
    contestants, pairs = _judge(same, metric.direction, alpha)
    return Comparison(metric.name, metric.direction, alpha, contestants, pairs, tuple(left_out))


def _side_by_side(
    sources: Sequence[Source], rows: Sequence[tuple[Source, Row]], metric: Metric, alpha: float
) -> Comparison:
    """Values without an error, best first; nothing is judged."""
    found = [
        replace(_contestant(_label(sources, source, row), source, row, metric), tied=False) for source, row in rows
    ]
    if not found:
        raise CompareError(f"nothing to compare: no trial has {metric.name} at a rung yet")
    found.sort(key=lambda contestant: metric.sign * contestant.score.value)
    return Comparison(metric.name, metric.direction, alpha, tuple(found), (), tested=False)


def _contestant(name: str, source: Source, row: Row, metric: Metric) -> Contestant:
    test = row.tests.get(f"test/{metric.bare}")
    return Contestant(name, source.name, row.rung or 0, row.scores[metric.name], test=test)


def _label(sources: Sequence[Source], source: Source, row: Row) -> str:
    return f"{source.name}:{row.name}" if len(sources) > 1 else row.name


def _sweeps(sources: Sequence[Source]) -> str:
    return " and ".join(source.name for source in sources)


def _names(metrics: Sequence[Metric]) -> str:
    return " and ".join(metric.name for metric in metrics)


def _furthest(trials: Sequence[Row], only: Sequence[str]) -> list[Row]:
    """The ranked trials at the rung of the first, or at their own end as it is; those named alone, where any are."""
    ranked = [row for row in trials if row.rank is not None and math.isfinite(row.score.value)]
    ranked = [row for row in ranked if not only or row.name in only]
    if not ranked:
        return []
    first = ranked[0]
    return [row for row in ranked if (row.whole and first.whole) or row.rung == first.rung]


def _judge(
    entries: Sequence[tuple[Contestant, Measurements]], direction: Direction, alpha: float
) -> tuple[tuple[Contestant, ...], tuple[Pair, ...]]:
    couples = list(itertools.combinations(entries, 2))
    results = [compare_sides(a, b, alpha).result for (_, a), (_, b) in couples]
    with_best = len(entries) - 1
    against = holm([result.p for result in results[:with_best]])
    pairs = [
        Pair(left.name, right.name, result, p, result.better(direction, p), against[i] if i < with_best else None)
        for i, (((left, _), (right, _)), result, p) in enumerate(
            zip(couples, results, holm([result.p for result in results]), strict=True)
        )
    ]
    tied = {
        pair.right: pair.result.better(direction, pair.against_best) == "neither"
        for pair in pairs
        if pair.against_best is not None
    }
    return tuple(replace(c, tied=tied.get(c.name, True)) for c, _ in entries), tuple(pairs)
