"""Calibrated baselines by name: `baseline: nadamw_algoperf` puts a configuration in as the sweep's first trial.

Such a baseline is trial 0: it is beside the budget, never stopped early, never told to the searcher, never a soup's ingredient and
never the winner. Its row stands in every leaderboard, and the final step compares the winner and the soup with it.

`nadamw_algoperf` is AlgoPerf's self-tuning NAdamW, calibrated over all of that benchmark's workloads (Kasimbeg et al. 2025, "How far
away are truly hyperparameter-free learning algorithms?", arXiv 2505.24005; the numbers are those of mlcommons/algorithmic-efficiency,
`algorithms/baselines/self_tuning/pytorch_nadamw_full_budget.py`).

`lab` and `tulu` are the recipes of `pipelines.finetune.recipes`.

Example:
    >>> changes("nadamw_algoperf", config)["learning_rate"]
    0.0017486387539278373
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.config import FineTuneConfig
from pipelines.finetune.recipes import RECIPES, recipe_values

NADAMW_ALGOPERF: Mapping[str, Any] = {
    "optimizer": "nadamw",
    "learning_rate": 0.0017486387539278373,
    "adam_beta1": 1 - 0.06733926164,
    "adam_beta2": 0.9955159689799007,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.08121616522670176,
    "warmup_ratio": 0.02,
    "lr_scheduler": "cosine",
}
_DROPOUT = 0.1
"""Its dropout, which an adapter has a place for."""


def changes(name: str, config: FineTuneConfig, workers: int = 1) -> dict[str, Any]:
    """What a named baseline changes in the pipeline, by dotted path.

    Args:
        name: the word in the file.
        config: the sweep's first configuration.
        workers: processes that train one trial.

    Raises:
        ValueError: if there is no such baseline.
    """
    if name in RECIPES:
        return recipe_values(name, config.micro_batch_size, workers)
    if name != "nadamw_algoperf":
        raise ValueError(f"a baseline must be nadamw_algoperf or a recipe, but got {name!r}")
    takes_dropout = config.adapter in ("lora", "vera") and config.type != "retrain_pruned"
    return {**NADAMW_ALGOPERF, **({"lora_dropout": _DROPOUT} if takes_dropout else {})}
