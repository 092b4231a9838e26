"""How much of where a trial ends each parameter explains by itself, with an interval, from 20 ended trials on.

The index is the main effect of functional ANOVA (Hutter, Hoos & Leyton-Brown, "An Efficient Approach for Assessing
Hyperparameter Importance", ICML 2014): V_d = Var(E[y | x_d]) / Var(y), with two changes. y is the trial's rank, since one
diverged run would otherwise be most of the variance. E[y | x_d] is a local linear smoother of the trials (Da Veiga, Wahl &
Gamboa, "Local Polynomial Estimation for Sensitivity Analysis on Models With Correlated Inputs", Technometrics 2009), not a
random forest's marginal: it needs nothing fitted, so that the trials can be drawn anew hundreds of times. Left out:
interactions of several parameters. Under a searcher that learns, parameters are not drawn independently, and what one
explains may be another's doing.

A smoother explains something of pure noise; its expected share under exchangeable ranks is known in closed form and taken
out, as in the adjusted R². The interval is the percentile bootstrap over trials. `noise` is what a parameter without any
effect stays below in 19 of 20 sweeps of this size and shape (ranks permuted, the largest parameter counted).

Example:
    >>> rng = np.random.default_rng(0)
    >>> x = rng.random((200, 2))
    >>> [round(index.value, 1) for index in importance({"a": x[:, 0], "b": x[:, 1]}, x[:, 0]).indices]
    [1.0, 0.0]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sweeps.ledger import number

LEAST = 20
"""Trials from which an index is worth a picture."""
RESAMPLES = 200
PERMUTATIONS = 200
LARGEST = 400
"""Trials looked at most, evenly taken: the smoother is quadratic in them."""
_WIDTH = 0.5
"""Of Scott's bandwidth: his is for densities, a regression bends more."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Index:
    """A parameter's share of the variance of ranks.

    Attributes:
        name: its path.
        value: in [0, 1]; NaN where fewer than `LEAST` trials set it, or it never varied.
        low: lower end of the 95 % interval.
        high: upper end.
        n: trials that set it.
        noise: what it would stay below without an effect, 19 times in 20.
        reason: why there is no value.
    """

    name: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    noise: float = math.nan
    reason: str = ""

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        numbers = {key: number(getattr(self, key)) for key in ("value", "low", "high", "noise")}
        return {"name": self.name, **numbers, "n": self.n, "reason": self.reason}


@dataclass(frozen=True)
class Importance:
    """All parameters, the most telling first.

    Attributes:
        n: trials in all.
        indices: one a parameter; empty below `LEAST`.
        reason: why there are none.
    """

    n: int
    indices: tuple[Index, ...] = ()
    reason: str = ""

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"n": self.n, "reason": self.reason, "indices": [index.record() for index in self.indices]}


def importance(values: Mapping[str, ArrayLike], y: ArrayLike, *, seed: int = 0) -> Importance:
    """The main effect of every parameter.

    Args:
        values: path -> (n,) numbers, evenly spread where the parameter was drawn evenly (logarithms for log scales), or
            (n,) of dtype int for categories' codes; NaN, or -1 for a code, where a trial does not set it.
        y: (n,) the trials' places or scores; only their order counts.
        seed: of the bootstrap and the permutations.
    """
    order = np.asarray(y, dtype=np.float64)
    n = len(order)
    if n < LEAST:
        return Importance(n, reason=f"{n} of the {LEAST} ended trials that it takes: with fewer, chance decides")
    if n > LARGEST:
        chosen = np.linspace(0, n - 1, LARGEST).astype(int)
        order, values = order[chosen], {name: np.asarray(column)[chosen] for name, column in values.items()}
    rng = np.random.default_rng(seed)
    indices = [_index(name, np.asarray(column), order, rng) for name, column in values.items()]
    family = sum(index.n > 0 and not index.reason for index in indices)
    indices = [_with_noise(index, np.asarray(values[index.name]), family, rng) for index in indices]
    ordered = sorted(indices, key=lambda index: (math.isnan(index.value), -index.value if index.n else 0.0))
    return Importance(n, tuple(ordered))


