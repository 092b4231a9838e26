"""What each of Axolotl's keys about training becomes, with one value."""

from __future__ import annotations

import fnmatch
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.convert import axolotl_keys as keys
from sweeps.convert.base import Kind, near, says
from sweeps.convert.fits import misfit


@dataclass(frozen=True)
class Outcome:
    """What a key with one value becomes.

    Attributes:
        kind: as of an `Entry`.
        sets: keys of the pipeline and their values.
        why: as of an `Entry`.
    """

    kind: Kind
    sets: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""

    @property
    def ours(self) -> str | None:
        """As an `Entry` says it."""
        return ", ".join(says(*item) for item in self.sets.items()) or None


@dataclass(frozen=True)
class Whole:
    """What one key must know of the others.

    Attributes:
        config: the configuration.
        swept: keys of the sweep file.
        output: the sweep file to be written.
    """

    config: Mapping[str, Any]
    swept: frozenset[str]
    output: Path

    def fixed(self, key: str) -> Any:
        """The one value that a key has in all trials, or None."""
        return None if key in self.swept else self.config.get(key)

    def given(self, key: str) -> bool:
        """Whether either file says a key."""
        return key in self.swept or self.config.get(key) is not None


def translate(key: str, value: Any, whole: Whole) -> Outcome:
    """What a key with one value becomes; a value that our types refuse is left out, with their reason."""
    special = _SPECIAL.get(key)
    if special:
        out = special(value, whole)
    elif key in keys.RENAMED or key in keys.SAME:
        out = Outcome("carried", {keys.RENAMED.get(key, key): _number(value)})
    elif key == "model_type" and str(value).endswith("ForCausalLM"):
        out = Outcome("carried", why="the model's own class is used")
    elif key in keys.SO_HERE and value in keys.SO_HERE[key][0]:
        out = Outcome("carried", why=keys.SO_HERE[key][1])
    elif value is False and _reason(key) is not None:
        out = Outcome("carried", why="off, as here")
    else:
        out = Outcome("left", why=why_left(key, value))
    for path, ours in out.sets.items():
        if wrong := misfit(path, ours):
            return Outcome("left", why=wrong)
    return out


