"""Paired comparison of the best trials of one sweep, or of several that were scored on the same items.

Two families of tests, each with its own Holm adjustment: every contestant against the best one gives the tied-best set,
and every pair against each other gives the pairs' words. Trials at the end of their budget are compared where any are there,
else those at the highest rung; a trial with several seeds is the mean of its seeds, item by item.

With several metrics there is one comparison a metric, of the same trials, and the Pareto front of their values. Telemetry has
no items: its values stand side by side, and no pair is judged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluators.base import Direction
from evaluators.statistics import Paired, Side, holm, items_to_tell, paired
from sweeps.board import ALPHA, Measured, Row
from sweeps.board_text import aligned, score_text
from sweeps.effects import Effect, Trial, effects, lines
from sweeps.front import numbered
from sweeps.leaderboard import ItemReader, Plan, leaderboard, trial_items
from sweeps.ledger import StoredItems, number
from sweeps.metrics import Metric
from sweeps.state import SweepState


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
    """

    name: str
    sweep: str
    rung: int
    score: Measured
    tied: bool = True


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
    """One comparison a metric, the primary one first, and the front of the trials compared (empty with one metric)."""

    blocks: tuple[Comparison, ...]
    front: tuple[str, ...] = ()
    effects: tuple[tuple[str, str, tuple[Effect, ...]], ...] = ()
    """(sweep, metric, effects of its axes), for every metric with items."""


def compare_all(sources: Sequence[Source], *, top: int = 8, alpha: float = ALPHA) -> Comparisons:
    """Compare the best `top` trials of each sweep on every metric.

    Raises:
        CompareError: when the sweeps have different metrics, or no trial has item scores of a metric that has items.
    """
    metrics = {source.plan.metrics for source in sources}
    if len(metrics) > 1:
        said = ", ".join(f"{source.name} has {_names(source.plan.metrics)}" for source in sources)
        raise CompareError(f"sweeps with different metrics can't be compared: {said}")
    [wanted] = metrics
    rows = [(source, row) for source in sources for row in _best_rows(source, top)]
    axes = tuple(
        (source.name, metric.name, found)
        for source in sources
        for metric in wanted
        if metric.scored and (found := _effects(source, metric, alpha))
    )
    if len(wanted) == 1:
        return Comparisons((_compare(sources, rows, wanted[0], alpha),), effects=axes)
    blocks = tuple(
        _compare(sources, rows, metric, alpha) if metric.scored else _side_by_side(sources, rows, metric, alpha)
        for metric in wanted
    )
    fronts = numbered([row for _, row in rows], wanted)
    on_front = [_label(sources, *entry) for entry, front in zip(rows, fronts, strict=True) if front == 1]
    return Comparisons(blocks, tuple(on_front), axes)


def _effects(source: Source, metric: Metric, alpha: float) -> tuple[Effect, ...]:
    """What the sweep's axes are worth, over all trials that have item scores."""
    trials = []
    for row in leaderboard(source.state, source.items, source.plan).trials:
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
    found: list[tuple[Contestant, StoredItems]] = []
    left_out: list[tuple[str, str]] = []
    for source, row in rows:
        name = _label(sources, source, row)
        stored = trial_items(row, source.items, metric.name)
        if stored is None:
            left_out.append((name, "its item scores are not stored"))
        else:
            found.append((Contestant(name, source.name, row.rung or 0, row.scores[metric.name]), stored))
    if not found:
        raise CompareError(f"nothing to compare: no trial has item scores of {metric.name} at a rung yet")
    found.sort(key=lambda entry: metric.sign * entry[0].score.value)
    same = [entry for entry in found if entry[1].item_set == found[0][1].item_set]
    why = f"it was scored on other items than {found[0][0].name}"
    left_out += [(c.name, why) for c, stored in found if stored.item_set != found[0][1].item_set]
    contestants, pairs = _judge(same, metric.direction, alpha)
    return Comparison(metric.name, metric.direction, alpha, contestants, pairs, tuple(left_out))


def _side_by_side(
    sources: Sequence[Source], rows: Sequence[tuple[Source, Row]], metric: Metric, alpha: float
) -> Comparison:
    """Values without an error, best first; nothing is judged."""
    found = [
        Contestant(_label(sources, source, row), source.name, row.rung or 0, row.scores[metric.name], tied=False)
        for source, row in rows
    ]
    found.sort(key=lambda contestant: metric.sign * contestant.score.value)
    return Comparison(metric.name, metric.direction, alpha, tuple(found), (), tested=False)


def _label(sources: Sequence[Source], source: Source, row: Row) -> str:
    return f"{source.name}:{row.name}" if len(sources) > 1 else row.name


def _names(metrics: Sequence[Metric]) -> str:
    return " and ".join(metric.name for metric in metrics)


def all_to_json(comparisons: Comparisons) -> dict[str, Any]:
    """JSON-ready; with one metric its comparison alone."""
    axes = [
        {"sweep": sweep, "metric": metric, "effects": [effect.record() for effect in found]}
        for sweep, metric, found in comparisons.effects
    ]
    if len(comparisons.blocks) == 1:
        return {**to_json(comparisons.blocks[0]), "axes": axes}
    return {"axes": axes, "metrics": [to_json(block) for block in comparisons.blocks], "front": list(comparisons.front)}


