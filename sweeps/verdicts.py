"""Verdicts: the paired difference of two candidates on the same items, with what training adds where it was repeated.

With one training a side the error is the data's alone: the clustered error of the items' differences. Where a side was
trained with several seeds its items are averaged over them first, and the variance between its S seeds over S is added;
the interval is Student's t with Satterthwaite's degrees of freedom. Pure functions of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from evaluators.base import Direction, ItemSet, Score, summarise
from evaluators.statistics import Paired, holm, paired
from sweeps.events import StoredItems
from sweeps.ledger import number

ALPHA = 0.05
"""1 - coverage of the intervals."""

Items = NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """A candidate's measurements of one metric, one a training seed.

    Attributes:
        name: its role.
        scores: the scores.
        stored: their items; None where a score has none.
        seeds: the seeds it was trained with for this; empty for what the sweep itself made.
    """

    name: str
    scores: tuple[Score, ...]
    stored: tuple[StoredItems | None, ...]
    seeds: tuple[int, ...] = ()

    @property
    def item_set(self) -> ItemSet | None:
        """Of its first measurement."""
        return None if not self.stored or self.stored[0] is None else self.stored[0].item_set


@dataclass(frozen=True)
class Comparison:
    """Left minus right.

    Attributes:
        result: difference, error, interval, p.
        covers: what the interval covers: `data`, or `data and training`.
        note: what a reader must know besides; empty mostly.
    """

    result: Paired
    covers: str
    note: str = ""


def compare(left: Side, right: Side, alpha: float = ALPHA) -> Comparison:
    """Compare two sides on the items that both scored; without common items, by their errors alone."""
    item_set, note = common_items(left, right)
    if item_set is None:
        return Comparison(_unpaired(left, right), "data", note)
    a, b = _stack(left), _stack(right)
    base = paired(a.mean(axis=0), b.mean(axis=0), item_set, alpha=alpha)
    trained = [values for values in (a, b) if len(values) > 1]
    if not trained or not math.isfinite(base.se):
        return Comparison(base, "data", note)
    scored = ~np.isnan(a.mean(axis=0) - b.mean(axis=0))
    return Comparison(_with_training(base, trained, scored, item_set), "data and training", note)


def verdict(left: Side, right: Side, metric: str, direction: Direction) -> dict[str, Any]:
    """The body of a `verdict` event, without Holm's p.

    `better` is `left` or `right` only where the interval excludes 0.
    """
    comparison = compare(left, right)
    result = comparison.result
    return {
        "left": left.name,
        "right": right.name,
        "metric": metric,
        "difference": number(result.difference),
        "se": number(result.se),
        "low": number(result.low),
        "high": number(result.high),
        "p": number(result.p),
        "n": result.n,
        "clusters": result.clusters,
        "dropped": result.dropped,
        "better": side(result, direction),
        "covers": comparison.covers,
        "seeds": {"left": list(left.seeds), "right": list(right.seeds)},
        "note": comparison.note,
    }


def family(earlier: Sequence[Mapping[str, Any]], present: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The verdicts that Holm's adjustment counts: each test once, also where a later final step came to it again.

    Args:
        earlier: of final steps under earlier budgets.
        present: of the present one; they come last, all of them.
    """
    seen = {_same_test(body) for body in present}
    counted = []
    for body in earlier:
        if _same_test(body) not in seen:
            seen.add(_same_test(body))
            counted.append(body)
    return [*counted, *present]


