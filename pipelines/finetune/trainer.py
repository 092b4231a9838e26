"""TRL's SFTTrainer with our loss, data order, checkpoints and watch over the loss.

What TRL and Transformers keep: the training loop, the optimizer, the schedule, clipping, accumulation. What is ours:

- the loss is an `Objective`'s, a mean over what counts (tokens, pairs) in all micro batches of a step;
- the order of items is a pure function of (seed, epoch), so going on needs no data to be read again;
- state is kept in safetensors and JSON, when the pipeline says so, and nothing is written by the Trainer itself;
- a loss that is NaN, infinite or a multiple of the run's first ends the run before the weights are touched;
- in fp16 the loss is scaled: a step whose gradients overflow is left out and counted, and the scale halved;
- several workers take slices of each step of the one order (`slices`), and what is counted is summed over all of them.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from pipelines.config import FineTuneConfig
from pipelines.finetune.batches import EpochSampler
from pipelines.finetune.counting import Counted, Progress, StepLosses, counts_record, read_counts
from pipelines.finetune.group import ALONE, Group
from pipelines.finetune.objective import BatchLoss, Objective
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
from pipelines.finetune.slices import COUNTS, SlicedItems, StepSlices, collate_slice
from pipelines.finetune.unseen import unseen
from pipelines.finetune.wrapping import inside, is_sharded, share_trained_alone, spread_optimizer
from pipelines.lm import autocast
from pipelines.pulse import beat
from pipelines.stage import Diverged

with unseen():
    from trl import SFTConfig as TRLConfig
    from trl import SFTTrainer

STATE = "state.json"
FORMAT = 1
MIN_SCALE = 1.0
"""A loss scale below this has collapsed: the gradients overflow without any scaling."""


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
        group: the processes that train together; of a model that is sharded over them, Accelerate leaves the wrapping to us.
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
        group: Group = ALONE,
    ) -> None:
        self.group = group
        self.progress = Progress()
        self.losses = StepLosses()
        self._settings = config
        self._place = device
        self._state_to_load: dict[str, Any] | None = None
        self._objective = objective
        self._counted = Counted()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        own = [] if is_sharded(model) else [(parameter, parameter.data) for parameter in trained]
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
        self.is_distributed_loading_by_transformers = is_sharded(model)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(_OnStep(self, on_step))

    @contextlib.contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Accumulate without summing over workers, of a sharded model; Transformers asks its own configuration here."""
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)

    def save(
        self, folder: Path, random: Sequence[dict[str, Any]], origin: Mapping[str, str | None], optimizer: Any
    ) -> None:
        """Write optimizer, schedule, random states, position and counters; the weights are written by the pipeline.

        Args:
            folder: the checkpoint's folder.
            random: random states as they were at the step, one of each worker.
            origin: hashes of what the run began from, kept beside the rest.
            optimizer: what has the optimizer's whole state.
        """
        groups = save_optimizer(optimizer, folder)
        state = {
            "format": FORMAT,
            "step": self.state.global_step,
            "epoch": self.state.epoch,
            "schedule": schedule_state(self.lr_scheduler),
            "param_groups": groups,
            "random": random[0],
            "workers": len(random),
            "random_of_others": list(random[1:]),
            "scaler": scale_state(self.scaler),
            **counts_record(self.progress, self.losses),
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
            self.progress, self.losses = read_counts(self._state_to_load)
        if self.group.size > 1:
            if not is_sharded(self.model):
                share_trained_alone(self.model)
            self.scatter_random_states(0)
        self.train(resume_from_checkpoint=None if start is None else str(start))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a micro batch over what counts in the whole step; see `Trainer.compute_loss`."""
        beat()
        counts = float(inputs.pop(COUNTS, 1.0))
        mask, counted = inputs["attention_mask"], self._counted
        found = self._loss(model, inputs)
        if counts:
            counted.tokens += int(mask.sum())
            counted.samples += len(mask) if found.samples is None else found.samples
            counted.places += mask.numel()
            counted.total += found.total.detach().double().cpu()
            counted.weight += found.weight
        for name, value in found.sums.items():
            counted.sums[name] = counted.sums.get(name, 0.0) + value * counts
        loss = found.total / num_items_in_batch
        # Gradients are averaged over workers, but the loss is a mean over what all of them count.
        return loss if self.group.size == 1 else loss * (self.group.size * counts)

    def _loss(self, model: Any, inputs: dict[str, Any]) -> BatchLoss:
        """The objective's loss of the bare model, computed inside the forward pass of what wraps it for several workers."""
        if model is self.model:
            return self._objective.loss(model, inputs)
        found: list[BatchLoss] = []

        def act() -> torch.Tensor:
            found.append(self._objective.loss(self.model, inputs))
            return found[0].total

        total = inside(model, self.model, act)
        return replace(found[0], total=total)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> float:
        """What counts in all micro batches of a step, of all workers."""
        own = sum(self._weight(batch) for batch in batch_samples)
        return self.group.sum([own])[0]

    def _weight(self, batch: dict[str, Any]) -> float:
        bare = {name: value for name, value in batch.items() if name != COUNTS}
        return self._objective.weight(bare) * float(batch.get(COUNTS, 1.0))

    def get_train_dataloader(self) -> Any:
        """This worker's micro batches: Accelerate would fill an epoch's last step up with rows that count twice."""
        if self.group.size == 1:
            return super().get_train_dataloader()
        slices = StepSlices(
            self._objective.sampler,
            micro=self._settings.micro_batch_size,
            accumulation=self._settings.gradient_accumulation_steps,
            rank=self.group.rank,
            size=self.group.size,
        )
        loader = torch.utils.data.DataLoader(
            SlicedItems(self._objective.items),
            batch_sampler=slices,
            collate_fn=partial(collate_slice, collate=self._objective.collate),
            pin_memory=self._place != "cpu",
        )
        return prepare_data_loader(
            loader, device=self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

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
        found = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
        counted, self._counted = self._counted.over(self.group), Counted()
        total, weight = float(counted.total), counted.weight
        self._watch(total / weight if weight else 0.0, norm)
        self.progress.tokens += counted.tokens
        self.progress.samples += counted.samples
        self.losses.add(counted)
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

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        """Called when the Trainer is made; the parts of a sharded model are where they belong."""
        if not is_sharded(model):
            super()._move_model_to_device(model, device)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: the pipeline has loaded the weights."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._state_to_load is not None:
            load_optimizer(self.optimizer, Path(checkpoint), self._state_to_load["param_groups"])
            load_schedule(self.lr_scheduler, self._state_to_load["schedule"])
            spread_optimizer(self.optimizer)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._state_to_load is not None:
            load_scale(self.scaler, self._state_to_load.get("scaler"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._state_to_load is None:
            return
        others = self._state_to_load.get("random_of_others", [])
        if self.group.rank == 0:
            set_random_state(self._state_to_load["random"])
        elif self.group.rank <= len(others):
            set_random_state(others[self.group.rank - 1])
        else:
            self.scatter_random_states(self.state.global_step)

    def scatter_random_states(self, step: int) -> None:
        """Have every worker after the first draw numbers of its own, for dropout; all began with the run's seed."""
        if self.group.rank:
            transformers.set_seed((self.args.seed + 1_000_003 * self.group.rank + 7919 * step) % 2**32)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        raise AssertionError("checkpoints are written by the pipeline, but the Trainer tried to")


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
        # Buckets that are not put together anew after the first step: a run that goes on sums in the order of one that
        # was never stopped.
        ddp_find_unused_parameters=True,
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
