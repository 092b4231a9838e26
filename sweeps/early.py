"""When the scoring of a candidate may be cut short: a sequential paired test on blocks of rows.

All rows decide by the sign of the sum of D_g, the weighted differences to the one that must be beaten, over the groups g of
rows. After m of G groups in random order the sum is estimated by G times their mean; without replacement its error is
G·s/√m·√(1 - m/G). The candidate is hopeless where even the end of the interval in its favour is a loss. The level is divided
by the number of looks (Bonferroni), so that over all of them a candidate that all rows would have let in is cut short with
probability `alpha` at most, up to the t approximation; one made-up group as far in the candidate's favour as the farthest
seen is added, so that a few equal rows prove nothing. It can only turn an accept into a reject, never the other way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from evaluators.base import Direction, ItemSet

FEWEST = 10
"""Groups before the first look."""


def shuffled(groups: Sequence[str], seed: int) -> list[int]:
    """Rows in a seeded random order of their groups; a group's rows stay together."""
    names = sorted(set(groups))
    order = {names[i]: place for place, i in enumerate(np.random.default_rng(seed).permutation(len(names)))}
    return sorted(range(len(groups)), key=lambda row: (order[groups[row]], row))


def hopeless(
    items: NDArray[Any], beat: NDArray[Any], item_set: ItemSet, rows: int, alpha: float, direction: Direction
) -> float | None:
    """How much worse (in the metric's unit, positive) the candidate is where there is no hope; None where there is.

    Args:
        items: (seen,) the candidate's item scores.
        beat: (seen,) those of the one to beat, on the same rows.
        item_set: of the rows seen; weights and groups.
        rows: rows of the whole split.
        alpha: level of this look.
        direction: which way is better.
    """
    sign = 1.0 if direction == "minimize" else -1.0
    difference = sign * (np.asarray(items, dtype=np.float64) - np.asarray(beat, dtype=np.float64))
    weights = np.ones_like(difference) if item_set.weights is None else np.asarray(item_set.weights, dtype=np.float64)
    if not np.isfinite(difference).all():
        return None
    _, index = np.unique(np.asarray(item_set.groups or item_set.ids, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(index, weights=weights * difference)
    m = len(sums)
    total = m * rows / len(difference)
    if m < FEWEST or m >= total:
        return None
    mean = float(sums.mean())
    guarded = np.append(sums, -np.abs(sums).max())
    error = float(guarded.std(ddof=1)) / math.sqrt(m) * math.sqrt(1.0 - m / total)
    if mean - float(special.stdtrit(m - 1, 1.0 - alpha)) * error <= 0.0:
        return None
    return float(sums.sum() / weights.sum())
