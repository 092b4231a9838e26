"""How well numbers agree with what people say: Pearson's and Spearman's correlation with intervals by questions.

Intervals are percentiles of a bootstrap over clusters (Davison & Hinkley 1997, chapters 2 and 3): several people judge one
question, so judgements are not independent, and the normal errors (Fisher's z, Bonett & Wright 2000) would be too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

DRAWS = 1000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Agreement:
    """Two correlations.

    Attributes:
        n: pairs of numbers.
        clusters: questions they are of.
        pearson: NaN where one side is constant.
        spearman: of ranks, ties sharing theirs.
        pearson_interval: (low, high); NaN where there are fewer than three clusters.
        spearman_interval: likewise.
    """

    n: int
    clusters: int
    pearson: float
    spearman: float
    pearson_interval: tuple[float, float]
    spearman_interval: tuple[float, float]


def agreement(
    found: ArrayLike, said: ArrayLike, clusters: Sequence[str], *, alpha: float = 0.05, seed: int = 0
) -> Agreement:
    """Correlations of two columns; rows with a NaN are left out.

    Args:
        found: (n,) numbers of a metric.
        said: (n,) what people say.
        clusters: (n,) which question each is of.
        alpha: of the intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: if the lengths differ.

    Example:
        >>> agreement([1, 2, 3, 5], [1, 2, 3, 4], "abcd").spearman
        1.0
    """
    x, y = np.asarray(found, dtype=np.float64), np.asarray(said, dtype=np.float64)
    if not x.shape == y.shape == (len(clusters),):
        raise ValueError(f"columns must have one length, but got {x.shape}, {y.shape} and {len(clusters)} clusters")
    kept = ~(np.isnan(x) | np.isnan(y))
    x, y = x[kept], y[kept]
    names, index = np.unique(np.asarray(list(clusters), dtype=object)[kept].astype(str), return_inverse=True)
    members = [np.flatnonzero(index == place) for place in range(len(names))]
    draws = np.full((DRAWS, 2), math.nan)
    if len(members) > 2:
        generator = np.random.default_rng(seed)
        for draw in range(DRAWS):
            rows = np.concatenate([members[place] for place in generator.integers(len(members), size=len(members))])
            draws[draw] = pearson(x[rows], y[rows]), spearman(x[rows], y[rows])
    return Agreement(
        len(x),
        len(members),
        pearson(x, y),
        spearman(x, y),
        _percentiles(draws[:, 0], alpha),
        _percentiles(draws[:, 1], alpha),
    )


def pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Of two columns; NaN for fewer than two rows or a constant column."""
    if len(x) < 2:
        return math.nan
    a, b = x - x.mean(), y - y.mean()
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return max(-1.0, min(1.0, float(a @ b) / spread)) if spread > 0 else math.nan


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Pearson's of the ranks."""
    return pearson(rankdata(x), rankdata(y)) if len(x) else math.nan


def _percentiles(draws: NDArray[np.float64], alpha: float) -> tuple[float, float]:
    """Of the draws that have a value; NaN where under nine in ten have one."""
    real = draws[~np.isnan(draws)]
    if len(real) < 0.9 * len(draws):
        return math.nan, math.nan
    low, high = np.quantile(real, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)
