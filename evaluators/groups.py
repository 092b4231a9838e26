"""Do groups of runs differ in a number that has no items: joules, seconds, memory. Welch's t, Holm, one-way ANOVA.

A group is a value of one axis, its numbers one a run. Nothing is claimed about a group of fewer than three runs, and
nothing where p, adjusted over all pairs, reaches alpha: a difference of two runs alone is noise as likely as not.

Source: Welch 1947; the tests are SciPy's (`ttest_ind(equal_var=False)`, `f_oneway`), the effect size is Hedges' g.

Example:
    >>> between({"fp32": [10.1, 9.8, 10.4], "bf16": [8.0, 8.3, 7.9]}).pairs[0].lower
    'bf16'
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluators.statistics import Floats, holm

LEAST = 3
"""Runs a group, below which nothing is claimed."""


@dataclass(frozen=True)
class Group:
    """One value's runs: how many, their mean and standard deviation (NaN for one run)."""

    name: str
    n: int
    mean: float
    sd: float


@dataclass(frozen=True)
class Contrast:
    """Left minus right, of groups with enough runs.

    Attributes:
        left: a group's name.
        right: a group's name.
        difference: of the means.
        low: lower end of the interval, at the unadjusted alpha.
        high: upper end of the interval.
        t: Welch's statistic.
        df: its degrees of freedom.
        g: Hedges' g, the difference in standard deviations.
        p: two-sided; NaN where neither group varies.
        p_holm: adjusted over all pairs.
        alpha: level of the claim.
    """

    left: str
    right: str
    difference: float
    low: float
    high: float
    t: float
    df: float
    g: float
    p: float
    p_holm: float
    alpha: float

    @property
    def lower(self) -> str | None:
        """The group that is shown to be lower; None: not significant."""
        if not self.p_holm < self.alpha:
            return None
        return self.left if self.difference < 0 else self.right


@dataclass(frozen=True)
class Between:
    """Groups in the order given, every pair of those with enough runs, and one-way ANOVA over them.

    `f` and `p` are NaN with fewer than two such groups, or where nothing varies.
    """

    groups: tuple[Group, ...]
    pairs: tuple[Contrast, ...]
    f: float
    p: float
    alpha: float

    @property
    def short(self) -> tuple[Group, ...]:
        """Groups with too few runs for any claim."""
        return tuple(group for group in self.groups if group.n < LEAST)


def between(values: Mapping[str, Sequence[float]], *, alpha: float = 0.05) -> Between:
    """Compare groups of numbers.

    Args:
        values: numbers by group, finite.
        alpha: level of the claims and 1 - coverage of the intervals.

    Raises:
        ValueError: if a number is not finite.
    """
    arrays = {name: np.asarray(numbers, dtype=np.float64) for name, numbers in values.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"the numbers of {name} must be finite, but got {array.tolist()}")
    groups = tuple(_group(name, array) for name, array in arrays.items() if len(array))
    enough = [(group.name, arrays[group.name]) for group in groups if group.n >= LEAST]
    pairs = [_welch(left, right, alpha) for left, right in itertools.combinations(enough, 2)]
    adjusted = holm([pair.p for pair in pairs])
    pairs = [replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True)]
    f, p = _anova([array for _, array in enough])
    return Between(groups, tuple(pairs), f, p, alpha)


def _group(name: str, array: Floats) -> Group:
    return Group(name, len(array), float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan)


def _welch(left: tuple[str, Floats], right: tuple[str, Floats], alpha: float) -> Contrast:
    from scipy import stats  # half a second that nothing else here needs

    (one, a), (other, b) = left, right
    difference = float(a.mean() - b.mean())
    pooled = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (count := len(a) + len(b) - 2))
    if not pooled:
        nan = math.nan
        return Contrast(one, other, difference, nan, nan, nan, nan, nan, nan, nan, alpha)
    found = stats.ttest_ind(a, b, equal_var=False)
    interval = found.confidence_interval(1 - alpha)
    g = difference / pooled * (1 - 3 / (4 * count - 1))
    t, df, p = float(found.statistic), float(found.df), float(found.pvalue)
    return Contrast(one, other, difference, float(interval.low), float(interval.high), t, df, g, p, math.nan, alpha)


def _anova(arrays: Sequence[Floats]) -> tuple[float, float]:
    if len(arrays) < 2 or not any(array.var() for array in arrays):
        return math.nan, math.nan
    from scipy import stats

    found = stats.f_oneway(*arrays)
    return float(found.statistic), float(found.pvalue)
