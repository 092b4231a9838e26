"""Slices of a step: the workers' micro batches are together those of one process, and all compute equally often."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pipelines.finetune.batches import EpochSampler
from pipelines.finetune.packing import epoch_order
from pipelines.finetune.slices import COUNTS, SlicedItems, StepSlices, collate_slice


def slices(rows: int, micro: int, accumulation: int, size: int, epoch: int = 0) -> list[StepSlices]:
    """One of each worker."""
    made = []
    for rank in range(size):
        sampler = EpochSampler(rows, lambda epoch: epoch_order(rows, 7, epoch))
        made.append(StepSlices(sampler, micro=micro, accumulation=accumulation, rank=rank, size=size))
        made[-1].sampler.set_epoch(epoch)
    return made


def steps(batches: list[list[int]], accumulation: int) -> list[list[list[int]]]:
    return [batches[at : at + accumulation] for at in range(0, len(batches), accumulation)]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(("micro", "accumulation"), [(1, 1), (2, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("rows", [1, 2, 13, 24, 25])
def test_a_step_of_all_workers_is_the_step_of_one(rows: int, micro: int, accumulation: int, size: int) -> None:
    (alone,) = slices(rows, micro, accumulation * size, 1, epoch=3)
    whole = steps(list(alone), accumulation * size)
    each = [list(worker) for worker in slices(rows, micro, accumulation, size, epoch=3)]
    assert [len(batches) for batches in each] == [len(worker) for worker in slices(rows, micro, accumulation, size)]
    assert len({len(batches) for batches in each}) == 1
    theirs = [steps(batches, accumulation) for batches in each]
    assert len(whole) == len(theirs[0]) == math.ceil(len(each[0]) / accumulation)
    for number, step in enumerate(whole):
        parts = [batch for worker in theirs for batch in worker[number] if batch[0] >= 0]
        assert sorted(parts) == sorted(step)


def test_what_only_fills_up_is_a_real_batch() -> None:
    first, second = (list(worker) for worker in slices(10, 4, 1, 2))
    assert len(first) == len(second) == 2
    assert second[-1] == [-1 - item for item in first[-1]]


def test_a_batch_tells_whether_it_counts() -> None:
    items = SlicedItems(["a", "b", "c"])

    def collate(found: Any) -> dict[str, Any]:
        return {"joined": "".join(found)}

    assert collate_slice([items[0], items[2]], collate) == {"joined": "ac", COUNTS: torch.tensor(1.0)}
    assert collate_slice([items[-3], items[-1]], collate) == {"joined": "ca", COUNTS: torch.tensor(0.0)}
