"""What every fine-tune does: load the base model, put an adapter on it, train to the milestones, score.

A run trains from its start to the milestones; at each it writes a checkpoint, scores the model on `tune` and reports.
Going on from a checkpoint gives the weights of a run that was never stopped, bit by bit on a CPU with equal threads.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from evaluators import evaluate_all
from evaluators.base import LanguageModel, Report, Score
from pipelines.config import FineTuneConfig, parse_pipeline
from pipelines.finetune import adapters, pissa
from pipelines.finetune.beside import attached
from pipelines.finetune.checkpoint import read_report
from pipelines.finetune.devices import has_bf16, memory_errors, prepare_device
from pipelines.finetune.freezing import unfreeze
from pipelines.finetune.group import Group, joined
from pipelines.finetune.interim import gone_on
from pipelines.finetune.masked import HeldMask, adapter_folder, holding
from pipelines.finetune.model import ROUNDED, BaseModels, LoadedModel, Quantised
from pipelines.finetune.objective import Objective
from pipelines.finetune.run import Run
from pipelines.finetune.trainer import unpatched
from pipelines.finetune.wrapping import is_sharded, shard
from pipelines.lm import LocalLanguageModel
from pipelines.memoised_lm import memoised
from pipelines.soups import merge
from pipelines.soups.resident import ResidentSum
from pipelines.splits import Splits, load_splits
from pipelines.stage import EvaluationJob, Resource, Services, Task, UserError
from pipelines.weights import content_hash

_log = logging.getLogger(__name__)
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class FineTunePipeline:
    """Implements `pipelines.stage.Pipeline` but for the objective; the base model stays in memory between tasks.

    A kind of fine-tune says what is minimised (`objective`) and, where evaluators need more than the model's own answers, what
    they see (`language_model`).
    """

    resource: Resource = "steps"
    blends = True
    """`ModelSource.blend` is understood."""

    def __init__(self) -> None:
        self._models: BaseModels | None = None
        self._resident: tuple[LoadedModel, ResidentSum] | None = None
        self.judge: Mapping[str, Any] | None = None
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

    def objective(
        self, config: FineTuneConfig, splits: Splits, loaded: LoadedModel, model: Any, task: Task
    ) -> Objective:
        """What a run minimises.

        Args:
            config: the trial's settings.
            splits: its rows.
            loaded: the base model that the run began from, without any adapter, or, trained in full, the model itself.
            model: what is trained, ready: a `PeftModel` on `loaded.model`, or `loaded.model`.
            task: the lease; its seed, services and devices.

        Raises:
            UserError: if the data or a setting can't be used.
        """
        raise NotImplementedError

    def beside(self, objective: Objective) -> torch.nn.Module | None:
        """What is trained beside the model, with its optimizer and checkpoints; None for nothing. See `pipelines.finetune.beside`."""
        return None

    def language_model(
        self, model: Any, loaded: LoadedModel, config: FineTuneConfig, services: Services
    ) -> LanguageModel:
        """What evaluators see of a model, at milestones and in `evaluate`."""
        return LocalLanguageModel(
            model,
            loaded.tokenizer,
            batch_size=config.eval_batch_size,
            sequence_len=config.sequence_len,
            precision=config.precision,
        )

    def remembered(self, lm: LanguageModel, remember: Callable[[LanguageModel], LanguageModel]) -> LanguageModel:
        """What evaluators see of given weights, with the memo (`remember`) in front of what can be remembered."""
        return remember(lm)

    def run(self, task: Task, report: Callable[[Report], None]) -> None:
        """See `Pipeline`.

        Raises:
            UserError: if the model, the data or a setting can't be used.
            OutOfMemory: if the trial does not fit.
            Diverged: if the loss is NaN, infinite, or too large a multiple of its first value.
        """
        config = _typed(task.config)
        self.judge = task.judge
        device = prepare_device(task.devices)
        with joined(task.rank, device) as group:
            if task.replay and task.start is not None:
                start = Path(task.start)
                group.lead(lambda: report(read_report(start)))
            self._run(gone_on(task, group), config, device, report, group)

    def _run(
        self, task: Task, config: FineTuneConfig, device: str, report: Callable[[Report], None], group: Group
    ) -> None:
        splits = load_splits(config.datasets, config.seed_data)
        for warning in splits.warnings:
            _log.warning("%s", warning)
        if config.precision == "fp16" and device == "cpu":
            _log.warning("precision: fp16 on a CPU is slow; bf16 and fp32 are made for it")
        if config.precision == "bf16" and device == "cpu" and not has_bf16():
            _log.warning("precision: bf16 is slow on this CPU, which has no instructions for it; fp32 is faster here")
        self._resident = None
        with memory_errors(config):
            spread = config.parallel == "fsdp" and group.size > 1  # each layer goes to the device by itself
            loaded = self._base(config.starts_from, config, task.services.cache, "cpu" if spread else device)
            held = HeldMask.of(loaded, config)
            with self._trained_model(loaded, config, task, held) as model, unpatched([loaded.model, model]):
                if spread:
                    shard(model, loaded.model, group, device)
                objective = self.objective(config, splits, loaded, model, task)

                def score(entries: Sequence[Mapping[str, Any]], samples: Path) -> tuple[Score, ...]:
                    lm = self.language_model(model, loaded, config, task.services)
                    return evaluate_all(entries, lm, splits.tune, "tune", samples)

                start = None if task.start is None else Path(task.start)
                with attached(model, self.beside(objective), start):
                    Run(task, config, model, loaded, splits, objective, device, report, score, held, group).go()

    def evaluate(self, job: EvaluationJob) -> tuple[Score, ...]:
        """See `Pipeline`; answers come from the memo where there is one.

        Raises:
            UserError: if the model or the data can't be used.
        """
        config = _typed(job.config)
        self.judge = job.judge
        device = prepare_device(job.devices)
        rows = load_splits(config.datasets, config.seed_data).rows(job.split) if job.rows is None else list(job.rows)
        if not rows:
            raise UserError(f"datasets.{job.split} is not given, so nothing can be scored on it")
        with memory_errors(config), contextlib.ExitStack() as stack:
            parts, adapter = job.model.blend or (), job.model.adapter
            if parts and not (Path(parts[0][0]) / "adapter_config.json").is_file():
                loaded = self._blended(parts, config, job.services.cache, device)
            else:
                self._resident = None
                loaded = self._base(job.model.base_model, config, job.services.cache, device)
                adapter = str(stack.enter_context(_merged(parts, job.services.cache))) if parts else adapter
            model = loaded.model
            if adapter is not None:
                model = adapters.attach(loaded.model, Path(adapter))
                stack.callback(adapters.detach, model)
            lm = self.language_model(model, loaded, config, job.services)
            if job.services.memo is not None and not parts:
                remember = partial(
                    memoised,
                    memo=job.services.memo(),
                    model_hash=_source_hash(loaded.folder, job.model.adapter),
                    tokenizer_hash=content_hash(loaded.folder, "tokenizer"),
                    dtype=_DTYPES[config.precision] + ROUNDED[config.quantised],
                    settings={"sequence_len": config.sequence_len},
                )
                lm = self.remembered(lm, remember)
            samples = None if job.samples is None else Path(job.samples)
            return evaluate_all(job.evaluators, lm, rows, job.split, samples)

    def _blended(
        self, parts: Sequence[tuple[str, float]], config: FineTuneConfig, cache: str | None, device: str
    ) -> LoadedModel:
        """The average of full models, in the model that stays for the next such job."""
        if self._resident is None:
            loaded = self._base(parts[0][0], config, cache, device)
            assert self._models is not None
            self._models.drop()
            self._resident = (loaded, ResidentSum(loaded.model))
        self._resident[1].apply(parts)
        return self._resident[0]

    def _base(self, source: str, config: FineTuneConfig, cache: str | None, device: str) -> LoadedModel:
        return self._kept(cache).load(
            source, trust_remote_code=config.trust_remote_code, device=device, quantised=Quantised.of(config)
        )

    def _kept(self, cache: str | None) -> BaseModels:
        if self._models is None or (cache is not None and str(self._models.cache) != cache):
            self._models = BaseModels(cache)
        return self._models

    @contextlib.contextmanager
    def _trained_model(
        self, loaded: LoadedModel, config: FineTuneConfig, task: Task, held: HeldMask | None
    ) -> Iterator[Any]:
        """The model to train with the start checkpoint's weights; afterwards the base is as it was, or forgotten."""
        transformers.set_seed(task.seed)
        start = None if task.start is None else Path(task.start)
        try:
            if config.adapter != "none":
                loaded.model.requires_grad_(False)
                model = adapters.inject(loaded.model, config)
                try:
                    if start is not None:
                        adapters.load_weights(model, adapter_folder(start))
                    elif pissa.has_start(model):
                        assert self._models is not None
                        pissa.fill(model, content_hash(loaded.folder), self._models.cache)
                    with _checkpointed(loaded.model, config), holding(held, model):
                        yield model
                finally:
                    if is_sharded(model) and self._models is not None:
                        self._models.drop()
                    else:
                        adapters.detach(model)
            else:
                assert self._models is not None
                self._models.drop()
                trained = unfreeze(loaded.model, config.unfrozen_parameters)
                _log.info("%d parameters are trained", len(trained))
                if start is not None:
                    _load_full(loaded.model, start)
                with _checkpointed(loaded.model, config), holding(held, loaded.model):
                    yield loaded.model
        finally:
            loaded.model.zero_grad(set_to_none=True)
            loaded.model.eval()
            gc.collect()


