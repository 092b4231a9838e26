"""The path between two checkpoints, sampled where it matters, and the barrier on it.

Source: the knots of AutoKnots (NumCosmo's `ncm_spline_func`, 2024): every open interval is halved, and it is closed where
the midpoint lies on the spline through the other knots and Simpson's integral agrees with the spline's. The tolerance is
twice the evaluation's standard error, so that noise opens no interval. Intervals much longer than the others are opened once
more, because a plateau hides what lies on it. The barrier is how far the path rises above the straight line between its ends
(linear mode connectivity). Left out: the spacing below which AutoKnots calls a function discontinuous; the number of
evaluations ends it here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.base import Score
from pipelines.soups.base import sign


@dataclass(frozen=True)
class Path:
    """What was found.

    Attributes:
        knots: (how far along, score), in order; NaN where it could not be scored.
        barrier: the largest rise above the straight line, in the metric's unit; infinite where a knot could not be scored.
        at: where that is.
        allowed: the rise that passes.
    """

    knots: tuple[tuple[float, float], ...]
    barrier: float
    at: float
    allowed: float

    @property
    def passes(self) -> bool:
        """Whether there is no barrier to speak of."""
        return self.barrier <= self.allowed


def walk_path(
    score: Callable[[float], Score], ends: tuple[Score, Score], *, max_drop: float = 0.0, evaluations: int = 15
) -> Path:
    """Sample a path between two scores that are known.

    Args:
        score: the score at a point in (0, 1).
        ends: those at 0 and 1.
        max_drop: the rise that is allowed beside noise.
        evaluations: at most so many calls of `score`.
    """
    factor = sign(ends[0].direction)
    errors = [one.se for one in ends if math.isfinite(one.se)]
    error = max(errors, default=0.0)
    known = {0.0: factor * ends[0].value, 1.0: factor * ends[1].value}
    known[0.5] = factor * score(0.5).value
    left, refined = evaluations - 1, False
    waiting = [(0.0, 0.5), (0.5, 1.0)]
    while left > 0 and waiting and all(map(math.isfinite, known.values())):
        failed: list[tuple[float, float]] = []
        for a, b in waiting[:left]:
            middle = (a + b) / 2
            guess = _spline(known, middle)
            area = _area(known, a, b)
            value = known[middle] = factor * score(middle).value
            simpson = (b - a) * (known[a] + 4 * value + known[b]) / 6
            bound = 2 * error
            if not (abs(value - guess) <= bound and abs(simpson - area) <= bound * (b - a)):
                failed += [(a, middle), (middle, b)]
        left -= len(waiting[:left])
        waiting = failed
        if not waiting and not refined:
            refined = True
            points = sorted(known)
            gaps = np.diff(points)
            bound = float(gaps.mean() + gaps.std())
            waiting = [(a, b) for a, b in itertools.pairwise(points) if b - a > bound * (1 + 1e-9)]
    rise, at = max((_rise(known, point), point) for point in known)
    knots = tuple((point, factor * value) for point, value in sorted(known.items()))
    return Path(knots, max(0.0, rise), at, max_drop + 2 * error)


def _rise(known: dict[float, float], point: float) -> float:
    if not math.isfinite(known[point]):
        return math.inf
    return known[point] - ((1 - point) * known[0.0] + point * known[1.0])


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
