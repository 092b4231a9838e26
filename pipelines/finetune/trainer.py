"""TRL's SFTTrainer with our loss, data order, checkpoints and watch over the loss.

What TRL and Transformers keep: the training loop, the optimizer, the schedule, clipping, accumulation. What is ours:

- the loss is an `Objective`'s, a mean over what counts (tokens, pairs) in all micro batches of a step;
- the order of items is a pure function of (seed, epoch), so going on needs no data to be read again;
- state is kept in safetensors and JSON, at milestones only, and nothing is written by the Trainer itself;
- a loss that is NaN, infinite or a multiple of the run's first ends the run before the weights are touched;
- in fp16 the loss is scaled: a step whose gradients overflow is left out and counted, and the scale halved.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer

from pipelines.config import FineTuneConfig
from pipelines.energy import UNKNOWN, Spent
from pipelines.finetune.batches import EpochSampler
from pipelines.finetune.objective import Objective
from pipelines.finetune.optimizer_kinds import build_optimizer
from pipelines.finetune.optimizers import (
    load_optimizer,
    load_scale,
    load_schedule,
    optimizer_arguments,
    save_optimizer,
    scale_state,
    schedule_state,
    set_random_state,
    warmup_steps,
)
from pipelines.lm import autocast
from pipelines.stage import Diverged

STATE = "state.json"
FORMAT = 1
MIN_SCALE = 1.0
"""A loss scale below this has collapsed: the gradients overflow without any scaling."""


@dataclass
class Progress:
    """What a run counts; kept in `state.json`, so that it goes on after a restart.

    Attributes:
        tokens: tokens fed to the model.
        samples: rows fed to the model.
        train_seconds: seconds of training steps.
        evaluation_seconds: seconds of evaluations and checkpoints.
        first_loss: the loss of the run's first step.
        skipped_steps: fp16 steps that were left out because their gradients overflowed.
        energy: joules, as `pipelines.energy.Spent`.
    """

    tokens: int = 0
    samples: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    first_loss: float | None = None
    skipped_steps: int = 0
    energy: Spent = field(default_factory=dict)


@dataclass
class StepLosses:
    """Numbers of the steps since the last report.

    Attributes:
        total: summed loss.
        weight: what it is a sum over: trained-on tokens, pairs, ...
        sums: what else the objective tells, summed over the same.
        grad_norm: of the newest step that was taken, before clipping.
        steps: optimizer steps.
        places: places in the batches, padding included.
        padding: those of them that are padding.
    """

    total: float = 0.0
    weight: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    grad_norm: float = math.nan
    steps: int = 0
    places: int = 0
    padding: int = 0

    def means(self) -> dict[str, float]:
        """The loss and what else the objective tells, each a mean over what counts; NaN before the first step."""
        sums = {"loss": self.total, **self.sums}
        return {f"train/{name}": value / self.weight if self.weight else math.nan for name, value in sums.items()}


class Trainer(SFTTrainer):
    """One run from a start to its total; `on_step` is called after every optimizer step.

    Args:
        model: a base model (all weights trained) or a `PeftModel`.
        tokenizer: its tokenizer.
        objective: what it is fed and minimises.
        config: the trial's settings.
        seed: the run's seed.
        total: optimizer steps of the whole run.
        folder: a folder for the Trainer, which writes nothing there.
        device: `cpu` or `cuda`.
        on_step: called with the number of steps done.
    """

    optimizer: Any

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        objective: Objective,
        config: FineTuneConfig,
        *,
        seed: int,
        total: int,
        folder: Path,
        device: str,
        on_step: Callable[[int], None],
    ) -> None:
        self.progress = Progress()
        self.losses = StepLosses()
        self._settings = config
        self._place = device
        self._state_to_load: dict[str, Any] | None = None
        self._objective = objective
        self._step_total = torch.zeros((), dtype=torch.float64)
        self._step_weight = 0.0
        own = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
        super().__init__(
            model=model,
            args=_arguments(config, seed=seed, total=total, folder=folder, device=device),
            train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),  # TRL takes no other kind
            data_collator=objective.collate,
            processing_class=tokenizer,
        )
        for parameter, data in own:  # TRL casts adapters on quantised weights to bf16
            parameter.data = data
        self.train_dataset = objective.items
        self.scaler = torch.amp.GradScaler(device) if config.precision == "fp16" else None
        self.accelerator.scaler = self.scaler
        self.model_accepts_loss_kwargs = True
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(_OnStep(self, on_step))

    def save(self, folder: Path, random: dict[str, Any], origin: Mapping[str, str | None]) -> None:
        """Write optimizer, schedule, random states, position and counters; the weights are written by the pipeline.

        Args:
            folder: the checkpoint's folder.
            random: random states as they were at the step.
            origin: hashes of what the run began from, kept beside the rest.
        """
        groups = save_optimizer(self.optimizer, folder)
        state = {
            "format": FORMAT,
            "step": self.state.global_step,
            "epoch": self.state.epoch,
            "schedule": schedule_state(self.lr_scheduler),
            "param_groups": groups,
            "random": random,
            "scaler": scale_state(self.scaler),
            "progress": asdict(self.progress),
            "torch": torch.__version__,
            **origin,
        }
        (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        self.state.log_history = []
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def go(self, start: Path | None) -> None:
        """Train to the total, from a checkpoint's state where there is one; the weights are in the model already."""
        if start is not None:
            self._state_to_load = json.loads((start / STATE).read_text(encoding="utf-8"))
            self.progress = Progress(**{"energy": UNKNOWN, **self._state_to_load["progress"]})
        self.train(resume_from_checkpoint=None if start is None else str(start))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a micro batch over what counts in the whole step; see `Trainer.compute_loss`."""
        mask = inputs["attention_mask"]
        found = self._objective.loss(model, inputs)
        fed = int(mask.sum())
        self.progress.tokens += fed
        self.progress.samples += len(mask) if found.samples is None else found.samples
        self.losses.places += mask.numel()
        self.losses.padding += mask.numel() - fed
        for name, value in found.sums.items():
            self.losses.sums[name] = self.losses.sums.get(name, 0.0) + value
        self._step_total += found.total.detach().double().cpu()
        self._step_weight += found.weight
        return found.total / num_items_in_batch

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> float:
        """What counts in all micro batches of a step."""
        return sum(self._objective.weight(batch) for batch in batch_samples)

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Autocast of our own: Accelerate's would patch the model's forward for good."""
        stack = contextlib.ExitStack()
        stack.enter_context(autocast(self._place, self._settings.precision))
        return stack

    def create_optimizer(self, model: Any = None) -> Any:
        """The configuration's optimizer; see `Trainer.create_optimizer`."""
        if self.optimizer is None:
            trained = self.model if model is None else model
            self.optimizer = build_optimizer(
                self._settings,
                trained,
                self.get_decay_parameter_names(trained),
                warmup_steps=warmup_steps(self._settings, self.args.max_steps),
                device=self._place,
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self._objective.sampler

    def _clip_grad_norm(self, model: Any) -> Any:
        self._unscale()
        return super()._clip_grad_norm(model)

    def _unscale(self) -> None:
        """Divide the gradients by the loss scale, once a step."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer.optimizer)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        """Called after every step's last backward: take stock, and end a run that diverged before its update."""
        if grad_norm is None:
            self._unscale()
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))
        total, weight = float(self._step_total), self._step_weight
        self._step_total.zero_()
        self._step_weight = 0.0
        self._watch(total / weight if weight else 0.0, norm)
        self.losses.total += total
        self.losses.weight += weight
        if math.isfinite(norm):
            self.losses.grad_norm = norm
        self.losses.steps += 1
        return norm

    def _watch(self, loss: float, norm: float) -> None:
        step = self.state.global_step + 1
        if math.isfinite(loss) and not math.isfinite(norm) and self.scaler is not None:
            self.progress.skipped_steps += 1
            if self.scaler.get_scale() * self.scaler.get_backoff_factor() < MIN_SCALE:
                raise Diverged(
                    f"the loss scale fell below {MIN_SCALE:g} at step {step}: the gradients overflow fp16 whatever the "
                    "scale; take precision: bf16 or fp32"
                )
        elif not math.isfinite(loss) or not math.isfinite(norm):
            what = f"the training loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
            raise Diverged(f"{what} at step {step}")
        if self.progress.first_loss is None:
            self.progress.first_loss = loss
        limit = self._settings.loss_multiple * self.progress.first_loss
        if loss > limit:
            raise Diverged(
                f"the training loss {loss:.3g} at step {step} is above {limit:.3g}, "
                f"{self._settings.loss_multiple:g} times the run's first"
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: the pipeline has loaded the weights."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._state_to_load is not None:
            load_optimizer(self.optimizer, Path(checkpoint), self._state_to_load["param_groups"])
            load_schedule(self.lr_scheduler, self._state_to_load["schedule"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._state_to_load is not None:
            load_scale(self.scaler, self._state_to_load.get("scaler"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._state_to_load is not None:
            set_random_state(self._state_to_load["random"])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        raise AssertionError("checkpoints are written at milestones by the pipeline, but the Trainer tried to")


class _OnStep(TrainerCallback):
    def __init__(self, trainer: Trainer, on_step: Callable[[int], None]) -> None:
        self._trainer = trainer
        self._on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._on_step(state.global_step)


@contextlib.contextmanager
def unpatched(models: Sequence[Any]) -> Iterator[None]:
    """Take back what TRL writes over a model's `forward`, so that the model can be used again."""
    before = [model.__dict__.get("forward") for model in models]
    try:
        yield
    finally:
        for model, forward in zip(models, before, strict=True):
            if forward is None:
                model.__dict__.pop("forward", None)
            else:
                model.__dict__["forward"] = forward


def _arguments(config: FineTuneConfig, *, seed: int, total: int, folder: Path, device: str) -> TRLConfig:
    return TRLConfig(
        output_dir=str(folder),
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        max_steps=total,
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        bf16=False,
        fp16=False,
        activation_checkpointing=False,
        gradient_checkpointing=None,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=device != "cpu",
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
        **optimizer_arguments(config, total),
    )
