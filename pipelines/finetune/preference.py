"""Preference tuning, LoRA or full, in TRL's training loop: the pipeline `dpo`."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from evaluators.answers import Judge
from evaluators.base import Example, LanguageModel
from pipelines.calls import make_calls
from pipelines.config import DPOConfig, FineTuneConfig
from pipelines.finetune.adapters import disabled
from pipelines.finetune.model import ROUNDED, BaseModels, LoadedModel, load_folder, resolve
from pipelines.finetune.pairs import Preferred, encode_preferences
from pipelines.finetune.pipeline import FineTunePipeline
from pipelines.finetune.preference_lm import PreferenceLanguageModel
from pipelines.finetune.preference_objective import PreferenceObjective
from pipelines.finetune.reference import Reference
from pipelines.rag.judging import build_judge
from pipelines.splits import Splits
from pipelines.stage import Services, Task, UserError

_KEPT = 4
"""Splits whose tokens stay in memory."""


class DPOPipeline(FineTunePipeline):
    """Implements `pipelines.stage.Pipeline`; the base model and the tokens of the rows stay in memory between tasks.

    The reference is the model that training starts from, seen with the new adapter disabled, or loaded again where all
    weights are trained; or any other model of the same tokens.

    Example:
        >>> DPOPipeline().run(task, report)
    """

    def __init__(self) -> None:
        super().__init__()
        self._encoded: dict[tuple[Any, ...], list[Preferred]] = {}
        self._references: dict[str, list[float]] = {}

    def objective(
        self, config: FineTuneConfig, splits: Splits, loaded: LoadedModel, model: Any, task: Task
    ) -> PreferenceObjective:
        """The mean loss a pair; see `FineTunePipeline.objective`."""
        assert isinstance(config, DPOConfig)
        rows = self._encode(config, loaded, splits.train)
        reference = self._reference(config, loaded, model, task.services)
        pad = loaded.tokenizer.pad_token_id
        return PreferenceObjective(rows, config, reference, pad, task.seed, task.rank.size)

    def language_model(
        self, model: Any, loaded: LoadedModel, config: FineTuneConfig, services: Services
    ) -> PreferenceLanguageModel:
        """A model with preferences; see `FineTunePipeline.language_model`."""
        assert isinstance(config, DPOConfig)
        inner = super().language_model(model, loaded, config, services)
        reference = self._reference(config, loaded, model, services)
        encode = partial(self._encode, config, loaded)
        judge = partial(_judge, self.judge, services)
        return PreferenceLanguageModel(inner, reference.local(model), config.loss, encode, reference, judge)

    def remembered(self, lm: LanguageModel, remember: Callable[[LanguageModel], LanguageModel]) -> LanguageModel:
        """The memo stands in front of what any model is asked; the reference has its own way to it."""
        assert isinstance(lm, PreferenceLanguageModel)
        return replace(lm, inner=remember(lm.inner))

    def _encode(self, config: DPOConfig, loaded: LoadedModel, rows: Sequence[Example]) -> list[Preferred]:
        strangers = config.loss.type == "kto"
        key = (tuple(row.id for row in rows), str(loaded.folder), config.sequence_len, strangers)
        if key not in self._encoded:
            while len(self._encoded) >= _KEPT:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[key] = encode_preferences(rows, loaded.tokenizer, config.sequence_len, strangers=strangers)
        return self._encoded[key]

    def _reference(self, config: DPOConfig, loaded: LoadedModel, model: Any, services: Services) -> Reference:
        cache = self._cache(services)
        source = config.reference if config.reference is not None else config.base_model
        folder = resolve(source, cache, trust_remote_code=config.trust_remote_code)
        device = str(next(model.parameters()).device.type)
        return Reference(
            partial(_opened, config, folder, loaded, model, device),
            folder,
            loaded.tokenizer,
            batch_size=config.eval_batch_size,
            precision=config.precision,
            weights=ROUNDED[config.quantised] if _in_memory(config, folder, loaded) else "",
            device=device,
            memo=None if services.memo is None else services.memo(),
            kept=self._references,
        )

    def _cache(self, services: Services) -> Path:
        """Where converted models are kept."""
        if self._models is None:
            self._models = BaseModels(services.cache)
        return self._models.cache


def _judge(config: Mapping[str, Any] | None, services: Services) -> Judge | None:
    """The sweep's judge, whose answers come from the memo where they are there."""
    if config is None:
        return None
    return build_judge(config, make_calls(services, uuid.uuid4().hex))


def _in_memory(config: DPOConfig, folder: Path, loaded: LoadedModel) -> bool:
    """Whether the reference is the model that training starts from, under the adapter."""
    return config.adapter != "none" and folder == loaded.folder


@contextlib.contextmanager
def _opened(config: DPOConfig, folder: Path, loaded: LoadedModel, model: Any, device: str) -> Iterator[Any]:
    """The reference: what is in memory already, without its adapter, or else its own weights for a while.

    Raises:
        UserError: if its tokens are others than the model's.
    """
    if _in_memory(config, folder, loaded):
        with disabled(model) if hasattr(model, "peft_config") else contextlib.nullcontext():
            yield model
        return
    other = load_folder(folder, trust_remote_code=config.trust_remote_code, device=device)
    if other.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise UserError(
            f"reference: the tokenizer of {config.reference} is another one than the base model's, so their "
            "log-probabilities can't be compared; take a model of the same family"
        )
    yield other.model