def _same_test(body: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(body.get(key) for key in ("left", "right", "metric", "difference", "se", "p", "n"))


def with_holm(earlier: Sequence[Mapping[str, Any]], bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bodies with `p_holm`: Holm's adjustment over all verdicts of the sweep, the earlier ones included."""
    raw = [math.nan if body.get("p") is None else float(body["p"]) for body in [*earlier, *bodies]]
    adjusted = holm(raw)[len(earlier) :]
    return [{**body, "p_holm": number(p)} for body, p in zip(bodies, adjusted, strict=True)]


def side(result: Paired, direction: Direction) -> str:
    """`left` or `right` where the interval excludes 0 (or one side is infinite), else `neither`."""
    if math.isnan(result.difference):
        return "neither"
    if not (math.isinf(result.difference) or result.low > 0 or result.high < 0):
        return "neither"
    return "left" if (result.difference > 0) == (direction == "maximize") else "right"


@dataclass(frozen=True)
class Part:
    """A part of a variance, with its degrees of freedom."""

    variance: float
    freedom: int


def limits(value: float, parts: Sequence[Part], alpha: float = ALPHA) -> tuple[float, float, float]:
    """(se, low, high): Student's t with Satterthwaite's degrees of freedom; NaN where a part is unknown."""
    whole = sum(part.variance for part in parts)
    if not math.isfinite(whole):
        return math.nan, math.nan, math.nan
    se = math.sqrt(whole)
    half = float(special.stdtrit(freedom(parts), 1 - alpha / 2)) * se if se > 0 else 0.0
    return se, value - half, value + half


def freedom(parts: Sequence[Part]) -> float:
    """Satterthwaite's degrees of freedom of a sum of variances; at least one must be above 0."""
    return sum(p.variance for p in parts) ** 2 / sum(p.variance**2 / max(p.freedom, 1) for p in parts if p.variance > 0)


def common_items(left: Side, right: Side) -> tuple[ItemSet | None, str]:
    """The items of both sides; None, with the reason, where they can't be paired."""
    sets = [stored.item_set for stored in (*left.stored, *right.stored) if stored is not None]
    if not sets or len(sets) < len(left.stored) + len(right.stored):
        return None, "no item scores: compared by the two errors, unpaired"
    if any(other.ids != sets[0].ids for other in sets):
        return None, "scored on different rows: compared by the two errors, unpaired"
    if all(other == sets[0] for other in sets):
        return sets[0], ""
    weights = np.mean([np.asarray(other.weights or [1.0] * len(other.ids)) for other in sets], axis=0)
    mean = ItemSet(sets[0].ids, tuple(float(weight) for weight in weights), sets[0].groups)
    return mean, "the sides weigh the rows differently (other tokens): the mean weights are used"


def _stack(one: Side) -> Items:
    """(seeds, n) item scores."""
    return np.stack([np.asarray(stored.values, dtype=np.float64) for stored in one.stored if stored is not None])


def _with_training(base: Paired, trained: Sequence[Items], scored: NDArray[np.bool_], item_set: ItemSet) -> Paired:
    parts = [Part(base.se**2, base.clusters - 1)]
    for values in trained:
        means = [summarise("m", "test", "minimize", item_set, np.where(scored, row, np.nan)).value for row in values]
        parts.append(Part(float(np.var(means, ddof=1)) / len(means), len(means) - 1))
    if sum(part.variance for part in parts) == 0:
        return base
    se, low, high = limits(base.difference, parts, base.alpha)
    p = 2 * float(special.stdtr(freedom(parts), -abs(base.difference) / se))
    return replace(base, se=se, low=low, high=high, p=p)


def _unpaired(left: Side, right: Side) -> Paired:
    """By the two standard errors, each side's scores averaged over its seeds; normal limits."""
    means, variances = [], []
    for one in (left, right):
        values = np.array([score.value for score in one.scores])
        errors = np.array([score.se for score in one.scores])
        between = float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0
        means.append(float(values.mean()) if len(values) else math.nan)
        variances.append(float((errors**2).mean()) + between if len(values) else math.nan)
    n = min((score.n for score in (*left.scores, *right.scores)), default=0)
    difference, se = means[0] - means[1], math.sqrt(sum(variances))
    if not (math.isfinite(difference) and math.isfinite(se)) or se == 0:
        return Paired(difference, math.nan, math.nan, math.nan, math.nan, n, n, 0, ALPHA)
    half = float(special.ndtri(1 - ALPHA / 2)) * se
    p = 2 * float(special.ndtr(-abs(difference) / se))
    return Paired(difference, se, difference - half, difference + half, p, n, n, 0, ALPHA)
