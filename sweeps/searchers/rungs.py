"""Values from several rungs on one scale, so that no model takes a value at step 25 for one at step 225.

A trial is told with its value at the highest rung that it has reached. Where all of these come from one rung they are
told as they are. Where they come from several, they are put in order, the higher rung first and then by value (which is
also the leaderboard's order: who got further was better where they parted), and each is told as the normal score of its
place, metric by metric (a rank transform as in Salinas et al. 2020, arXiv 1909.13595, without its quantile model).

Example:
    >>> [entry.values for entry in history], [entry.resource for entry in history]
    ([(0.1,), (0.9,), (0.2,)], [3, 9, 3])
    >>> comparable(history, ("minimize",))
    [(0.0,), (-0.967,), (0.967,)]
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

from sweeps.searchers.base import Told

if TYPE_CHECKING:
    from evaluators.base import Direction

NORMAL = NormalDist()


def top_rung(history: Sequence[Told]) -> int | None:
    """The highest rung that any trial has a value of; None before the first."""
    return max(
        (told.resource for told in history if told.state == "complete" and told.resource is not None), default=None
    )


def comparable(history: Sequence[Told], directions: Sequence[Direction]) -> list[tuple[float, ...] | None]:
    """One entry a suggestion: its metrics so that smaller is better in each, or None where it is not complete.

    Args:
        history: all suggestions in order.
        directions: of the metrics, in order.
    """
    signs = [1.0 if direction == "minimize" else -1.0 for direction in directions]
    values: list[tuple[float, ...] | None] = []
    for told in history:
        complete = told.state == "complete" and told.values is not None
        values.append(tuple(s * v for s, v in zip(signs, told.values or (), strict=True)) if complete else None)
    there = [index for index, value in enumerate(values) if value is not None]
    if len({history[index].resource for index in there}) < 2:
        return values
    scored: dict[int, list[float]] = {index: [] for index in there}
    for metric in range(len(signs)):
        keys = [(-(history[index].resource or 0), (values[index] or ())[metric]) for index in there]
        for index, score in zip(there, _normal_scores(keys), strict=True):
            scored[index].append(score)
    return [tuple(scored[index]) if index in scored else None for index in range(len(values))]


def _normal_scores(keys: Sequence[tuple[float, float]]) -> list[float]:
    """Blom's normal scores, equal keys sharing the mean of their places; the first in order gets the smallest."""
    places: dict[tuple[float, float], list[int]] = {}
    for place, key in enumerate(sorted(keys), start=1):
        places.setdefault(key, []).append(place)
    n = len(keys)
    return [NORMAL.inv_cdf((sum(places[key]) / len(places[key]) - 0.375) / (n + 0.25)) for key in keys]
