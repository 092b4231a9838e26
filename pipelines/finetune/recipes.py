"""Recipes: defaults by name, for whatever a sweep file does not say itself.

Source: Pareja et al., "Unveiling the Secret Recipe" (ICLR 2025, arXiv 2412.13337), which trains all weights: `lab` is what it
recommends (large batches, a constant rate, no warm-up), `tulu` the practice that it compares with. Left out: how long to train
(10 epochs in their library's examples), and phases of data. `lab` has no weight decay or schedule of its own.

Example:
    >>> recipe_values("tulu", micro_batch_size=4)["gradient_accumulation_steps"]
    32
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MICRO_BATCH = 2
"""Where the file does not say it: the key's own default."""
ROWS_A_STEP = {"lab": 3840, "tulu": 128}
"""Rows of one optimizer step."""
RECIPES: dict[str, Mapping[str, Any]] = {
    "lab": {
        "adapter": "none",
        "optimizer": "adamw",
        "learning_rate": 2e-5,
        "lr_scheduler": "constant",
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
    },
    "tulu": {
        "adapter": "none",
        "optimizer": "adamw",
        "learning_rate": 2e-5,
        "lr_scheduler": "linear",
        "warmup_ratio": 0.03,
        "weight_decay": 0.0,
    },
}
KEYS = frozenset({*RECIPES["lab"], "gradient_accumulation_steps"})
"""What a recipe says."""


def recipe_values(name: str, micro_batch_size: int = MICRO_BATCH, workers: int = 1) -> dict[str, Any]:
    """A recipe's values by key; its batch is made of micro batches of the given size, of so many workers.

    Raises:
        KeyError: if there is no such recipe.
    """
    return {
        **RECIPES[name],
        "gradient_accumulation_steps": max(1, round(ROWS_A_STEP[name] / (micro_batch_size * workers))),
    }


def filled(config: Any, workers: int = 1) -> Any:
    """A configuration as it is written, with its recipe's values where it says none itself; for so many workers a trial.

    Done before it is typed: a validator that runs before pydantic's own would make it read lists as Python's, not as JSON's.
    """
    name = config.get("recipe") if isinstance(config, Mapping) else None
    if not isinstance(name, str) or name not in RECIPES:
        return config
    micro = config.get("micro_batch_size", MICRO_BATCH)
    sound = isinstance(micro, int) and micro > 0
    return {**recipe_values(name, micro if sound else MICRO_BATCH, workers), **config}
