"""What the training loop is fed: rows or packed sequences, their order in each epoch, and their tensors.

A packed sequence holds whole rows one after another. Each row's positions begin at 0, from which Transformers builds a
block-diagonal attention mask, and the first token of a row is no target, so that no row sees or predicts another.
Models that ignore positions when they mix tokens (state-space models, some linear attention) can't be packed;
`refuse_leaks` finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.finetune.data import IGNORED, Encoded
from pipelines.finetune.packing import Order, epoch_order, fed, grouped_order, pack, phased_orders
from pipelines.finetune.rows import TrainRows
from pipelines.lm import pad, trained_logits
from pipelines.stage import UserError

_PROBED = 48
"""Tokens of each of the rows that `refuse_leaks` compares."""
_TOLERANCE = 1e-3


class TrainItems(torch.utils.data.Dataset[list[Encoded]]):
    """The training loop's items: a row each, or the rows of a packed sequence each.

    Args:
        rows: the training set.
        packs: rows of each packed sequence; None for one row each.
    """

    def __init__(self, rows: Sequence[Encoded], packs: Sequence[NDArray[Any]] | None = None) -> None:
        self._rows = rows
        self._packs = packs

    def __len__(self) -> int:
        return len(self._rows) if self._packs is None else len(self._packs)

    def __getitem__(self, place: int) -> list[Encoded]:
        if self._packs is None:
            return [self._rows[place]]
        return [self._rows[int(row)] for row in self._packs[place]]


class EpochSampler(torch.utils.data.Sampler[int]):
    """Items in an order that depends on the epoch alone."""

    def __init__(self, count: int, order: Callable[[int], Order]) -> None:
        self._count = count
        self._order = order
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return iter(self._order(self._epoch).tolist())


def build_items(
    rows: TrainRows, *, seed: int, batch: int, room: int, packed: bool, grouped: bool, total: int = 1
) -> tuple[TrainItems, EpochSampler]:
    """What a run is fed, and in which order: a pure function of the rows' lengths, the seed and the epoch.

    Args:
        rows: the training set.
        seed: the run's seed.
        batch: items of an optimizer step, so that halving the micro batch leaves the order as it is.
        room: tokens of a packed sequence.
        packed: pack rows into sequences.
        grouped: steps, and micro batches in them, of rows of similar length.
        total: optimizer steps of the whole run; it matters to rows of several phases.
    """
    packs, phases = (None, rows.phases) if not packed else _packs(rows, room, seed)
    items = TrainItems(rows.rows, packs)
    if phases is not None:
        orders = phased_orders(phases, fed(len(items), batch, total), seed)
        return items, EpochSampler(len(items), lambda epoch: orders[epoch])
    if grouped:
        return items, EpochSampler(len(items), lambda epoch: grouped_order(rows.lengths, batch, seed, epoch))
    return items, EpochSampler(len(items), lambda epoch: epoch_order(len(items), seed, epoch))


def _packs(rows: TrainRows, room: int, seed: int) -> tuple[list[Order], NDArray[np.int32] | None]:
    """Packed sequences and the phase of each; none holds rows of two."""
    if rows.phases is None:
        return pack(rows.lengths, room, seed), None
    packs: list[Order] = []
    phases: list[int] = []
    for phase in np.unique(rows.phases).tolist():
        own = np.flatnonzero(rows.phases == phase)
        packs += [own[places] for places in pack(rows.lengths[own], room, seed)]
        phases += [phase] * (len(packs) - len(phases))
    return packs, np.array(phases, dtype=np.int32)


def collate(items: Sequence[list[Encoded]], pad_token: int, *, packed: bool = False) -> dict[str, torch.Tensor]:
    """Tensors of a micro batch, each (batch, longest), padded on the right.

    Args:
        items: rows of each item; one each where nothing is packed.
        pad_token: fills up.
        packed: also give `position_ids`, each row's from 0, and 0 for padding, so that padding sees only itself.

    Returns:
        `input_ids`, `attention_mask`, `labels` and, packed, `position_ids`.
    """
    ids, mask, labels = pad([_joined(item) for item in items], pad_token)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if packed:
        positions = torch.zeros_like(ids)
        for at, item in enumerate(items):
            counted = torch.cat([torch.arange(len(row.ids)) for row in item])
            positions[at, : len(counted)] = counted
        batch["position_ids"] = positions
    return batch


def refuse_leaks(model: Any, rows: Sequence[Encoded], pad_token: int) -> None:
    """Compare a packed pair of rows with the same rows apart, in the model that is about to be trained.

    Raises:
        UserError: if a row's logits depend on the row before it in a packed sequence.
    """
    device = next(model.parameters()).device
    first = Encoded(rows[0].ids[:_PROBED], rows[0].ids[:_PROBED], cut=False)
    last = Encoded(rows[-1].ids[:_PROBED], rows[-1].ids[:_PROBED], cut=False)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            apart = torch.cat([_logits(model, [[row]], pad_token, device) for row in (first, last)])
            together = _logits(model, [[first, last]], pad_token, device)
    finally:
        model.train(training)
    difference = float((apart - together).abs().max() / apart.abs().max().clamp(min=1e-6))
    if not difference < _TOLERANCE:
        raise UserError(
            "sample_packing: in a packed sequence this model's rows would see each other (its answers differ by "
            f"{difference:.2g} of their size); delete sample_packing, group_by_length saves padding too"
        )


def _logits(model: Any, items: list[list[Encoded]], pad_token: int, device: torch.device) -> torch.Tensor:
    batch = {name: tensor.to(device) for name, tensor in collate(items, pad_token, packed=True).items()}
    positions = batch["position_ids"] if len(items[0]) > 1 else None
    return trained_logits(model, batch["input_ids"], batch["attention_mask"], batch["labels"], positions)[0]


def _joined(item: list[Encoded]) -> Encoded:
    """Rows one after another; the first token of none is a target."""
    if len(item) == 1:
        return item[0]
    ids = [token for row in item for token in row.ids]
    labels = [label for row in item for label in (IGNORED, *row.labels[1:])]
    return Encoded(ids, labels, cut=False)
