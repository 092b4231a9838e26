"""Which rows go together: packed sequences and micro batches of similar length, from the rows' lengths alone. No torch.

Packing is best fit decreasing (Ding et al. 2024, arXiv 2404.10830, "Fewer Truncations Improve Language Modeling"), which
never cuts a row, over windows of shuffled rows, so that what stands together is not decided by length alone. Rows are
packed once a run; the order of the packed sequences is another one in every epoch. Left out of the paper: splitting
rows that are longer than a sequence (they are cut before).

Example:
    >>> best_fit_decreasing([5, 3, 2, 4], room=7)
    [[0, 2], [3, 1]]
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.int64]
WINDOW = 4096
"""Rows that are packed together; a larger window pads less and mixes less."""
GROUPED = 50
"""Batches whose rows are sorted by length together."""


def best_fit_decreasing(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows (places in `lengths`) of each packed sequence: longest first, each where the least room is left over.

    Args:
        lengths: tokens of each row, each from 1 to `room`.
        room: tokens of a packed sequence.

    Raises:
        ValueError: if a row is longer than `room`, or empty.
    """
    packs: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, pack), in order
    for row in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        length = int(lengths[row])
        if not 0 < length <= room:
            raise ValueError(f"a row to pack must have 1 to {room} tokens, but got {length}")
        at = bisect.bisect_left(free, (length, -1))
        if at < len(free):
            left, pack = free.pop(at)
            packs[pack].append(row)
        else:
            left, pack = room, len(packs)
            packs.append([row])
        if left > length:
            bisect.insort(free, (left - length, pack))
    return packs


def pack(lengths: NDArray[np.int32], room: int, seed: int) -> list[Order]:
    """Rows of each packed sequence, every row once; a pure function of its arguments.

    Args:
        lengths: tokens of each row, (rows,).
        room: tokens of a packed sequence.
        seed: the run's seed; it decides which rows share a window.
    """
    order = np.random.default_rng([seed, len(lengths)]).permutation(len(lengths))
    packs: list[Order] = []
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        packs += [window[places] for places in best_fit_decreasing(lengths[window].tolist(), room)]
    return packs


def epoch_order(count: int, seed: int, epoch: int) -> Order:
    """The order of rows, or of packed sequences, in an epoch, (count,)."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def fed(count: int, batch: int, total: int) -> int:
    """Items that a run of so many optimizer steps is fed; an epoch's last step has what is left over.

    Args:
        count: items of an epoch.
        batch: items of a step.
        total: steps.
    """
    epochs, steps = divmod(total, math.ceil(count / batch))
    return epochs * count + min(steps * batch, count)


def phased_orders(phases: NDArray[np.int32], total: int, seed: int) -> Order:
    """Items in an order that ends one phase before the next begins, over a whole run.

    Each phase gets its share of the run, and goes through its items again and again in an order of its own each time. Over
    whole epochs every item is fed as often as with all shuffled together; of a part of an epoch each phase has its part.

    Args:
        phases: the phase of each item, (items,).
        total: items that the run is fed.
        seed: the run's seed.

    Returns:
        (epochs, items); what is past `total` is not fed.
    """
    count = len(phases)
    epochs = max(1, math.ceil(total / count))
    whole, rest = divmod(total, count)
    members = [np.flatnonzero(phases == phase) for phase in np.unique(phases)]
    exact = [rest * len(own) / count for own in members]
    parts = [math.floor(share) for share in exact]
    for place in sorted(range(len(members)), key=lambda k: (parts[k] - exact[k], k))[: rest - sum(parts)]:
        parts[place] += 1
    first: list[Order] = []
    left: list[Order] = []
    for phase, (own, part) in enumerate(zip(members, parts, strict=True)):
        draws = [own[np.random.default_rng([seed, epoch, phase]).permutation(len(own))] for epoch in range(epochs)]
        order = np.concatenate(draws)
        first.append(order[: whole * len(own) + part])
        left.append(order[whole * len(own) + part :])
    return np.concatenate([*first, *left]).reshape(epochs, count)


def grouped_order(lengths: NDArray[np.int32], batch: int, seed: int, epoch: int) -> Order:
    """An epoch's order in which each `batch` rows in a row are of similar length; what is left over comes last.

    Rows are shuffled, sorted by length within windows of `GROUPED` batches, and the batches shuffled again, so that long
    ones don't stand together. Rows of a batch stay sorted: parts of it are of similar length too.

    Args:
        lengths: tokens of each row, (rows,).
        batch: rows of an optimizer step.
        seed: the run's seed.
        epoch: the epoch, from 0.

    Returns:
        Every row once, (rows,).
    """
    random = np.random.default_rng([seed, epoch])
    rows = random.permutation(len(lengths))
    whole = len(rows) - len(rows) % batch
    batches: list[Order] = []
    for start in range(0, whole, GROUPED * batch):
        window = rows[start : min(start + GROUPED * batch, whole)]
        ordered = window[np.argsort(-lengths[window], kind="stable")]
        batches += list(ordered.reshape(-1, batch))
    mixed = [batches[place] for place in random.permutation(len(batches))]
    return np.concatenate([*mixed, rows[whole:]])
