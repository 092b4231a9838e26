"""What a fine-tune minimises: the items it is fed, in which order, their tensors, and the loss of a micro batch.

The training loop (`Trainer`) knows no more than this. A step's loss is Σ total / Σ weight over all of its micro batches, so
that accumulation never changes what is minimised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pipelines.finetune.batches import EpochSampler, build_items, collate, refuse_leaks
from pipelines.finetune.data import IGNORED
from pipelines.lm import trained_logits

if TYPE_CHECKING:
    from pipelines.config import FineTuneConfig
    from pipelines.finetune.rows import TrainRows

Tensors = dict[str, torch.Tensor]
"""A micro batch; `input_ids` and `attention_mask`, (rows, longest), are among them."""


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a micro batch.

    Attributes:
        total: summed over what counts, a scalar with its gradient.
        weight: how much counts: as `Objective.weight` says.
        sums: what else is told of a step, summed over what counts: `name` becomes telemetry `train/<name>`, divided by
            the weight.
        samples: rows of train in it, where these are not the rows of `input_ids`.
    """

    total: torch.Tensor
    weight: float
    sums: Mapping[str, float] = field(default_factory=dict)
    samples: int | None = None


class Objective(Protocol):
    """What a fine-tune minimises.

    Attributes:
        items: what the loop is fed, one after another.
        sampler: their order, a pure function of seed and epoch.
    """

    items: torch.utils.data.Dataset[Any]
    sampler: EpochSampler

    def collate(self, items: Sequence[Any]) -> Tensors:
        """Tensors of a micro batch."""
        ...

    def weight(self, batch: Tensors) -> float:
        """What a micro batch counts for in its step's mean, without running the model: trained-on tokens, pairs, ..."""
        ...

    def loss(self, model: Any, batch: Tensors) -> BatchLoss:
        """Run the model on a micro batch."""
        ...

    def facts(self) -> Mapping[str, float]:
        """Telemetry that is the same all through a run."""
        ...


class TokenObjective:
    """Supervised fine-tuning: the mean over trained-on tokens; implements `Objective`.

    Args:
        rows: the training set.
        config: the trial's settings.
        model: what is about to be trained; asked only whether packed rows would see each other.
        pad_token: fills up.
        seed: the run's seed.
        total: optimizer steps of the whole run.
        workers: processes whose micro batches make a step.

    Raises:
        UserError: if rows are to be packed, and would see each other.
    """

    def __init__(
        self,
        rows: TrainRows,
        config: FineTuneConfig,
        model: Any,
        pad_token: int,
        seed: int,
        total: int,
        workers: int = 1,
    ) -> None:
        self._rows = rows
        self.items, self.sampler = build_items(
            rows,
            seed=seed,
            batch=config.micro_batch_size * config.gradient_accumulation_steps * workers,
            room=config.sequence_len,
            packed=config.packs,
            grouped=config.group_by_length,
            total=total,
        )
        self.collate = partial(collate, pad_token=pad_token, packed=config.packs)
        if config.packs:
            refuse_leaks(model, rows.rows, pad_token)

    def weight(self, batch: Tensors) -> float:
        """Trained-on tokens; nothing predicts a row's first one."""
        return float((batch["labels"][:, 1:] != IGNORED).sum())

    def loss(self, model: Any, batch: Tensors) -> BatchLoss:
        """Nats over the trained-on tokens; only these reach the output layer."""
        logits, targets, _ = trained_logits(
            model, batch["input_ids"], batch["attention_mask"], batch["labels"], batch.get("position_ids")
        )
        nats = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return BatchLoss(nats, float(targets.numel()), samples=rows_in(batch))

    def facts(self) -> Mapping[str, float]:
        """Rows that were cut, and those that had nothing left to train on."""
        return {"train/cut_rows": float(self._rows.cut), "train/dropped_rows": float(self._rows.dropped)}


def rows_in(batch: Tensors) -> int:
    """Rows of train in a micro batch: of a packed sequence each row's positions begin at 0."""
    positions = batch.get("position_ids")
    if positions is None:
        return len(batch["input_ids"])
    return int(((positions == 0) & batch["attention_mask"].bool()).sum())
