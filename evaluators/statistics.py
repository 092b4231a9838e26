"""Errors, intervals and paired comparisons on stored item scores.

Everything is clustered: items of one group (a prompt, a `group_by` value) are one draw from the world, so groups are what
is resampled, sign-flipped and counted (Miller 2024, arXiv 2411.00640). Estimates are the weighted means of
`evaluators.base.summarise`. Pure functions of arrays; randomness comes from a seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from evaluators.base import Direction, ItemSet

EXACT_CLUSTERS = 12
RESAMPLES = 10_000
_BYTES_AT_ONCE = 1_000_000

Floats = NDArray[np.float64]
Side = Literal["left", "right", "neither"]


@dataclass(frozen=True)
class Paired:
    """Left minus right on the items that both scored.

    Attributes:
        difference: weighted mean of the items' differences, in the unit of the items.
        se: its standard error, clustered; NaN with fewer than two clusters.
        low: lower end of the interval (Student's t with clusters - 1 degrees of freedom).
        high: upper end of the interval.
        p: two-sided, by sign flips of the clusters' sums; never 0; NaN without a pair or with an infinite item.
        n: items compared.
        clusters: groups they come from.
        dropped: items that one side or both left unscored.
        alpha: 1 - coverage of the interval.
    """

    difference: float
    se: float
    low: float
    high: float
    p: float
    n: int
    clusters: int
    dropped: int
    alpha: float

    def better(self, direction: Direction, p: float | None = None) -> Side:
        """Which side is better at level `alpha`, by this p or an adjusted one; `neither` when that can't be told.

        An infinite difference (one side diverged on an item) is told apart without a test.
        """
        p = self.p if p is None else p
        if math.isnan(self.difference) or not (p <= self.alpha or math.isinf(self.difference)):
            return "neither"
        return "left" if (self.difference > 0) == (direction == "maximize") else "right"


def paired(left: ArrayLike, right: ArrayLike, item_set: ItemSet, *, alpha: float = 0.05, seed: int = 0) -> Paired:
    """Compare two vectors of item scores over the same items.

    With d_i the items' differences and w_i their weights, the difference is m = Σwd / Σw. Its error is the clustered
    one of `summarise`, its interval m ± t · se. The p-value flips the signs of the clusters' sums Σ_{i in g} w_i d_i: all
    2^G ways up to 12 clusters that differ, else 10,000 seeded ones counted with the observed one, as (1 + hits) / 10,001.

    Args:
        left: (n,) item scores, NaN = unscored.
        right: (n,) item scores of the other side, in the same order.
        item_set: the items of both.
        alpha: 1 - coverage of the interval.
        seed: of the sign flips.

    Raises:
        ValueError: if the lengths differ.
    """
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if not a.shape == b.shape == (len(item_set.ids),):
        raise ValueError(f"both sides must be one number an item, but got {a.shape}, {b.shape} for {len(item_set.ids)}")
    with np.errstate(invalid="ignore"):
        sums, weights, n = _clusters(a - b, item_set)
    dropped = len(a) - n
    if not n:
        return Paired(math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0, dropped, alpha)
    total = weights.sum()
    difference = float(sums.sum() / total)
    if not math.isfinite(difference):
        return Paired(difference, math.nan, math.nan, math.nan, math.nan, n, len(sums), dropped, alpha)
    se = _clustered_se(sums, weights)
    low, high = interval(difference, se, len(sums), alpha=alpha)
    return Paired(difference, se, low, high, sign_flip(sums, seed=seed), n, len(sums), dropped, alpha)


def contrast(
    sides: Sequence[tuple[float, ArrayLike]], item_set: ItemSet, *, alpha: float = 0.05, seed: int = 0
) -> Paired:
    """A sum of several sides' scores with given factors, on the items that all of them scored, as `paired` has it for two.

    The error is that of the items' own sums Σ_k c_k x_ki: what is easy or hard for all sides alike takes no part in it
    where the factors sum to zero.

    Args:
        sides: (factor, (n,) item scores, NaN = unscored).
        item_set: the items of all sides.
        alpha: 1 - coverage of the interval.
        seed: of the sign flips.

    Raises:
        ValueError: if the lengths differ, or there is no side.

    Example:
        >>> contrast([(1.0, middle), (-0.5, left), (-0.5, right)], item_set).se
        0.004
    """
    if not sides:
        raise ValueError("a contrast needs at least one side, but got none")
    first, *others = ((factor, np.asarray(items, dtype=np.float64)) for factor, items in sides)
    total = first[0] * first[1]
    for factor, items in others:
        if items.shape != total.shape:
            raise ValueError(f"all sides must have one length, but got {total.shape} and {items.shape}")
        total = total + factor * items
    return paired(total, np.zeros_like(total), item_set, alpha=alpha, seed=seed)


def sign_flip(sums: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of Σ sums under random signs (Fisher's randomisation test for pairs).

    Zeros can't matter and are left out. Exact up to 12 other clusters, drawn otherwise; never 0.

    Args:
        sums: (clusters,) weighted sums of differences.
        resamples: sign vectors drawn when there are too many to list.
        seed: of the draw.
    """
    s = np.asarray(sums, dtype=np.float64)
    s = s[s != 0]
    if not len(s):
        return 1.0
    s = s / np.abs(s).max()
    reach = abs(s.sum()) - 1e-9 * np.abs(s).sum()
    if len(s) <= EXACT_CLUSTERS:
        codes = np.arange(2 ** len(s), dtype=np.uint32)[:, None]
        signs = 2.0 * ((codes >> np.arange(len(s), dtype=np.uint32)) & 1) - 1
        return float((np.abs(signs @ s) >= reach).mean())
    generator = np.random.default_rng(seed)
    width = -(-len(s) // 8)
    table = _byte_sums(s, width)
    hits, left = 0, resamples
    while left:
        rows = min(left, max(1, _BYTES_AT_ONCE // width))
        drawn = np.frombuffer(generator.bytes(rows * width), dtype=np.uint8).reshape(rows, width)
        totals = table.take(drawn + 256 * np.arange(width)).sum(axis=1)
        hits += int((np.abs(totals) >= reach).sum())
        left -= rows
    return (1 + hits) / (1 + resamples)


def interval(value: float, se: float, clusters: int, *, alpha: float = 0.05) -> tuple[float, float]:
    """Student's t interval with clusters - 1 degrees of freedom; NaN where the error is unknown."""
    if clusters < 2 or not math.isfinite(se):
        return math.nan, math.nan
    half = float(special.stdtrit(clusters - 1, 1 - alpha / 2)) * se
    return value - half, value + half


def bootstrap(
    items: ArrayLike,
    item_set: ItemSet,
    *,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: Literal["BCa", "percentile"] = "BCa",
) -> tuple[float, float]:
    """Interval of the weighted mean by drawing whole clusters with replacement (Efron's BCa, SciPy's implementation).

    Args:
        items: (n,) item scores, NaN = unscored; for a paired difference, the items' differences.
        item_set: ids, weights and groups.
        alpha: 1 - coverage.
        resamples: bootstrap samples.
        seed: of the draws.
        method: `percentile` is plainer, BCa corrects bias and skew.

    Returns:
        (low, high); both the mean when all clusters have the same one, NaN with fewer than two clusters.
    """
    sums, weights, n = _clusters(np.asarray(items, dtype=np.float64), item_set)
    if not n or len(sums) < 2 or not np.isfinite(sums).all():
        return math.nan, math.nan
    mean = float(sums.sum() / weights.sum())
    if np.allclose(sums, mean * weights, rtol=1e-12, atol=0):
        return mean, mean
    from scipy import stats  # half a second that nothing else here needs

    def ratio(x: Floats, w: Floats, axis: int = -1) -> Floats:
        return np.asarray(x.sum(axis=axis) / w.sum(axis=axis))

    result = stats.bootstrap(
        (sums, weights),
        ratio,
        n_resamples=resamples,
        batch=max(1, _BYTES_AT_ONCE // len(sums)),
        vectorized=True,
        paired=True,
        confidence_level=1 - alpha,
        method=method,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979). NaN stays NaN and is not counted as a test."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    floor = 0.0
    for done, (p, i) in enumerate(tested):
        floor = max(floor, min(1.0, (len(tested) - done) * p))
        adjusted[i] = floor
    return adjusted


def smallest_difference(se: float, clusters: int | None = None, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference that a two-sided test at `alpha` finds with probability `power`, given the difference's error.

    Args:
        se: standard error of the difference.
        clusters: groups behind it; noncentral t with clusters - 1 degrees of freedom, the normal limit without.
        alpha: level of the test.
        power: probability of finding it.
    """
    if clusters is None:
        return float(special.ndtri(1 - alpha / 2) + special.ndtri(power)) * se
    if clusters < 2:
        return math.nan
    critical = special.stdtrit(clusters - 1, 1 - alpha / 2)
    return float(special.nctdtrinc(clusters - 1, 1 - power, critical)) * se


def items_to_tell(result: Paired, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Items in all from which a paired comparison would find its present difference with probability `power`.

    The difference is taken for the true one, which flatters where it was chosen for being large; NaN where nothing is
    known, infinite where there is no difference at all.

    Args:
        result: the comparison so far.
        alpha: level of the two-sided test, before any adjustment.
        power: probability of finding it.
    """
    if result.clusters < 2 or not math.isfinite(result.se) or not math.isfinite(result.difference):
        return math.nan
    if result.difference == 0:
        return math.inf
    reach = float(special.ndtri(1 - alpha / 2) + special.ndtri(power))
    return result.n * (reach * result.se / result.difference) ** 2


def smallest_share_difference(rows: int, *, discordant: float = 0.5, alpha: float = 0.05, power: float = 0.8) -> float:
    """What a split of `rows` rows can show between two shares (exact match), before anything is measured.

    A pair of rows differs by ±1 with probability `discordant`, so the error is at most √(discordant / rows); half is
    what two independent models at 50 % have. At most 1, which says that the split can't show anything.

    Args:
        rows: rows (or groups, where rows are clustered) of the split.
        discordant: share of rows on which the two sides disagree.
        alpha: level of the test.
        power: probability of finding it.
    """
    if rows < 2:
        return 1.0
    return min(1.0, smallest_difference(math.sqrt(discordant / rows), rows, alpha=alpha, power=power))


def _clusters(x: Floats, item_set: ItemSet) -> tuple[Floats, Floats, int]:
    """(weighted sums by cluster, weights by cluster, items used) of the scored items."""
    w = np.ones_like(x) if item_set.weights is None else np.asarray(item_set.weights, dtype=np.float64)
    if x.shape != (len(item_set.ids),):
        raise ValueError(f"items must be one number an item, but got shape {x.shape} for {len(item_set.ids)} items")
    scored = ~np.isnan(x) & (w > 0)
    groups = np.asarray(item_set.groups or item_set.ids, dtype=object)[scored].astype(str)
    _, index = np.unique(groups, return_inverse=True)
    return (
        np.bincount(index, weights=w[scored] * x[scored]).astype(np.float64),
        np.bincount(index, weights=w[scored]).astype(np.float64),
        int(scored.sum()),
    )


def _clustered_se(sums: Floats, weights: Floats) -> float:
    """√(G/(G-1) Σ_g (s_g - m w_g)²) / Σw, as in `summarise`."""
    count, total = len(sums), float(weights.sum())
    if count < 2:
        return math.nan
    pulls = sums - sums.sum() / total * weights
    return math.sqrt(count / (count - 1) * float((pulls**2).sum())) / total


def _byte_sums(s: Floats, width: int) -> Floats:
    """(width * 256,) the signed sum of every eight numbers for each byte: one bit, one sign."""
    signs = 2.0 * ((np.arange(256)[:, None] >> np.arange(8)) & 1) - 1
    eights = np.concatenate([s, np.zeros(8 * width - len(s))]).reshape(width, 8)
    return np.asarray((eights @ signs.T).ravel())
