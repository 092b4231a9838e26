"""What preference tuning minimises: the mean loss a pair, or an answer for KTO; an `Objective` of the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.finetune.batches import EpochSampler
from pipelines.finetune.data import Encoded
from pipelines.finetune.objective import BatchLoss, Tensors
from pipelines.finetune.packing import epoch_order, grouped_order
from pipelines.finetune.pairs import Preferred, whole_rows
from pipelines.finetune.preference_config import KTO, DPOConfig
from pipelines.finetune.preference_losses import Answers, Judged, kto, kto_baseline, pair_losses
from pipelines.finetune.reference import Reference
from pipelines.lm import pad, trained_logits


class Referenced(torch.utils.data.Dataset[Any]):
    """Rows with what the reference makes of their answers.

    Args:
        rows: the training set.
        of_answers: log π_ref of every answer, row after row; None for a loss without a reference.
        of_strangers: the same of the strangers.
    """

    def __init__(
        self,
        rows: Sequence[Preferred],
        of_answers: NDArray[np.float64] | None,
        of_strangers: NDArray[np.float64] | None,
    ) -> None:
        self._rows = rows
        ends = np.cumsum([0, *(len(row.answers) for row in rows)])
        zeros = np.zeros(int(ends[-1]))
        self._ends = ends
        self._known = [zeros if known is None else known for known in (of_answers, of_strangers)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> tuple[Preferred, NDArray[np.float64], NDArray[np.float64]]:
        own = slice(int(self._ends[place]), int(self._ends[place + 1]))
        return self._rows[place], self._known[0][own], self._known[1][own]


class PreferenceObjective:
    """Implements `Objective`: Σ loss over the pairs (answers, for KTO) of a micro batch, whose number is its weight.

    KTO's baseline is taken over a micro batch, so that accumulation changes it; all other losses are of single pairs.

    Args:
        rows: the training set as tokens.
        config: the trial's settings.
        reference: asked once, where the loss needs one.
        pad_token: fills up.
        seed: the run's seed.
        workers: processes whose micro batches make a step.

    Raises:
        UserError: if `sequence_len` leaves nothing of any row's answers.
    """

    def __init__(
        self,
        rows: Sequence[Preferred],
        config: DPOConfig,
        reference: Reference,
        pad_token: int,
        seed: int,
        workers: int = 1,
    ) -> None:
        kept = whole_rows(rows, config.sequence_len)
        answers, strangers = flat(kept)
        known = [
            reference.log_probabilities(some) if some and config.loss.needs_reference else None
            for some in (answers, strangers)
        ]
        self.items = Referenced(kept, *known)
        self.sampler = _sampler(kept, config, seed, workers)
        self._loss = config.loss
        self._pad_token = pad_token
        self._facts = {
            "train/cut_rows": float(sum(row.cut for row in rows)),
            "train/dropped_rows": float(len(rows) - len(kept)),
        }

    def collate(self, items: Sequence[tuple[Preferred, NDArray[np.float64], NDArray[np.float64]]]) -> Tensors:
        """Tensors of a micro batch, a row an answer, those of a pair one after the other; see `Answers`.

        Beside those of the loop: `reference` and `good`, (answers,); for KTO also `stranger_input_ids`,
        `stranger_attention_mask`, `stranger_labels` and `stranger_reference`.
        """
        rows = [row for row, _, _ in items]
        answers, strangers = flat(rows)
        batch = dict(zip(("input_ids", "attention_mask", "labels"), pad(answers, self._pad_token), strict=True))
        batch["reference"] = torch.tensor(np.concatenate([known for _, known, _ in items]), dtype=torch.float32)
        batch["good"] = torch.tensor([good for row in rows for good in row.good])
        if strangers:
            ids, mask, labels = pad(strangers, self._pad_token)
            known = np.concatenate([known for _, _, known in items])
            batch |= {"stranger_input_ids": ids, "stranger_attention_mask": mask, "stranger_labels": labels}
            batch["stranger_reference"] = torch.tensor(known, dtype=torch.float32)
        return batch

    def weight(self, batch: Tensors) -> float:
        """Pairs, or answers for KTO."""
        answers = len(batch["good"])
        return float(answers if isinstance(self._loss, KTO) else answers // 2)

    def loss(self, model: Any, batch: Tensors) -> BatchLoss:
        """Σ loss; beside it how many pairs (answers) have their rewards the right way round, and by how much."""
        policy, tokens = answer_logprobs(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
        answers = Answers(policy, batch["reference"], tokens)
        if isinstance(self._loss, KTO):
            judged = kto(self._loss, answers, batch["good"], self._baseline(model, batch))
            margins = torch.where(batch["good"], judged.rewards, -judged.rewards)
        else:
            judged = pair_losses(self._loss, answers)
            margins = pair_margins(judged)
        sums = {"reward_accuracy": float((margins > 0).sum()), "reward_margin": float(margins.sum())}
        return BatchLoss(judged.losses.sum(), float(len(judged.losses)), sums, samples=len(judged.losses))

    def facts(self) -> Mapping[str, float]:
        """Rows of which an answer was cut, and those that had nothing left of one."""
        return self._facts

    def _baseline(self, model: Any, batch: Tensors) -> torch.Tensor:
        with torch.no_grad():
            policy, _ = answer_logprobs(
                model, batch["stranger_input_ids"], batch["stranger_attention_mask"], batch["stranger_labels"]
            )
        return kto_baseline(policy - batch["stranger_reference"])


def answer_logprobs(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log π(y|x) in nats and |y| of each row, (answers,) each; only an answer's tokens reach the output layer."""
    logits, targets, owner = trained_logits(model, ids, mask, labels)
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    sums = torch.zeros(len(ids), dtype=nats.dtype, device=nats.device).index_add(0, owner, -nats)
    return sums, torch.bincount(owner, minlength=len(ids)).to(nats.dtype)


def pair_margins(judged: Judged) -> torch.Tensor:
    """Reward of the chosen answer minus the rejected one's, (pairs,)."""
    return judged.rewards[0::2] - judged.rewards[1::2]


def flat(rows: Sequence[Preferred]) -> tuple[list[Encoded], list[Encoded]]:
    """Answers and strangers, row after row."""
    return [one for row in rows for one in row.answers], [one for row in rows for one in row.strangers]


def _sampler(rows: Sequence[Preferred], config: DPOConfig, seed: int, workers: int) -> EpochSampler:
    count = len(rows)
    if config.group_by_length:
        lengths = np.array([row.length for row in rows], dtype=np.int32)
        batch = config.micro_batch_size * config.gradient_accumulation_steps * workers
        return EpochSampler(count, lambda epoch: grouped_order(lengths, batch, seed, epoch))
    return EpochSampler(count, lambda epoch: epoch_order(count, seed, epoch))
