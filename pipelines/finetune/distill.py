"""Distillation: a student learns from rows and from a teacher's answers on them; the pipeline `distill`.

The teacher reads every micro batch once, in the same precision, at the positions that are trained on. Its answers are not
kept: on SmolLM2 with a student of 4 layers they are a matter of a forward pass, where those of a vocabulary would fill a
disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipelines.config import FineTuneConfig
from pipelines.finetune.data import IGNORED
from pipelines.finetune.distill_config import DistillConfig, HiddenLoss, NoHidden, NoSoftLoss
from pipelines.finetune.distill_losses import Comparison, divergence
from pipelines.finetune.layer_map import mapped
from pipelines.finetune.layers import decoder_layers, listening
from pipelines.finetune.model import LoadedModel
from pipelines.finetune.objective import BatchLoss, Objective, Tensors, TokenObjective
from pipelines.finetune.pipeline import FineTunePipeline
from pipelines.finetune.rows import KeptRows
from pipelines.finetune.teacher import Teacher, load_teacher, refuse_other_tokens
from pipelines.lm import trained_logits
from pipelines.splits import Splits
from pipelines.stage import Task


class DistillObjective:
    """The mean over trained-on tokens of the weighted sum of a hard, a soft and a hidden loss; implements `Objective`.

    Args:
        tokens: rows, order and tensors, as those of SFT.
        config: the trial's settings.
        teacher: None where nothing is compared with one.
        comparison: of hidden states; None without.

    Attributes:
        comparison: as given.
    """

    def __init__(
        self, tokens: TokenObjective, config: DistillConfig, teacher: Teacher | None, comparison: Comparison | None
    ) -> None:
        self._tokens, self._config, self._teacher, self.comparison = tokens, config, teacher, comparison
        self.items, self.sampler = tokens.items, tokens.sampler
        self.collate, self.weight, self.facts = tokens.collate, tokens.weight, tokens.facts

    def loss(self, model: Any, batch: Tensors) -> BatchLoss:
        """Nats of the three losses over the trained-on tokens; see `Objective.loss`."""
        config, pairs = self._config, {} if self.comparison is None else self.comparison.pairs
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        with listening(model, list(pairs)) as heard:
            logits, targets, owner = trained_logits(model, ids, mask, labels)
        parts: dict[str, tuple[float, torch.Tensor]] = {}
        with torch.autocast(logits.device.type, enabled=False):
            hard = torch.nn.functional.cross_entropy(
                logits if config.hard_weight else logits.detach(), targets, reduction="sum"
            )
            parts["hard_loss"] = config.hard_weight, hard
        if self._teacher is not None:
            theirs, taught = self._teacher.answer(ids, mask, labels, sorted(set(pairs.values())))
            with torch.autocast(logits.device.type, enabled=False):
                if not isinstance(config.loss, NoSoftLoss):
                    width = min(logits.shape[-1], theirs.shape[-1])
                    soft = divergence(logits[:, :width], theirs[:, :width], config.loss).sum()
                    parts["soft_loss"] = config.loss.weight, soft
                if self.comparison is not None and not isinstance(config.hidden, NoHidden):
                    own, others = _picked(heard, labels), _picked(taught, labels)
                    parts["hidden_loss"] = config.hidden.weight, self.comparison.total(own, others, owner)
        total = torch.stack([weight * value for weight, value in parts.values() if weight]).sum()
        return BatchLoss(
            total, float(targets.numel()), {name: float(value.detach()) for name, (_, value) in parts.items()}
        )


class DistillPipeline(FineTunePipeline):
    """Implements `pipelines.stage.Pipeline`; the teacher stays in memory between tasks, as the student's base does."""

    def __init__(self) -> None:
        super().__init__()
        self._rows = KeptRows()
        self._teacher: tuple[tuple[Any, ...], Teacher] | None = None

    def objective(
        self, config: FineTuneConfig, splits: Splits, loaded: LoadedModel, model: Any, task: Task
    ) -> DistillObjective:
        """See `FineTunePipeline.objective`."""
        assert isinstance(config, DistillConfig), f"a distillation's configuration, but got {config.type}"
        device = next(loaded.model.parameters()).device
        teacher = self._answering(config, task.services.cache, str(device)) if config.needs_teacher else None
        if teacher is not None:
            refuse_other_tokens(teacher, loaded)
        comparison = None
        if teacher is not None and not isinstance(config.hidden, NoHidden):
            comparison = compare(config.hidden, loaded.model, teacher.model).to(device)
        rows = self._rows.of(splits, loaded, config.sequence_len)
        pad = loaded.tokenizer.pad_token_id
        tokens = TokenObjective(rows, config, model, pad, task.seed, task.total, task.rank.size)
        return DistillObjective(tokens, config, teacher, comparison)

    def beside(self, objective: Objective) -> torch.nn.Module | None:
        """Projections and critics; see `FineTunePipeline.beside`."""
        assert isinstance(objective, DistillObjective), "the objective that this pipeline made"
        return objective.comparison

    def _answering(self, config: DistillConfig, cache: str | None, device: str) -> Teacher:
        key = (config.teachers, config.trust_remote_code, device, cache)
        if self._teacher is None or self._teacher[0] != key:
            self._teacher = None
            place = self._kept(cache).cache
            made = load_teacher(config.teachers, place, trust_remote_code=config.trust_remote_code, device=device)
            self._teacher = (key, made)
        return self._teacher[1]


def compare(loss: HiddenLoss, student: Any, teacher: Any) -> Comparison:
    """What compares hidden states of two models.

    Raises:
        UserError: if the map names a layer that one of them lacks.
    """
    assert not isinstance(loss, NoHidden), "something is compared"
    counts = [len(decoder_layers(model)[1]) for model in (student, teacher)]
    widths = [model.config.get_text_config().hidden_size for model in (student, teacher)]
    return Comparison(loss, mapped(loss.layer_map, *counts), *widths)


def _picked(states: Mapping[int, torch.Tensor], labels: torch.Tensor) -> dict[int, torch.Tensor]:
    """Hidden states (batch, seq, hidden) at the positions that predict trained-on tokens, (n, hidden)."""
    wanted = labels[:, 1:] != IGNORED
    return {layer: state[:, :-1][wanted] for layer, state in states.items()}
