"""Several metrics at once: dominance, fronts, an even order within a front, and the hypervolume. Pure functions of arrays.

Points are rows, one column a metric, oriented so that smaller is better. A point dominates another when it is nowhere worse
and somewhere better; front 0 is what nothing dominates, front 1 what only points of front 0 dominate, and so on (Deb et al.
2002, NSGA-II). Within a front the order is an epsilon-net as in MO-ASHA (Schmucker et al. 2021, arXiv 2106.12639, section
3.2): each next point is the one farthest from those before it, so that any beginning of the order covers the front.

Left out: NSGA-II's crowding distance, which the paper's epsilon-net replaces.

Example:
    >>> fronts([[1.0, 4.0], [2.0, 2.0], [3.0, 3.0]])
    [0, 0, 1]
    >>> hypervolume([[1.0, 4.0], [2.0, 2.0]], [5.0, 5.0])
    10.0
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def dominates(left: Sequence[float], right: Sequence[float]) -> bool:
    """Whether `left` is nowhere worse than `right` and somewhere better."""
    couples = list(zip(left, right, strict=True))
    return all(a <= b for a, b in couples) and any(a < b for a, b in couples)


def fronts(points: ArrayLike) -> list[int]:
    """The front of each point, from 0; equal points share one.

    A point's front is the length of the longest chain of points that dominate each other and then it.

    Args:
        points: (n, metrics), smaller is better.

    Raises:
        ValueError: on NaN, which nothing can be compared with.
    """
    p = _points(points)
    if not len(p):
        return []
    distinct, place = np.unique(p, axis=0, return_inverse=True)
    found = _two_metrics(distinct) if p.shape[1] == 2 else _chains(distinct)
    return [found[i] for i in place.reshape(-1)]


def spread(points: ArrayLike, chosen: Sequence[int] = ()) -> list[int]:
    """An order of which any beginning covers the points: an epsilon-net, farthest point first.

    Distances are Euclidean, each metric scaled to its range among the points. Equal distances go by the metrics in order
    (the primary one first), then by index.

    Args:
        points: (n, metrics), finite.
        chosen: indexes that come first, in this order; where there are none, the best by the metrics in order does.
    """
    p = _points(points)
    if not len(p):
        return []
    low, extent = p.min(axis=0), np.ptp(p, axis=0)
    scaled = (p - low) / np.where(extent > 0, extent, 1.0)
    by_metrics = np.lexsort(p.T[::-1])
    left = np.ones(len(p), dtype=bool)
    away = np.full(len(p), np.inf)
    order: list[int] = []

    def take(index: int) -> None:
        order.append(index)
        left[index] = False
        np.minimum(away, ((scaled - scaled[index]) ** 2).sum(axis=1), out=away)

    for index in chosen or [int(by_metrics[0])]:
        take(index)
    while len(order) < len(p):
        waiting = by_metrics[left[by_metrics]]
        take(int(waiting[np.argmax(away[waiting])]))
    return order


def ranking(points: ArrayLike, chosen: Sequence[bool] | None = None) -> list[int]:
    """Indexes, best first: front by front, each in the order of `spread`.

    Args:
        points: (n, metrics), finite.
        chosen: points that keep their place: within their front they come first, by the metrics in order, and the others
            by their distance from them.
    """
    p = _points(points)
    number = np.array(fronts(p), dtype=int)
    kept = np.zeros(len(p), dtype=bool) if chosen is None else np.asarray(chosen, dtype=bool)
    by_metrics = np.lexsort(p.T[::-1]) if len(p) else np.array([], dtype=int)
    order: list[int] = []
    for k in range(int(number.max(initial=-1)) + 1):
        members = np.flatnonzero(number == k)
        position = {int(index): i for i, index in enumerate(members)}
        first = [position[int(index)] for index in by_metrics if number[index] == k and kept[index]]
        order += [int(members[i]) for i in spread(p[members], first)]
    return order


def representatives(points: ArrayLike, groups: Sequence[object], most: int | None = None) -> list[int]:
    """Indexes, ascending, of points that nothing dominates: the first of each group, thinned to an even spread.

    Args:
        points: (n, metrics), finite.
        groups: (n,) what counts once (the runs of a trial).
        most: how many at most; None for all.
    """
    first: dict[object, int] = {}
    for index, front in enumerate(fronts(points)):
        if front == 0:
            first.setdefault(groups[index], index)
    indexes = list(first.values())
    order = spread(_points(points)[indexes]) if indexes else []
    return sorted(indexes[i] for i in order[:most])


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume of what the points dominate, up to the reference point. Exact.

    Slicing with limited sets (While, Bradstreet, Barone 2012, WFG): the volume that a point adds to those with a better
    last metric is that of one metric less, times its distance from the reference in the last.

    Args:
        points: (n, metrics), smaller is better; what is not better than the reference in every metric adds nothing.
        reference: (metrics,) the corner that volume is measured from.

    Raises:
        ValueError: on NaN, or if the number of metrics differs.
    """
    p, r = _points(points), np.asarray(reference, dtype=np.float64)
    if len(p) and p.shape[1:] != r.shape:
        raise ValueError(f"the reference must have one number a metric, but got {r.shape} for points {p.shape}")
    inside = p[(p < r).all(axis=1)] if len(p) else p
    return _volume([tuple(row) for row in inside.tolist()], tuple(r.tolist()))


