"""Supervised fine-tuning, LoRA or full, with TRL's SFTTrainer: the pipelines `sft` and `retrain_pruned`."""

from __future__ import annotations

from typing import Any

from pipelines.config import FineTuneConfig
from pipelines.finetune.model import LoadedModel
from pipelines.finetune.objective import TokenObjective
from pipelines.finetune.pipeline import FineTunePipeline
from pipelines.finetune.rows import TrainRows, encode_train
from pipelines.splits import Splits
from pipelines.stage import Task


class SFTPipeline(FineTunePipeline):
    """Implements `pipelines.stage.Pipeline`; the base model and the tokens of train stay in memory between tasks.

    Example:
        >>> SFTPipeline().run(task, report)
    """

    def __init__(self) -> None:
        super().__init__()
        self._tokens: tuple[tuple[Any, ...], Splits, TrainRows] | None = None

    def objective(
        self, config: FineTuneConfig, splits: Splits, loaded: LoadedModel, model: Any, task: Task
    ) -> TokenObjective:
        """The mean loss over trained-on tokens; see `FineTunePipeline.objective`."""
        rows = self._train_rows(config, splits, loaded)
        return TokenObjective(rows, config, model, loaded.tokenizer.pad_token_id, task.seed, task.total)

    def _train_rows(self, config: FineTuneConfig, splits: Splits, loaded: LoadedModel) -> TrainRows:
        key = (id(splits), str(loaded.folder), config.sequence_len)
        if self._tokens is None or self._tokens[0] != key:
            self._tokens = (
                key,
                splits,
                encode_train(splits.train, loaded.tokenizer, config.sequence_len, splits.phases),
            )
        return self._tokens[2]
