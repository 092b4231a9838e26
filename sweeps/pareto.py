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
    order = np.lexsort(p.T[::-1])
    ascending = p[order]
    new = np.concatenate(([True], (ascending[1:] != ascending[:-1]).any(axis=1)))
    found = np.array(_two_metrics(ascending[new]) if p.shape[1] == 2 else _chains(ascending[new]))
    told = np.empty(len(p), dtype=int)
    told[order] = found[np.cumsum(new) - 1]
    return [int(k) for k in told]


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


class Ranking:
    """Points ranked front by front, each in the order of `spread`. A front is put in order when somebody asks for a place in it.

    Args:
        points: (n, metrics), finite.
        chosen: points that keep their place: within their front they come first, by the metrics in order, and the others
            by their distance from them.
    """

    def __init__(self, points: ArrayLike, chosen: Sequence[bool] | None = None) -> None:
        self._points = _points(points)
        n = len(self._points)
        self._kept = np.zeros(n, dtype=bool) if chosen is None else np.asarray(chosen, dtype=bool)
        self._front = np.array(fronts(self._points), dtype=int)
        by_metrics = np.lexsort(self._points.T[::-1]) if n else np.array([], dtype=int)
        by_front = by_metrics[np.argsort(self._front[by_metrics], kind="stable")]
        self._starts = np.searchsorted(self._front[by_front], np.arange(self._front.max(initial=-1) + 2))
        self._members = by_front
        self._ordered: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, place: int) -> int:
        """The index of the point at a place, 0 is the best.

        Raises:
            IndexError: where there are fewer points.
        """
        if not 0 <= place < len(self):
            raise IndexError(place)
        front = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._order(front)[place - int(self._starts[front])]

    def place(self, index: int) -> int:
        """The place of a point."""
        front = int(self._front[index])
        return int(self._starts[front]) + self._order(front).index(index)

    def first(self, wanted: Sequence[bool]) -> int | None:
        """The place of the best of the wanted points; None where none is."""
        indexes = np.flatnonzero(np.asarray(wanted, dtype=bool))
        if not len(indexes):
            return None
        front = int(self._front[indexes].min())
        asked = set(indexes.tolist())
        return int(self._starts[front]) + next(i for i, index in enumerate(self._order(front)) if index in asked)

    def _order(self, front: int) -> list[int]:
        if front not in self._ordered:
            members = self._members[self._starts[front] : self._starts[front + 1]]
            found = spread(self._points[members], np.flatnonzero(self._kept[members]).tolist())
            self._ordered[front] = members[found].tolist()
        return self._ordered[front]


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
