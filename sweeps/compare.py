"""Paired comparison of the best trials of one sweep, or of several that were scored on the same items.

Two families of tests, each with its own Holm adjustment: every contestant against the best one gives the tied-best set,
and every pair against each other gives the pairs' words. Trials at the end of their budget are compared where any are there,
else those at the highest rung; a trial with several seeds is the mean of its seeds, item by item.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluators.base import Direction
from evaluators.statistics import Paired, Side, holm, paired
from sweeps.board import ALPHA, Measured, Row, aligned, score_text
from sweeps.leaderboard import ItemReader, Plan, leaderboard, trial_items
from sweeps.ledger import StoredItems, number
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
        }


@dataclass(frozen=True)
class Comparison:
    """Contestants best first, every pair of them, and who could not take part and why ((name, reason), ...)."""

    metric: str
    direction: Direction
    alpha: float
    contestants: tuple[Contestant, ...]
    pairs: tuple[Pair, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def tied_best(self) -> tuple[str, ...]:
        """Names of those that can't be told from the best, itself included."""
        return tuple(contestant.name for contestant in self.contestants if contestant.tied)


def compare(sources: Sequence[Source], *, top: int = 8, alpha: float = ALPHA) -> Comparison:
    """Compare the best `top` trials of each sweep.

    Items decide what is comparable: contestants whose items (ids, weights and groups) differ from the best one's are left
    out and named.

    Raises:
        CompareError: when the sweeps have different metrics, or no trial has item scores.
    """
    metrics = {(source.plan.metric, source.plan.direction) for source in sources}
    if len(metrics) > 1:
        said = ", ".join(f"{source.name} has {source.plan.metric}" for source in sources)
        raise CompareError(f"sweeps with different metrics can't be compared: {said}")
    [(metric, direction)] = metrics
    found: list[tuple[Contestant, StoredItems]] = []
    left_out: list[tuple[str, str]] = []
    for source in sources:
        prefix = f"{source.name}:" if len(sources) > 1 else ""
        for row in _best_rows(source, top):
            stored = trial_items(row, source.items, metric)
            if stored is None:
                left_out.append((prefix + row.name, "its item scores are not stored"))
            else:
                found.append((Contestant(prefix + row.name, source.name, row.rung or 0, row.score), stored))
    if not found:
        raise CompareError(f"nothing to compare: no trial has item scores of {metric} at a rung yet")
    sign = 1.0 if direction == "minimize" else -1.0
    found.sort(key=lambda entry: sign * entry[0].score.value)
    same = [entry for entry in found if entry[1].item_set == found[0][1].item_set]
    why = f"it was scored on other items than {found[0][0].name}"
    left_out += [(c.name, why) for c, stored in found if stored.item_set != found[0][1].item_set]
    contestants, pairs = _judge(same, direction, alpha)
    return Comparison(metric, direction, alpha, contestants, pairs, tuple(left_out))


def to_json(comparison: Comparison) -> dict[str, Any]:
    """JSON-ready; unknown numbers are null."""
    return {
        "metric": comparison.metric,
        "direction": comparison.direction,
        "alpha": comparison.alpha,
        "contestants": [{**c.__dict__, "score": c.score.record()} for c in comparison.contestants],
        "tied_best": list(comparison.tied_best),
        "pairs": [pair.record() for pair in comparison.pairs],
        "left_out": [{"name": name, "reason": reason} for name, reason in comparison.left_out],
    }


def to_text(comparison: Comparison, width: int | None = None) -> str:
    """Every contestant against the best, the tied-best set, and who was left out."""
    best, *others = comparison.contestants
    better = "lower" if comparison.direction == "minimize" else "higher"
    against = {pair.right: pair for pair in comparison.pairs if pair.left == best.name}
    rows = [["=", best.name, str(best.rung), score_text(best.score), "best", ""]]
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
        ]
        rows.append(row)
    percent = f"{100 * (1 - comparison.alpha):g} %"
    lines = [f"{comparison.metric} ({better} is better), each minus the best, paired on the same items"]
    lines += aligned(["=", "trial", "rung", comparison.metric, f"difference ({percent})", "p (Holm)"], rows, width)
    if others:
        tied = len(comparison.tied_best)
        told = "the best stands alone" if tied == 1 else f"{tied} can't be told from the best (marked =)"
        apart = sum(pair.better != "neither" for pair in comparison.pairs)
        lines.append(f"{told}; of all {len(comparison.pairs)} pairs {apart} can be told apart")
    lines += [f"left out: {name}: {reason}" for name, reason in comparison.left_out]
    return "\n".join(lines)


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


def _behind(result: Paired) -> str:
    """The other minus the best, with half of its interval."""
    if math.isnan(result.difference):
        return ""
    half = (result.high - result.low) / 2
    return f"{-result.difference:+.3g}" + ("" if math.isnan(half) else f" ± {half:.2g}")