def worst(points: ArrayLike) -> Floats:
    """(metrics,) the worst value of each metric among the points: a reference that leaves no point out."""
    return np.asarray(_points(points).max(axis=0))


def _points(points: ArrayLike) -> Floats:
    p = np.asarray(points, dtype=np.float64)
    if p.size == 0:
        return p.reshape(0, p.shape[1] if p.ndim == 2 else 1)
    if p.ndim != 2:
        raise ValueError(f"points must be (n, metrics), but got shape {p.shape}")
    if np.isnan(p).any():
        raise ValueError("points must be numbers, but got NaN")
    return p


def _two_metrics(distinct: Floats) -> list[int]:
    """Fronts of distinct points in ascending order: the newest of a front has its lowest second metric."""
    newest: list[float] = []
    found = []
    for second in distinct[:, 1].tolist():
        # The fronts that hold a point which dominates this one come first: their lowest second metric is not above it.
        k = bisect_right(newest, second)
        newest[k : k + 1] = [second]
        found.append(k)
    return found


def _chains(distinct: Floats) -> list[int]:
    """Fronts of distinct points in ascending order, so that a point's dominators stand before it."""
    found = np.zeros(len(distinct), dtype=int)
    for i in range(1, len(distinct)):
        above = (distinct[:i] <= distinct[i]).all(axis=1)
        found[i] = found[:i][above].max(initial=-1) + 1
    return [int(k) for k in found]


Point = tuple[float, ...]


def _volume(points: list[Point], reference: Point) -> float:
    if not points:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(points)[0]
    if len(reference) == 2:
        return _area(points, reference)
    last, total = reference[-1], 0.0
    ordered = sorted(_minimal(points), key=lambda point: -point[-1])
    for i, point in enumerate(ordered):
        own = 1.0
        for value, limit in zip(point[:-1], reference[:-1], strict=True):
            own *= limit - value
        others = [tuple(map(max, point[:-1], other[:-1])) for other in ordered[i + 1 :]]
        total += (last - point[-1]) * (own - _volume(others, reference[:-1]))
    return total


def _area(points: list[Point], reference: Point) -> float:
    total, height = 0.0, reference[1]
    for x, y in sorted(points):
        if y < height:
            total += (reference[0] - x) * (height - y)
            height = y
    return total


def _minimal(points: list[Point]) -> list[Point]:
    """The distinct points that no other dominates."""
    kept: list[Point] = []
    for point in sorted(set(points)):
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in kept):
            kept.append(point)
    return kept
