"""Supervised fine-tuning, LoRA or full, with TRL's SFTTrainer: the pipelines `sft` and `retrain_pruned`.

A run trains from its start to the milestones; at each it writes a checkpoint, scores the model on `tune` and reports.
Going on from a checkpoint gives the weights of a run that was never stopped, bit by bit on a CPU with equal threads.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file

from evaluators import evaluate_all
from evaluators.base import LanguageModel, Report, Score
from pipelines.config import FineTuneConfig, parse_pipeline
from pipelines.finetune import adapters
from pipelines.finetune.checkpoint import placing, read_report, write_complete
from pipelines.finetune.devices import has_bf16, memory_errors, peak_memory, prepare_device
from pipelines.finetune.freezing import unfreeze
from pipelines.finetune.masked import HeldMask, adapter_folder, holding
from pipelines.finetune.model import BaseModels, LoadedModel, origin
from pipelines.finetune.optimizers import random_state, set_random_state
from pipelines.finetune.rows import TrainRows, encode_train
from pipelines.finetune.trainer import StepLosses, Trainer, unpatched
from pipelines.lm import LocalLanguageModel, memoised
from pipelines.soups import merge
from pipelines.soups.resident import ResidentSum
from pipelines.splits import Splits, load_splits
from pipelines.stage import EvaluationJob, Resource, Task, UserError
from pipelines.weights import content_hash

_log = logging.getLogger(__name__)
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class SFTPipeline:
    """Implements `pipelines.stage.Pipeline`; the base model and the tokens of train stay in memory between tasks.

    Example:
        >>> SFTPipeline().run(task, report)
    """

    resource: Resource = "steps"
    blends = True
    """`ModelSource.blend` is understood."""

    def __init__(self) -> None:
        self._models: BaseModels | None = None
        self._resident: tuple[LoadedModel, ResidentSum] | None = None
        self._tokens: tuple[tuple[Any, ...], Splits, TrainRows] | None = None
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

    def run(self, task: Task, report: Callable[[Report], None]) -> None:
        """See `Pipeline`.

        Raises:
            UserError: if the model, the data or a setting can't be used.
            OutOfMemory: if the trial does not fit.
            Diverged: if the loss is NaN, infinite, or too large a multiple of its first value.
        """
        config = _typed(task.config)
        if task.replay and task.start is not None:
            report(read_report(Path(task.start)))
        device = prepare_device(task.devices)
        splits = load_splits(config.datasets, config.seed_data)
        for warning in splits.warnings:
            _log.warning("%s", warning)
        if config.precision == "fp16" and device == "cpu":
            _log.warning("precision: fp16 on a CPU is slow; bf16 and fp32 are made for it")
        if config.precision == "bf16" and device == "cpu" and not has_bf16():
            _log.warning("precision: bf16 is slow on this CPU, which has no instructions for it; fp32 is faster here")
        self._resident = None
        with memory_errors(config):
            loaded = self._base(config.base_model, config, task.services.cache, device)
            rows = self._train_rows(config, splits, loaded)
            held = HeldMask.of(loaded, config)
            with self._trained_model(loaded, config, task, held) as model, unpatched([loaded.model, model]):
                run = _Run(task, config, model, loaded, splits, rows, device, report, held)
                run.go()

    def evaluate(self, job: EvaluationJob) -> tuple[Score, ...]:
        """See `Pipeline`; answers come from the memo where there is one.

        Raises:
            UserError: if the model or the data can't be used.
        """
        config = _typed(job.config)
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
            lm: LanguageModel = _language_model(model, loaded.tokenizer, config)
            if job.services.memo is not None and not parts:
                lm = memoised(
                    lm,
                    job.services.memo(),
                    model_hash=_source_hash(loaded.folder, job.model.adapter),
                    tokenizer_hash=content_hash(loaded.folder, "tokenizer"),
                    dtype=_DTYPES[config.precision],
                    settings={"sequence_len": config.sequence_len},
                )
            return evaluate_all(job.evaluators, lm, rows, job.split)

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
        if self._models is None or (cache is not None and str(self._models.cache) != cache):
            self._models = BaseModels(cache)
        return self._models.load(source, trust_remote_code=config.trust_remote_code, device=device)

    def _train_rows(self, config: FineTuneConfig, splits: Splits, loaded: LoadedModel) -> TrainRows:
        key = (id(splits), str(loaded.folder), config.sequence_len)
        if self._tokens is None or self._tokens[0] != key:
            self._tokens = (key, splits, encode_train(splits.train, loaded.tokenizer, config.sequence_len))
        return self._tokens[2]

    @contextlib.contextmanager
    def _trained_model(
        self, loaded: LoadedModel, config: FineTuneConfig, task: Task, held: HeldMask | None
    ) -> Iterator[Any]:
        """The model to train with the start checkpoint's weights; afterwards the base is as it was, or forgotten."""
        transformers.set_seed(task.seed)
        start = None if task.start is None else Path(task.start)
        try:
            if config.adapter == "lora":
                loaded.model.requires_grad_(False)
                model = adapters.inject(loaded.model, config)
                try:
                    if start is not None:
                        adapters.load_weights(model, adapter_folder(start))
                    with _checkpointed(loaded.model, config), holding(held, model):
                        yield model
                finally:
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


