"""What each axis of a sweep is worth: switching its value, averaged over the rest, on the questions that all trials answered.

For an axis with a few values, y_ti = c + a_v(t),i + (the other axes' values) + e is fitted to every item i by least squares
over the trials t; a is the effect of value v against the axis's first one. It is a linear combination of the trials'
items, so an effect has items of its own, and its error is theirs, clustered as everywhere. On a whole grid the fit is the
plain average of the differences of matched trials; elsewhere it supposes that effects add up. An axis that only one arm of
a choice has is fitted on that arm's trials, and averaged over where the arms themselves are compared. The interval covers the choice of items, not of configurations, and Holm goes
over all effects printed.

Trials stopped early have answered fewer items; an axis is compared on what all of its trials have.

Example:
    >>> [(effect.path, effect.value, round(effect.difference, 2)) for effect in effects(trials, "maximize")]
    [('retrieve.type', 'bm25', 0.11), ('chunk.size', '1600', 0.23)]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.base import Direction, ItemSet
from evaluators.statistics import holm, paired
from sweeps.events import StoredItems
from sweeps.ledger import number

MOST_VALUES = 8
"""An axis with more values is a range; the report's importance is for those."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """A trial's parameters and its item scores."""

    parameters: Mapping[str, Any]
    items: StoredItems


@dataclass(frozen=True)
class Effect:
    """One value of an axis against the axis's first value.

    Attributes:
        path: the axis.
        base: its first value, as text.
        value: the other one, as text.
        difference: value minus base, in the metric's unit.
        se: its error over items.
        low: lower end of the interval.
        high: upper end.
        p: adjusted by Holm over all effects.
        n: items.
        trials: that the fit is over.
        better: whether `value` is shown to be better (1), worse (-1), or neither (0).
    """

    path: str
    base: str
    value: str
    difference: float
    se: float
    low: float
    high: float
    p: float
    n: int
    trials: int
    better: int = 0

    def record(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes null."""
        return {key: number(value) if isinstance(value, float) else value for key, value in self.__dict__.items()}


def effects(trials: Sequence[Trial], direction: Direction, *, alpha: float = 0.05) -> list[Effect]:
    """The effects of all axes with 2 to 8 values, the largest first; empty where nothing can be told.

    Args:
        trials: those that have item scores; all items in one order.
        direction: of the metric.
        alpha: 1 - coverage of the intervals.
    """
    known = [{path: _text(value) for path, value in trial.parameters.items()} for trial in trials]
    found: list[Effect] = []
    for path in dict.fromkeys(path for row in known for path in row):
        inside = [i for i, row in enumerate(known) if path in row]
        values = list(dict.fromkeys(known[i][path] for i in inside))
        if 2 <= len(values) <= MOST_VALUES:
            found += _of_axis(path, values, [known[i] for i in inside], [trials[i].items for i in inside], alpha)
    adjusted = holm([effect.p for effect in found])
    told = [_judged(effect, p, direction, alpha) for effect, p in zip(found, adjusted, strict=True)]
    return sorted(told, key=lambda effect: -abs(effect.difference))


def _of_axis(
    path: str, values: Sequence[str], rows: Sequence[Mapping[str, str]], stored: Sequence[StoredItems], alpha: float
) -> list[Effect]:
    common = _common(stored)
    if common is None:
        return []
    item_set, scores = common
    design, places = _design(path, values, rows)
    solution = np.linalg.pinv(design)
    found = []
    for value, place in places.items():
        if not _estimable(design, place):
            continue
        items = np.round(solution[place] @ scores, 12)  # so that ties are ties in whatever order the trials come
        result = paired(items, np.zeros_like(items), item_set, alpha=alpha)
        found.append(
            Effect(
                path,
                values[0],
                value,
                result.difference,
                result.se,
                result.low,
                result.high,
                result.p,
                result.n,
                len(rows),
            )
        )
    return found


def _common(stored: Sequence[StoredItems]) -> tuple[ItemSet, Floats] | None:
    """The items that all trials have, the first ones of each, and (trials, items) scores; None where they differ."""
    count = min(len(one.values) for one in stored)
    first = stored[0].item_set
    head = ItemSet(
        first.ids[:count],
        None if first.weights is None else first.weights[:count],
        None if first.groups is None else first.groups[:count],
    )
    if any(one.item_set.ids[:count] != head.ids for one in stored):
        return None
    return head, np.array([one.values[:count] for one in stored], dtype=np.float64)


def _design(path: str, values: Sequence[str], rows: Sequence[Mapping[str, str]]) -> tuple[Floats, dict[str, int]]:
    """(trials, columns): ones, the axis's values but the first, every other axis's values but its first."""
    columns = [np.ones(len(rows))]
    places = {}
    for value in values[1:]:
        places[value] = len(columns)
        columns.append(np.array([float(row[path] == value) for row in rows]))
    for other in dict.fromkeys(name for row in rows for name in row if name != path):
        seen = list(dict.fromkeys(row.get(other, "") for row in rows))
        if len(seen) <= MOST_VALUES and not _opened_by(path, other, rows):
            columns += [np.array([float(row.get(other, "") == value) for row in rows]) for value in seen[1:]]
    return np.column_stack(columns), places


def _opened_by(path: str, other: str, rows: Sequence[Mapping[str, str]]) -> bool:
    """Whether it is the axis's value that decides if the other axis is there: then the fit averages over the other's."""
    there = {(row[path], other in row) for row in rows}
    return len({present for _, present in there}) == 2 and len(there) == len({value for value, _ in there})


def _estimable(design: Floats, place: int) -> bool:
    """Whether the column is no combination of the others: else its effect can't be told from theirs."""
    rank = np.linalg.matrix_rank(design)
    return bool(np.linalg.matrix_rank(np.delete(design, place, axis=1)) < rank)


def _judged(effect: Effect, p: float, direction: Direction, alpha: float) -> Effect:
    shown = not math.isnan(p) and p <= alpha
    up = (effect.difference > 0) == (direction == "maximize")
    return replace(effect, p=p, better=0 if not shown else 1 if up else -1)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def lines(found: Sequence[Effect], metric: str) -> list[list[str]]:
    """Rows for people: axis, change, difference with half its interval, p, items."""
    rows = []
    for effect in found:
        half = (effect.high - effect.low) / 2
        size = f"{effect.difference:+.3g}" + ("" if math.isnan(half) else f" ± {half:.2g}")
        word = {1: "better", -1: "worse", 0: ""}[effect.better]
        p = "" if math.isnan(effect.p) else f"{effect.p:.3g}"
        rows.append([effect.path, f"{effect.base} -> {effect.value}", size, p, word, str(effect.n), str(effect.trials)])
    return rows
