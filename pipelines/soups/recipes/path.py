"""The path between two checkpoints, sampled where it matters, and the barrier on it.

Source: the knots of AutoKnots (NumCosmo's `ncm_spline_func`, 2024): every open interval is halved, and it is closed where
the midpoint lies on the spline through the other knots and Simpson's integral agrees with the spline's. The tolerance is
twice the standard error, so that noise opens no interval. Intervals much longer than the others are opened once more,
because a plateau hides what lies on it. The barrier is how far the path rises above the straight line between its ends
(linear mode connectivity). All its points are scored on the same rows, so its error is that of the rows' own rises,
xᵢ(α) - (1 - α)·xᵢ(0) - α·xᵢ(1), where the rows' scores are kept; an end's error, which is mostly that some rows are harder
than others, counts where they are not. Left out: the spacing below which AutoKnots calls a function discontinuous; the
number of evaluations ends it here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.base import Score
from pipelines.soups.base import sign

ROUNDING = 1e-5
"""Share of a score below which a rise is arithmetic's: sums in float32 in another order."""

FIRST = (0.5, 0.25, 0.75)
"""The points that every path is scored at, in this order, unless one can't be."""

Rise = Callable[[float], tuple[float, float]]
"""A point -> (the score there minus the straight line's, its standard error or NaN), in the metric's unit."""


@dataclass(frozen=True)
class Path:
    """What was found.

    Attributes:
        knots: (how far along, score), in order; NaN where it could not be scored.
        barrier: the largest rise above the straight line, in the metric's unit; infinite where a knot could not be scored.
        at: where that is.
        allowed: the rise that passes there.
        se: the rise's standard error, paired; NaN where the rows' scores are not kept.
    """

    knots: tuple[tuple[float, float], ...]
    barrier: float
    at: float
    allowed: float
    se: float = math.nan

    @property
    def passes(self) -> bool:
        """Whether there is no barrier to speak of."""
        return self.barrier <= self.allowed


def walk_path(
    score: Callable[[float], Score],
    ends: tuple[Score, Score],
    *,
    rise: Rise | None = None,
    max_drop: float = 0.0,
    evaluations: int = 15,
) -> Path:
    """Sample a path between two scores that are known.

    Args:
        score: the score at a point in (0, 1).
        ends: those at 0 and 1.
        rise: the paired rise at a point that was scored; None where rows' scores are not kept.
        max_drop: the rise that is allowed beside noise.
        evaluations: at most so many calls of `score`.
    """
    line = _Line(score, ends, rise)
    line.look(0.5)
    left, refined = evaluations - 1, False
    waiting = [(0.0, 0.5), (0.5, 1.0)]
    while left > 0 and waiting and all(map(math.isfinite, line.known.values())):
        failed: list[tuple[float, float]] = []
        for a, b in waiting[:left]:
            middle = (a + b) / 2
            guess = _spline(line.known, middle)
            area = _area(line.known, a, b)
            value = line.look(middle)
            if not math.isfinite(value):
                break
            simpson = (b - a) * (line.known[a] + 4 * value + line.known[b]) / 6
            bound = line.noise[middle]
            if not (abs(value - guess) <= bound and abs(simpson - area) <= bound * (b - a)):
                failed += [(a, middle), (middle, b)]
        left -= len(waiting[:left])
        waiting = failed
        if not waiting and not refined:
            refined = True
            points = sorted(line.known)
            gaps = np.diff(points)
            bound = float(gaps.mean() + gaps.std())
            waiting = [(a, b) for a, b in itertools.pairwise(points) if b - a > bound * (1 + 1e-9)]
    return line.path(max_drop)


class _Line:
    """What is known of a path; smaller is better inside, whatever the metric's direction."""

    def __init__(self, score: Callable[[float], Score], ends: tuple[Score, Score], rise: Rise | None) -> None:
        self.score, self.rise, self.factor = score, rise, sign(ends[0].direction)
        self.error = max((one.se for one in ends if math.isfinite(one.se)), default=0.0)
        self.known = {0.0: self.factor * ends[0].value, 1.0: self.factor * ends[1].value}
        self.rounding = ROUNDING * max((abs(v) for v in self.known.values() if math.isfinite(v)), default=0.0)
        self.rises = {0.0: 0.0, 1.0: 0.0}
        self.errors = {0.0: math.nan, 1.0: math.nan}
        self.noise = {0.0: 2 * self.error, 1.0: 2 * self.error}
        """The rise that noise can make, at each point."""

    def look(self, point: float) -> float:
        """Score a point."""
        value = self.known[point] = self.factor * self.score(point).value
        rise = value - ((1 - point) * self.known[0.0] + point * self.known[1.0])
        error = math.nan
        if self.rise is not None and math.isfinite(value):
            paired, error = self.rise(point)
            rise = self.factor * paired if math.isfinite(error) else rise
        self.rises[point] = rise if math.isfinite(value) else math.inf
        self.errors[point] = error
        self.noise[point] = 2 * error + self.rounding if math.isfinite(error) else 2 * self.error
        return value

    def path(self, max_drop: float) -> Path:
        """What was found so far."""
        inner = [point for point in self.known if not math.isnan(self.errors[point])]
        rise, at = max((self.rises[point], point) for point in self.known if not inner or 0 < point < 1)
        knots = tuple((point, self.factor * value) for point, value in sorted(self.known.items()))
        return Path(knots, max(0.0, rise), at, max_drop + self.noise[at], self.errors[at])


def _coefficients(known: dict[float, float]) -> tuple[Sequence[float], object]:
    points = sorted(known)
    values = [known[point] for point in points]
    if len(points) < 4:
        return points, np.poly1d(np.polyfit(points, values, len(points) - 1))
    from scipy.interpolate import CubicSpline

    return points, CubicSpline(points, values)


def _spline(known: dict[float, float], point: float) -> float:
    """The spline through the knots at a point."""
    _, curve = _coefficients(known)
    return float(curve(point))  # type: ignore[operator]


def _area(known: dict[float, float], a: float, b: float) -> float:
    """The spline's integral."""
    _, curve = _coefficients(known)
    if isinstance(curve, np.poly1d):
        whole = curve.integ()
        return float(whole(b) - whole(a))
    return float(curve.integrate(a, b))  # type: ignore[attr-defined]