def all_to_text(comparisons: Comparisons, width: int | None = None) -> str:
    """A block a metric, and the front."""
    blocks = [to_text(block, width) for block in comparisons.blocks]
    if len(blocks) > 1:
        names = ", ".join(comparisons.front)
        blocks.append(f"front by the values, none worse than another on every metric: {names}")
    for sweep, metric, found in comparisons.effects:
        head = ["axis", "change", f"{metric} (95 %)", "p (Holm)", "", "n", "trials"]
        title = (
            f"what each axis of {sweep} is worth on {metric}, averaged over the rest, on the items that all answered"
        )
        blocks.append("\n".join([title, *aligned(head, lines(found, metric), width)]))
    return "\n\n".join(blocks)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """JSON-ready; unknown numbers are null."""
    return {
        "metric": comparison.metric,
        "direction": comparison.direction,
        "alpha": comparison.alpha,
        "tested": comparison.tested,
        "contestants": [{**c.__dict__, "score": c.score.record()} for c in comparison.contestants],
        "tied_best": list(comparison.tied_best),
        "pairs": [pair.record() for pair in comparison.pairs],
        "left_out": [{"name": name, "reason": reason} for name, reason in comparison.left_out],
    }


def to_text(comparison: Comparison, width: int | None = None) -> str:
    """Every contestant against the best, the tied-best set, and who was left out."""
    if not comparison.tested:
        return _values(comparison, width)
    best, *others = comparison.contestants
    better = "lower" if comparison.direction == "minimize" else "higher"
    against = {pair.right: pair for pair in comparison.pairs if pair.left == best.name}
    rows = [["=", best.name, str(best.rung), score_text(best.score), "best", "", ""]]
    for other in others:
        pair = against[other.name]
        p = "" if math.isnan(pair.against_best or 0.0) else f"{pair.against_best:.3g}"
        row = [
            "=" if other.tied else " ",
            other.name,
            str(other.rung),
            score_text(other.score),
            _behind(pair.result),
            p,
            _needed(pair.result) if other.tied else "",
        ]
        rows.append(row)
    percent = f"{100 * (1 - comparison.alpha):g} %"
    lines = [f"{comparison.metric} ({better} is better), each minus the best, paired on the same items"]
    lines += aligned(
        ["=", "trial", "rung", comparison.metric, f"difference ({percent})", "p (Holm)", "to tell"], rows, width
    )
    if others:
        tied = len(comparison.tied_best)
        told = "the best stands alone" if tied == 1 else f"{tied} can't be told from the best (marked =)"
        if tied > 1:
            told += "; to tell: items that would show the present difference, if it is real, 4 times in 5"
        apart = sum(pair.better != "neither" for pair in comparison.pairs)
        lines.append(f"{told}; of all {len(comparison.pairs)} pairs {apart} can be told apart")
    lines += [f"left out: {name}: {reason}" for name, reason in comparison.left_out]
    return "\n".join(lines)


def _values(comparison: Comparison, width: int | None) -> str:
    better = "lower" if comparison.direction == "minimize" else "higher"
    best = comparison.contestants[0].score.value
    rows = [
        [c.name, str(c.rung), score_text(c.score), "best" if c.score.value == best else f"{c.score.value - best:+.3g}"]
        for c in comparison.contestants
    ]
    lines = [f"{comparison.metric} ({better} is better), telemetry without an error: nothing is judged"]
    return "\n".join(lines + aligned(["trial", "rung", comparison.metric, "difference"], rows, width))


def _best_rows(source: Source, top: int) -> list[Row]:
    """The first `top` ranked trials at the rung of the first, or at their own end as it is."""
    board = leaderboard(source.state, source.items, source.plan)
    ranked = [row for row in board.trials if row.rank is not None and math.isfinite(row.score.value)]
    if not ranked:
        return []
    first = ranked[0]
    return [row for row in ranked if (row.whole and first.whole) or row.rung == first.rung][:top]


def _judge(
    entries: Sequence[tuple[Contestant, StoredItems]], direction: Direction, alpha: float
) -> tuple[tuple[Contestant, ...], tuple[Pair, ...]]:
    couples = list(itertools.combinations(entries, 2))
    results = [paired(a.values, b.values, a.item_set, alpha=alpha) for (_, a), (_, b) in couples]
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


def _needed(result: Paired) -> str:
    """Items in all that would tell a pair apart."""
    wanted = items_to_tell(result)
    if math.isnan(wanted):
        return ""
    return f"{math.ceil(wanted):,}" if wanted < 1e7 else "never"


def _behind(result: Paired) -> str:
    """The other minus the best, with half of its interval."""
    if math.isnan(result.difference):
        return ""
    half = (result.high - result.low) / 2
    return f"{-result.difference:+.3g}" + ("" if math.isnan(half) else f" ± {half:.2g}")
