"""What an optimizer keeps of the trained numbers, and what one of its steps takes beside that. No torch.

AdamW, NAdamW and schedule-free AdamW keep two fp32 numbers of each trained one (schedule-free: z and the second moment), Prodigy
four (two moments, s, and the weights it began from), Adafactor one of each row and column of a matrix and one of each other
number. 8-bit AdamW keeps two bytes of each and an fp32 scale of every 256, twice; embeddings and weights of fewer than 4,096
numbers stay at two fp32 numbers.

Example:
    >>> state_bytes(config, shape, Trained.of(config, shape))
    7798784
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pipelines.finetune.adapter_sizes import adapter_tensors
from pipelines.finetune.shape import EMBEDDINGS, ModelShape

if TYPE_CHECKING:
    from pipelines.config import FineTuneConfig
    from pipelines.finetune.trained import Trained

_NUMBERS = {"adamw": 2, "nadamw": 2, "schedule_free_adamw": 2, "prodigy": 4}
_LEAST_8BIT, _BLOCK = 4096, 256


def state_bytes(config: FineTuneConfig, shape: ModelShape, trained: Trained) -> int:
    """Bytes that stay through a run."""
    if config.optimizer in _NUMBERS:
        return 4 * _NUMBERS[config.optimizer] * trained.parameters
    one = _factored if config.optimizer == "adafactor" else _in_8bit
    return sum(one(name, size) for name, size in _sizes(config, shape, trained))


def kept_bytes(config: FineTuneConfig, shape: ModelShape, trained: Trained) -> int:
    """Bytes in a checkpoint: schedule-free AdamW keeps the weights that it trains with beside their average."""
    return state_bytes(config, shape, trained) + aside_bytes(config, trained)


def aside_bytes(config: FineTuneConfig, trained: Trained) -> int:
    """Bytes while a model is evaluated: of schedule-free AdamW the weights that it trains with."""
    return 4 * trained.parameters if config.optimizer == "schedule_free_adamw" else 0


def step_bytes(config: FineTuneConfig, trained: Trained, device: Literal["cpu", "gpu"]) -> int:
    """Bytes of a step's temporaries.

    On a CPU they are two of the largest weight (8-bit: five, which hold the moments as fp32, the gradient and the weight). On a
    GPU, where all weights are updated together: one of everything, of NAdamW two; Prodigy, Adafactor and 8-bit AdamW update one
    weight after another there too.
    """
    if config.optimizer == "adamw_8bit":
        return 20 * trained.largest if device == "cpu" else 0
    if device == "cpu" or config.optimizer in ("prodigy", "adafactor"):
        return 8 * trained.largest
    return (8 if config.optimizer == "nadamw" else 4) * trained.parameters


def _factored(name: str, size: tuple[int, ...]) -> int:
    """Adafactor's of one weight."""
    return 4 * (math.prod(size[:-1]) + math.prod(size[:-2]) * size[-1] if len(size) > 1 else math.prod(size))


def _in_8bit(name: str, size: tuple[int, ...]) -> int:
    """8-bit AdamW's of one weight."""
    count = math.prod(size)
    if count < _LEAST_8BIT or name.endswith(EMBEDDINGS):
        return 8 * count
    return 2 * count + 8 * math.ceil(count / _BLOCK)


def _sizes(config: FineTuneConfig, shape: ModelShape, trained: Trained) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes of the trained weights."""
    for name in trained.weights:
        yield name, tuple(shape.tensors[name])
    if trained.adapter:
        yield from adapter_tensors(config, shape)
