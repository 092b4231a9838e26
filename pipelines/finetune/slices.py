"""Each worker's micro batches of a step: cut from the one order, so that together they are the step of a single process.

A step of w workers with a micro batches each is the step of one process with a * w: worker r takes its micro batches r, r + w,
r + 2w, ... Where an epoch ends in the middle of a step some workers have one micro batch less; they get one that is computed
like any other and counts nothing, so that all of them always compute equally often.

Example:
    >>> slices = StepSlices(sampler, micro=2, accumulation=1, rank=1, size=2)
    >>> [batch for batch in slices]  # of 10 rows in order; the last batch only fills up
    [[2, 3], [6, 7], [-9, -10]]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pipelines.finetune.batches import EpochSampler

COUNTS = "counts"
"""What a fed batch carries beside the objective's tensors: 1, or 0 where it only fills up."""


class StepSlices(torch.utils.data.Sampler[list[int]]):
    """A worker's micro batches of an epoch, as places in the items; `-1 - place` in a batch that only fills up.

    Args:
        sampler: the order of the whole epoch.
        micro: items of a micro batch.
        accumulation: micro batches of a worker in a step.
        rank: the worker's number.
        size: workers.
    """

    def __init__(self, sampler: EpochSampler, *, micro: int, accumulation: int, rank: int, size: int) -> None:
        self.sampler = sampler
        self.batch_size = micro
        self.drop_last = False
        self._step = accumulation * size
        self._accumulation = accumulation
        self._rank, self._size = rank, size

    def __len__(self) -> int:
        batches = math.ceil(len(self.sampler) / self.batch_size)
        whole, left = divmod(batches, self._step)
        return whole * self._accumulation + math.ceil(left / self._size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        batches = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        for place in range(self._rank, len(self) * self._size, self._size):
            yield batches[place] if place < len(batches) else [-1 - item for item in batches[-1]]


class SlicedItems(torch.utils.data.Dataset[tuple[Any, bool]]):
    """Items by the places that `StepSlices` gives, each with whether it counts."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> tuple[Any, bool]:
        return self._items[place if place >= 0 else -1 - place], place >= 0


def collate_slice(
    pairs: Sequence[tuple[Any, bool]], collate: Callable[[Sequence[Any]], dict[str, Any]]
) -> dict[str, Any]:
    """The objective's tensors of a batch, and whether it counts."""
    return {**collate([item for item, _ in pairs]), COUNTS: torch.tensor(float(pairs[0][1]))}
