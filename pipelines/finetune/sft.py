"""Supervised fine-tuning, LoRA or full, with TRL's SFTTrainer: the pipelines `sft` and `retrain_pruned`."""

from __future__ import annotations

from typing import Any

from pipelines.config import FineTuneConfig
from pipelines.finetune.model import LoadedModel
from pipelines.finetune.objective import TokenObjective
from pipelines.finetune.pipeline import FineTunePipeline
from pipelines.finetune.rows import KeptRows
from pipelines.splits import Splits
from pipelines.stage import Task


class SFTPipeline(FineTunePipeline):
    """Implements `pipelines.stage.Pipeline`; the base model and the tokens of train stay in memory between tasks.

    Example:
        >>> SFTPipeline().run(task, report)
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows = KeptRows()

    def objective(
        self, config: FineTuneConfig, splits: Splits, loaded: LoadedModel, model: Any, task: Task
    ) -> TokenObjective:
        """The mean loss over trained-on tokens; see `FineTunePipeline.objective`."""
        rows = self._rows.of(splits, loaded, config.sequence_len)
        pad = loaded.tokenizer.pad_token_id
        return TokenObjective(rows, config, model, pad, task.seed, task.total, task.rank.size)
