"""What a teacher adds to a run's memory: its weights, its forward pass, and the logits of both. No torch.

Notation as in `pipelines.finetune.memory`. Tensors of n v numbers that are alive at once, the most being in the forward pass
of the loss, where both models' logits are still there: for `kl` the logits of both, the two log-softmaxes, that of the hard
loss, and three temporaries; for `jsd` also the mixture and what it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.config import DistillConfig, FineTuneConfig
from pipelines.finetune.shape import ModelShape

LOGITS = {"none": 12, "kl": 32, "jsd": 44}
"""Bytes of a trained-on token and entry of the vocabulary, by the soft loss."""


def logit_bytes(config: FineTuneConfig) -> int:
    """Bytes at the loss, of a trained-on token and an entry of the vocabulary."""
    return LOGITS[config.loss.type] if isinstance(config, DistillConfig) else LOGITS["none"]


def teacher_states(config: FineTuneConfig, shape: ModelShape, teachers: Sequence[ModelShape]) -> dict[str, int]:
    """What stays through the run: the teachers' fp32 weights; of what is trained beside the student all but its gradient."""
    if not teachers:
        return {}
    return {"teacher": 4 * sum(one.parameters for one in teachers), "beside": 12 * beside(config, shape, teachers)}


def beside(config: FineTuneConfig, shape: ModelShape, teachers: Sequence[ModelShape]) -> int:
    """Parameters of projections and critics: one of the student's width x the teacher's for each compared layer."""
    if not isinstance(config, DistillConfig) or config.hidden.type == "none" or not teachers:
        return 0
    width = teachers[0].hidden
    if config.hidden.type != "mi_alpha" and width == shape.hidden:
        return 0
    layers = shape.layers if isinstance(config.hidden.layer_map, str) else len(config.hidden.layer_map)
    return layers * width * shape.hidden


def teacher_pass(config: FineTuneConfig, teachers: Sequence[ModelShape], tokens: int, trained: int) -> dict[str, int]:
    """The largest teacher's forward pass: one layer's tensors at a time, then its logits and their log-softmax."""
    b = 4 if config.precision == "fp32" else 2
    layer = max(b * tokens * (3 * one.intermediate + 4 * one.hidden) for one in teachers)
    return {"passing": max(layer, max(8 * trained * one.vocabulary for one in teachers))}
