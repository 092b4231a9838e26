"""What several workers change about the memory of each: copies that are kept whole (DDP), or parts of one model (FSDP)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipelines.finetune.config import FineTuneConfig
from pipelines.finetune.shape import ModelShape

Moments = dict[str, dict[str, int]]
_SPREAD = ("weights", "adapter", "optimizer", "gradients")


def over_workers(
    config: FineTuneConfig,
    shape: ModelShape,
    trainable: int,
    workers: int,
    states: Mapping[str, int],
    moments: Moments,
    device: str,
) -> tuple[dict[str, int], Moments]:
    """States and moments of one of several workers, from those of one alone.

    DDP keeps the gradients once more, in the buckets that are summed. FSDP keeps a part of everything, two decoder layers and
    what is outside of them whole while it computes, and all weights for an evaluation by the first worker. For a checkpoint
    that one gathers weights and the optimizer's state in turn, on a CPU.

    Args:
        config: the trial's configuration.
        shape: its base model's.
        trainable: trained parameters.
        workers: how many there are.
        states: bytes that stay, by item.
        moments: bytes that each moment adds, by item.
        device: `cpu` or `gpu`: where the model is.
    """
    if workers == 1:
        return dict(states), moments
    if config.parallel == "ddp":
        training = {
            name: extra if name in ("evaluation", "generation") else extra | {"buckets": 4 * trainable}
            for name, extra in moments.items()
        }
        return dict(states), training
    inside = sum(math.prod(size) for name, size in shape.linears.items() if shape.layer_of(name) is not None)
    a_layer = inside // max(1, shape.layers)
    computing = 4 * min(shape.parameters, 2 * a_layer + max(0, shape.parameters - inside))
    whole = max(4 * shape.parameters, states.get("optimizer", 0) if device == "cpu" else 0)
    evaluated: Moments = {"evaluation": {}, **moments}
    own = {name: -(-size // workers) if name in _SPREAD else size for name, size in states.items()}
    return own, {
        name: {item: -(-size // workers) if item in _SPREAD else size for item, size in extra.items()}
        | {"gathered": whole if name in ("evaluation", "generation") else computing}
        for name, extra in evaluated.items()
    }