def _number(value: Any) -> Any:
    """A number that the file gives as text, as Axolotl reads it."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _reason(key: str) -> str | None:
    """Why a known key is left out."""
    if key in keys.LEFT:
        return keys.LEFT[key]
    return next((why for name, why in keys.LEFT.items() if "*" in name and fnmatch.fnmatchcase(key, name)), None)


def why_left(leaf: str, value: Any) -> str:
    """Why a key is left out, known or not."""
    return _reason(leaf.partition(".")[0].partition("[")[0]) or "stockpot has nothing like it"


def _adapter(value: Any, whole: Whole) -> Outcome:
    if value == "qlora":
        return Outcome("changed", {"adapter": "lora"}, "QLoRA is lora with load_in_4bit: true")
    if value in (None, "", False, "none"):
        return Outcome("carried", {"adapter": "none"})
    return Outcome(
        "carried" if value == "lora" else "left", {"adapter": value}, "" if value == "lora" else "lora or none"
    )


def _bf16(value: Any, whole: Whole) -> Outcome:
    if value is False:
        swept = whole.swept & {"bf16", "fp16", "bfloat16", "float16"}
        return Outcome("carried", {"precision": "fp32"} if swept else {}, "" if swept else "off, as here")
    why = {"auto": "always, where Axolotl asks the GPU; ", "full": ""}.get(str(value), "")
    return Outcome("changed", {"precision": "bf16"}, f"{why}autocast: base weights are held in fp32, twice the memory")


def _fp16(value: Any, whole: Whole) -> Outcome:
    if value is False:
        return _bf16(value, whole)
    return Outcome("changed", {"precision": "fp16"}, "autocast: base weights are held in fp32, twice the memory")


def _targets(value: Any, whole: Whole) -> Outcome:
    if whole.fixed("lora_target_linear") is True:
        return Outcome("carried", {"lora_target_modules": "all-linear"}, "lora_target_linear holds them all")
    if isinstance(value, str) and value != "all-linear":
        return Outcome("left", why="a regular expression over whole names; list the ends of names")
    return Outcome("carried", {"lora_target_modules": value})


def _all_linear(value: Any, whole: Whole) -> Outcome:
    if value:
        return Outcome("carried", {"lora_target_modules": "all-linear"})
    named = whole.config.get("lora_target_modules")
    if "lora_target_linear" in whole.swept and isinstance(named, list):
        return Outcome("carried", {"lora_target_modules": named})
    return Outcome("carried", why="off, as here")


def _optimizer(value: Any, whole: Whole) -> Outcome:
    if not isinstance(value, str):
        return Outcome("left", why=keys.LEFT["optimizer"])
    if value in keys.ADAMW:
        swept = "optimizer" in whole.swept
        return Outcome("carried", {"optimizer": "adamw"} if swept else {}, "" if swept else "adamw, as here")
    if value in keys.SAME_OPTIMIZER:
        return Outcome("carried", {"optimizer": value})
    if value == "paged_adamw_32bit":
        return Outcome("changed", {"optimizer": "adamw"}, "its state is not paged")
    if value not in keys.ADAMW_8BIT:
        return Outcome("left", why=keys.LEFT["optimizer"])
    if importlib.util.find_spec("bitsandbytes") is None:
        why = (
            "32-bit states: more memory, otherwise the same rule; for adamw_8bit: pip install 'stockpot[bitsandbytes]'"
        )
        return Outcome("changed", {"optimizer": "adamw"}, why)
    why = keys.ADAMW_8BIT[value]
    return Outcome("changed" if why else "carried", {"optimizer": "adamw_8bit"}, why)


def _checkpointing(value: Any, whole: Whole) -> Outcome:
    kind: Kind = "carried" if isinstance(value, bool) else "changed"
    return Outcome(
        kind, {"gradient_checkpointing": bool(value)}, "" if kind == "carried" else "PyTorch's, without offloading"
    )


def _packing(value: Any, whole: Whole) -> Outcome:
    if value is True and not whole.given("max_steps"):
        return Outcome("left", why="packed runs are measured in steps here: give max_steps in place of num_epochs")
    return Outcome("carried", {"sample_packing": value})


def _epochs(value: Any, whole: Whole) -> Outcome:
    if whole.given("max_steps"):
        return Outcome("left", why="max_steps is given too; Axolotl stops at whichever comes first")
    return Outcome("carried", {"num_epochs": _number(value)})


def _warmup_steps(value: Any, whole: Whole) -> Outcome:
    steps = whole.fixed("max_steps")
    if whole.given("warmup_ratio"):
        return Outcome("left", why="warmup_ratio is given too")
    if not isinstance(steps, int) or not isinstance(value, int | float) or not 0 <= value <= steps or not steps:
        return Outcome(
            "left", why="warm-up is a share here, and only training knows the steps of these epochs: give warmup_ratio"
        )
    return Outcome("carried", {"warmup_ratio": round(value / steps, 6)}, f"{value} of {steps} steps")


def _batch_size(value: Any, whole: Whole) -> Outcome:
    if whole.given("gradient_accumulation_steps"):
        return Outcome("left", why="gradient_accumulation_steps is given too")
    micro = whole.fixed("micro_batch_size") or (None if "micro_batch_size" in whole.swept else 1)
    if not isinstance(value, int) or not isinstance(micro, int) or value < micro:
        return Outcome("left", why="give gradient_accumulation_steps: batch_size / micro_batch_size")
    why = f"{value} / {micro} rows, on one device"
    return Outcome("changed", {"gradient_accumulation_steps": max(1, value // micro)}, why)


def _unfrozen(value: Any, whole: Whole) -> Outcome:
    if whole.given("adapter"):
        return Outcome("left", why="an adapter trains its own weights; with adapter: none these are carried")
    return Outcome("carried", {"unfrozen_parameters": value})


def _model(value: Any, whole: Whole) -> Outcome:
    return Outcome("carried", {"base_model": near(value, whole.output) if isinstance(value, str) else value})


_SPECIAL = {
    "base_model": _model,
    "adapter": _adapter, "bf16": _bf16, "fp16": _fp16, "bfloat16": _bf16, "float16": _fp16,
    "lora_target_modules": _targets, "lora_target_linear": _all_linear, "optimizer": _optimizer,
    "gradient_checkpointing": _checkpointing, "sample_packing": _packing, "num_epochs": _epochs,
    "warmup_steps": _warmup_steps, "batch_size": _batch_size, "unfrozen_parameters": _unfrozen,
}  # fmt: skip
"""Keys that are more than a name."""
