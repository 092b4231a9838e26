"""What ran out of memory, remembered: whoever needs at least as much begins with the micro batch that was gone on with.

A configuration needs at least as much as one that failed when it has the same model, data and settings, and no less of
what only adds memory: tokens a row, rows at once, trained weights. Keys that leave memory alone may differ; a key that is
not known here must be equal, so that nothing is held back by a guess. Decisions follow from the ledger alone.

Example:
    >>> lowered(config, state.too_large).changes
    {'micro_batch_size': 4, 'gradient_accumulation_steps': 4}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GROWS = frozenset({"sequence_len", "eval_batch_size", "lora_r", "lora_dropout"})
"""Numbers of which more never needs less memory."""
FREE = frozenset({
    "learning_rate", "lr_scheduler", "warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm",
    "adam_epsilon", "prodigy_d_coef", "lora_alpha", "use_rslora", "max_steps", "num_epochs", "seed_data", "loss_multiple",
})  # fmt: skip
"""Keys that leave memory alone."""
_BATCH = frozenset({"micro_batch_size", "gradient_accumulation_steps"})


@dataclass(frozen=True)
class TooLarge:
    """A configuration that ran out of memory.

    Attributes:
        run: whose.
        config: the attempt's, changes included.
        goes_on: the micro batch that the run went on with; half of its own where it did not go on, at least 1.
    """

    run: str
    config: Mapping[str, Any]
    goes_on: int


@dataclass(frozen=True)
class Lowered:
    """A smaller beginning.

    Attributes:
        changes: what changes against the configuration; rows a step stay the same.
        after: the run that ran out of memory.
        at: its micro batch then.
    """

    changes: Mapping[str, int]
    after: str
    at: int

    @property
    def reason(self) -> str:
        """For people, in one line."""
        return f"{self.after} needs no more and ran out of memory at micro_batch_size {self.at}"


def lowered(config: Mapping[str, Any], too_large: Sequence[TooLarge]) -> Lowered | None:
    """The smaller beginning of a configuration that would run out of memory as others did; None where none is known to.

    The micro batch is the largest that divides the rows of a step and is not above what the others went on with.

    Args:
        config: a resolved configuration.
        too_large: what ran out of memory so far.
    """
    found: Lowered | None = None
    smaller = dict(config)
    while (less := _lowered_once(smaller, too_large)) is not None:
        found = less  # with accumulation it needs gradients beside, as others did that failed with it
        smaller |= less.changes
    return found


def _lowered_once(config: Mapping[str, Any], too_large: Sequence[TooLarge]) -> Lowered | None:
    micro = config.get("micro_batch_size")
    if not isinstance(micro, int):
        return None
    known = [failed for failed in too_large if failed.goes_on < micro and needs_as_much(config, failed.config)]
    if not known:
        return None
    least = min(known, key=lambda failed: failed.goes_on)
    rows = micro * int(config.get("gradient_accumulation_steps", 1))
    size = next(size for size in range(least.goes_on, 0, -1) if rows % size == 0)
    changes = {"micro_batch_size": size, "gradient_accumulation_steps": rows // size}
    return Lowered(changes, least.run, least.config["micro_batch_size"])


def needs_as_much(config: Mapping[str, Any], failed: Mapping[str, Any]) -> bool:
    """Whether a configuration is sure to need at least the memory of another one.

    Accumulation adds memory once, however long it is: gradients are kept beside the next rows' activations.
    """
    if int(config.get("micro_batch_size", 0)) < int(failed.get("micro_batch_size", 0)):
        return False
    if int(failed.get("gradient_accumulation_steps", 1)) > 1 >= int(config.get("gradient_accumulation_steps", 1)):
        return False
    keys = (config.keys() | failed.keys()) - FREE - _BATCH
    return all(_no_less(key, config.get(key), failed.get(key)) for key in keys)


def _no_less(key: str, value: Any, other: Any) -> bool:
    if value == other:
        return True
    if key in ("loss", "hidden") and isinstance(value, Mapping) and isinstance(other, Mapping):
        return _kind(value) == _kind(other)
    if key in GROWS:
        return isinstance(value, int | float) and isinstance(other, int | float) and value > other
    if key == "lora_target_modules":
        return value == "all-linear" or (other != "all-linear" and set(value or ()) >= set(other or ()))
    if key == "unfrozen_parameters":
        return value is None
    if key == "gradient_checkpointing":
        return not value
    return key == "use_dora" and bool(value)


def _kind(term: Mapping[str, Any]) -> dict[str, Any]:
    """A term of the loss without its weights, temperatures and the like."""
    return {key: value for key, value in term.items() if not isinstance(value, float)}