class _Run:
    """One lease: a Trainer, its milestones, and what it reports."""

    def __init__(
        self,
        task: Task,
        config: FineTuneConfig,
        model: Any,
        loaded: LoadedModel,
        splits: Splits,
        rows: TrainRows,
        device: str,
        report: Callable[[Report], None],
        held: HeldMask | None,
    ) -> None:
        self.task = task
        self.held = held
        self.config = config
        self.model = model
        self.loaded = loaded
        self.splits = splits
        self.rows = rows
        self.device = device
        self.report = report
        self.clock = time.monotonic()
        self.trainer = Trainer(
            model,
            loaded.tokenizer,
            rows,
            config,
            seed=task.seed,
            total=task.total,
            folder=Path(task.folder),
            device=device,
            on_step=self.after_step,
        )

    def go(self) -> None:
        """Train until `report` ends the lease or the total is reached."""
        if not self.task.milestones:
            return
        self.clock = time.monotonic()
        self.trainer.go(None if self.task.start is None else Path(self.task.start))

    def after_step(self, step: int) -> None:
        """Report where a milestone or an extra report is due."""
        if step in self.task.milestones:
            self.milestone(step)
        elif self.task.report_every and step % self.task.report_every == 0:
            self.lap(training=True)
            random = random_state(self.device)
            self.report(Report(step, (), self.telemetry()))
            set_random_state(random)

    def milestone(self, step: int) -> None:
        """Checkpoint, score on `tune`, report. The random state is the same after as before."""
        self.lap(training=True)
        random = random_state(self.device)
        folder = Path(self.task.folder) / f"checkpoint-{step}"
        with placing(folder) as aside:
            self.write_weights(aside)
            scores = self.score(last=step == self.task.milestones[-1])
            self.lap(training=False)
            done = Report(step, scores, self.telemetry(), folder.name)
            self.trainer.save(aside, random, origin(self.loaded.folder))
            write_complete(aside, done)
        self.report(done)
        set_random_state(random)
        self.clock = time.monotonic()

    def write_weights(self, folder: Path) -> None:
        """The adapter, or all weights with what is needed to load them as a base model."""
        if self.held is not None:
            self.held.save(self.model, self.loaded, folder, self.config.base_model)
        elif self.config.adapter == "lora":
            adapters.save_weights(self.model, folder, self.config.base_model)
        else:
            self.model.save_pretrained(folder)
            self.loaded.tokenizer.save_pretrained(folder)

    def score(self, *, last: bool) -> tuple[Score, ...]:
        """Scores on `tune` of the evaluators that are due."""
        entries = list(self.task.rung_evaluators) + (list(self.task.end_evaluators) if last else [])
        lm = _language_model(self.model, self.loaded.tokenizer, self.config)
        return evaluate_all(entries, lm, self.splits.tune, "tune")

    def telemetry(self) -> dict[str, float]:
        """Numbers without an error, over the steps since the last report."""
        trainer, losses = self.trainer, self.trainer.losses
        counted = trainer.progress
        trainer.losses = StepLosses()
        seconds = counted.train_seconds + counted.evaluation_seconds
        scaled = {}
        if trainer.scaler is not None:
            scaled["train/loss_scale"] = float(trainer.scaler.get_scale())
            scaled["train/skipped_steps"] = float(counted.skipped_steps)
        return {
            "train/loss": losses.nats / losses.tokens if losses.tokens else float("nan"),
            "train/grad_norm": losses.grad_norm,
            "train/learning_rate": float(trainer.lr_scheduler.get_last_lr()[0]),
            "train/epoch": float(trainer.state.epoch or 0.0),
            "train/cut_rows": float(self.rows.cut),
            "train/dropped_rows": float(self.rows.dropped),
            "train/skipped_rows": float(self.splits.skipped),
            "train/padding": losses.padding / losses.places if losses.places else float("nan"),
            **scaled,
            "cost/seconds": seconds,
            "cost/evaluation_seconds": counted.evaluation_seconds,
            "cost/tokens": float(counted.tokens),
            "cost/tokens_per_second": counted.tokens / counted.train_seconds if counted.train_seconds else float("nan"),
            "cost/peak_memory_bytes": peak_memory(self.device),
        }

    def lap(self, *, training: bool) -> None:
        """Book the seconds since the last call."""
        now = time.monotonic()
        if training:
            self.trainer.progress.train_seconds += now - self.clock
        else:
            self.trainer.progress.evaluation_seconds += now - self.clock
        self.clock = now


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


def _language_model(model: Any, tokenizer: Any, config: FineTuneConfig) -> LocalLanguageModel:
    return LocalLanguageModel(
        model,
        tokenizer,
        batch_size=config.eval_batch_size,
        sequence_len=config.sequence_len,
        precision=config.precision,
    )


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