def _index(name: str, column: NDArray[Any], order: Floats, rng: np.random.Generator) -> Index:
    there = _present(column)
    n = int(there.sum())
    if n < LEAST:
        return Index(name, n=n, reason=f"set by {n} trials; it takes {LEAST}")
    x = column[there]
    if len(np.unique(x)) < 2:
        return Index(name, n=n, reason="it had one value only")
    smooth = _smoother(x)
    y = order[there]
    value = _share(smooth, _ranks(y, np.ones(n)), np.ones(n))
    draws = []
    for _ in range(RESAMPLES):
        weights = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        draws.append(_share(smooth, _ranks(y, weights), weights))
    low, high = np.quantile(draws, [0.025, 0.975])
    clipped = [min(1.0, max(0.0, float(end))) for end in (value, low, high)]
    return Index(name, clipped[0], min(clipped[1], clipped[0]), max(clipped[2], clipped[0]), n)


def _with_noise(index: Index, column: NDArray[Any], family: int, rng: np.random.Generator) -> Index:
    """With the level that the largest of `family` parameters without effect stays below, 19 times in 20."""
    if index.reason:
        return index
    x = column[_present(column)]
    weights = np.ones(index.n)
    operator = _smoother(x)(weights)
    ranks = _ranks(np.arange(index.n, dtype=np.float64), weights)
    shares = _explained(operator, np.stack([rng.permutation(ranks) for _ in range(PERMUTATIONS)], axis=1), weights)
    noise = max(0.0, float(np.quantile(shares, 0.95 ** (1 / max(1, family)))))
    return Index(index.name, index.value, index.low, index.high, index.n, noise)


def _present(column: NDArray[Any]) -> NDArray[np.bool_]:
    return column >= 0 if column.dtype.kind in "iu" else ~np.isnan(column)


def _ranks(y: Floats, weights: Floats) -> Floats:
    """(n,) weighted mid-ranks in [0, 1]; equal scores share theirs."""
    _, group = np.unique(y, return_inverse=True)
    mass = np.bincount(group, weights=weights)
    middle = np.cumsum(mass) - mass / 2
    return np.asarray((middle / weights.sum())[group], dtype=np.float64)


def _smoother(x: NDArray[Any]) -> Any:
    """Weights -> (n, n) rows that average the trials near each one: local linear, or within the category."""
    if x.dtype.kind in "iu":
        equal = (x[:, None] == x[None, :]).astype(np.float64)
        return lambda weights: equal * weights / np.maximum(equal @ weights, 1e-300)[:, None]
    n = len(x)
    low, high = np.quantile(x, [0.25, 0.75])
    spread = min(float(x.std(ddof=1)), float(high - low) / 1.349) if high > low else float(x.std(ddof=1))
    width = max(_WIDTH * 1.06 * spread * n**-0.2, 1e-3 * float(np.ptp(x)))
    apart = x[None, :] - x[:, None]
    kernel = np.exp(-0.5 * (apart / width) ** 2)

    def rows(weights: Floats) -> Floats:
        near = kernel * weights
        s0, s1, s2 = near.sum(1), (near * apart).sum(1), (near * apart**2).sum(1)
        steep = s0 * s2 - s1**2
        flat = steep < 1e-9 * np.maximum(s0, 1e-300) ** 2 * width**2
        linear = near * (s2[:, None] - s1[:, None] * apart) / np.where(flat, 1.0, steep)[:, None]
        return np.where(flat[:, None], near / np.maximum(s0, 1e-300)[:, None], linear)

    return rows


def _share(smooth: Any, ranks: Floats, weights: Floats) -> float:
    return float(_explained(smooth(weights), ranks[:, None], weights)[0])


def _explained(rows: Floats, ranks: Floats, weights: Floats) -> Floats:
    """Variance of the smoothed ranks over the ranks' own, what noise would reach on average taken out.

    Args:
        rows: (n, n) the smoother.
        ranks: (n, k) ranks, k of them at once.
        weights: (n,) how often each trial was drawn.

    Returns:
        (k,) shares; 0 where all ranks are equal.
    """
    share = weights / weights.sum()
    centred = ranks - share @ ranks
    variance = share @ centred**2
    expected = float(share @ ((rows - share) ** 2).sum(1))
    if expected >= 1 or not variance.all():
        return np.zeros(ranks.shape[1])
    smoothed = rows @ centred
    found = (share @ (smoothed - share @ smoothed) ** 2) / variance
    return np.asarray((found - expected) / (1 - expected), dtype=np.float64)