@contextlib.contextmanager
def _merged(parts: Sequence[tuple[str, float]], cache: str | None) -> Iterator[Path]:
    """The average of adapters, as an adapter that lies in memory where the system has a place for files there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="stockpot-", dir=memory if os.access(memory, os.W_OK) else None) as own:
        out = Path(own) / "soup"
        merge({"ingredients": [list(part) for part in parts], "out": str(out), "cache": cache})
        yield out


def _typed(config: Mapping[str, Any]) -> FineTuneConfig:
    typed = parse_pipeline(config)
    if not isinstance(typed, FineTuneConfig):
        raise UserError(f"pipeline.type: {typed.type!r} is no fine-tune")
    return typed


@contextlib.contextmanager
def _checkpointed(model: Any, config: FineTuneConfig) -> Iterator[None]:
    """Keep only the layers' inputs for the backward pass where the file asks for it; the model is as before after."""
    if not config.gradient_checkpointing:
        yield
        return
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"gradient_checkpointing: {type(model).__name__} does not support it; delete the line"
        ) from error
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def _load_full(model: Any, folder: Path) -> None:
    files = sorted(folder.glob("model*.safetensors"))
    weights = {name: value for file in files for name, value in load_file(file).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if unexpected or set(missing) - tied:
        raise UserError(f"{folder}: the weights do not fit the base model: {[*unexpected, *missing][:3]}")
    model.tie_weights()


def _source_hash(folder: Path, adapter: str | None) -> str:
    base = content_hash(folder)
    return base if adapter is None else f"{base}+{content_hash(Path(adapter))}"
