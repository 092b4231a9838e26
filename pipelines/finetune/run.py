"""One lease of a fine-tune: a Trainer, its milestones, and what it reports."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from evaluators.base import Report, Score
from pipelines.config import FineTuneConfig
from pipelines.energy import EnergyConfig, added, open_meter, telemetry
from pipelines.finetune import adapters
from pipelines.finetune.beside import exported
from pipelines.finetune.checkpoint import placing, write_complete
from pipelines.finetune.counting import StepLosses
from pipelines.finetune.devices import peak_memory
from pipelines.finetune.group import ALONE, Group
from pipelines.finetune.interim import Interims
from pipelines.finetune.masked import HeldMask
from pipelines.finetune.model import LoadedModel, origin
from pipelines.finetune.objective import Objective
from pipelines.finetune.optimizer_kinds import averaged, current_rate
from pipelines.finetune.optimizers import random_state, set_random_state
from pipelines.finetune.trainer import Trainer
from pipelines.finetune.wrapping import Weights, gathered, whole_optimizer, whole_weights
from pipelines.pulse import beat
from pipelines.splits import Splits
from pipelines.stage import Task

SAY_SECONDS = 15.0
"""So often, at most, a run writes into its log how far it is."""


class Run:
    """One lease of a fine-tune.

    Args:
        task: the lease.
        config: its settings, typed.
        model: what is trained: a base model, or a `PeftModel` on one.
        loaded: the base model.
        splits: the rows; those of tune are scored.
        objective: what is minimised.
        device: `cpu` or `cuda`.
        report: ends the lease by raising `SystemExit`.
        score: scores the model on tune with the given `evaluate` entries, and keeps samples in a folder.
        held: the mask that is kept, of a pruned model.
        group: the processes that train together; the first one scores, writes and reports.
    """

    def __init__(
        self,
        task: Task,
        config: FineTuneConfig,
        model: Any,
        loaded: LoadedModel,
        splits: Splits,
        objective: Objective,
        device: str,
        report: Callable[[Report], None],
        score: Callable[[Sequence[Mapping[str, Any]], Path], tuple[Score, ...]],
        held: HeldMask | None,
        group: Group = ALONE,
    ) -> None:
        self.task = task
        self.held = held
        self.config = config
        self.model = model
        self.loaded = loaded
        self.splits = splits
        self.objective = objective
        self.device = device
        self.report = report
        self.score = score
        self.group = group
        self.clock = self.said_at = time.monotonic()
        self.interims = Interims(Path(task.folder), task.checkpoint_seconds)
        self.energy = EnergyConfig(**(task.energy or {}))
        self.meter = open_meter(self.energy, task.devices)
        self.trainer = Trainer(
            model,
            loaded.tokenizer,
            objective,
            config,
            seed=task.seed,
            total=task.total,
            folder=Path(task.folder),
            device=device,
            on_step=self.after_step,
            group=group,
        )

    def go(self) -> None:
        """Train until `report` ends the lease or the total is reached."""
        if not self.task.milestones:
            return
        self.clock = time.monotonic()
        with self.meter:
            self.trainer.go(None if self.task.start is None else Path(self.task.start))

    def after_step(self, step: int) -> None:
        """Report where a milestone or an extra report is due."""
        beat(step)
        self.say(step)
        if step in self.task.milestones:
            self.milestone(step)
            return
        if self.task.report_every and step % self.task.report_every == 0:
            self.lap(training=True)
            random = random_state(self.device)
            peak = self.peak_memory()
            self.group.lead(lambda: self.report(Report(step, (), self.telemetry(peak))))
            set_random_state(random)
        if self.is_time():
            self.interim(step)

    def say(self, step: int) -> None:
        """Now and then, write into the log how far it is."""
        now = time.monotonic()
        if self.group.rank == 0 and now - self.said_at >= SAY_SECONDS:
            self.said_at = now
            loss = self.trainer.losses.means()["train/loss"]
            print(f"step {step} of {self.task.total}, training loss {loss:.4g} since the last report", flush=True)

    def milestone(self, step: int) -> None:
        """Checkpoint, score on `tune`, report. The random state is the same after as before."""
        self.lap(training=True)
        random = random_state(self.device)
        states = self.of_all(random)
        due = self.due(last=step == self.task.milestones[-1])
        samples = Path(self.task.folder) / f"samples-{step}"
        with self.placed(Path(self.task.folder) / f"checkpoint-{step}") as aside:
            self.save_weights(aside)
            with gathered(self.model):
                scores = self.group.lead(lambda: self.score(due, samples))
            self.lap(training=False)
            peak = self.peak_memory()
            optimizer = whole_optimizer(self.trainer.optimizer, self.model, self.group)
            done = self.group.lead(lambda: self.keep(step, aside, scores or (), peak, states, optimizer))
        self.group.lead(lambda: self.tell(done))
        set_random_state(random)
        self.clock = time.monotonic()
        self.interims.restart()
        self.meter.lap()  # of waiting, which is nobody's

    def is_time(self) -> bool:
        """Whether an interim checkpoint is due: by the first worker's clock and disk, and then for all."""
        if self.task.checkpoint_seconds is None:
            return False
        own = self.group.rank == 0 and self.interims.due() and self.interims.has_room(self.bytes())
        return self.group.sum([float(own)])[0] > 0

    def bytes(self) -> int:
        """What a checkpoint has, about: the adapter or all weights, and the optimizer's state.

        Schedule-free AdamW writes its weights once more, which `interim.ROOM` has room for.
        """
        whole = self.config.adapter == "none" or self.held is not None
        weights = [value for value in self.model.parameters() if whole or value.requires_grad]
        moments = [value for state in self.trainer.optimizer.state.values() for value in state.values()]
        return sum(value.numel() * value.element_size() for value in (*weights, *moments) if isinstance(value, Tensor))

    def interim(self, step: int) -> None:
        """Checkpoint without scores and without a report. The random state is the same after as before."""
        self.lap(training=True)
        began = self.clock
        random = random_state(self.device)
        states = self.of_all(random)
        folder = self.interims.folder(step)
        with self.placed(folder) as aside:
            self.save_weights(aside)
            optimizer = whole_optimizer(self.trainer.optimizer, self.model, self.group)
            self.group.lead(lambda: self.seal(Report(step, (), {}, folder.name), aside, states, optimizer))
        self.group.lead(lambda: self.interims.written(step, time.monotonic() - began))
        set_random_state(random)
        self.lap(training=False)

    def of_all(self, random: dict[str, Any]) -> list[dict[str, Any]]:
        """Random states of all workers, on the first one."""
        return [json.loads(state) for state in self.group.gather(json.dumps(random))]

    @contextlib.contextmanager
    def placed(self, folder: Path) -> Iterator[Path]:
        """A checkpoint's folder that is put in place when it is whole, with averaged weights meanwhile; both by the first worker."""
        if self.group.rank:
            yield folder
            return
        with placing(folder) as aside, averaged(self.trainer.optimizer):
            yield aside

    def save_weights(self, folder: Path) -> None:
        """Write the weights into a checkpoint's folder; a sharded model's are whole on the first worker no longer than that."""
        weights = whole_weights(self.model, self.group)
        self.group.lead(lambda: self.write_weights(folder, weights))

    def keep(
        self,
        step: int,
        folder: Path,
        scores: tuple[Score, ...],
        peak: float,
        states: Sequence[dict[str, Any]],
        optimizer: Any,
    ) -> Report:
        """Make a checkpoint whole.

        Args:
            step: where it is.
            folder: has the weights.
            scores: of these.
            peak: bytes at most so far, of the worker that took most.
            states: random states of all workers.
            optimizer: what has the optimizer's whole state.

        Returns:
            What is to be reported of it.
        """
        done = Report(step, scores, self.telemetry(peak), f"checkpoint-{step}")
        self.seal(done, folder, states, optimizer)
        return done

    def seal(self, done: Report, folder: Path, states: Sequence[dict[str, Any]], optimizer: Any) -> None:
        """Write all but the weights, which are there, and `complete.json` last; see `keep`."""
        self.trainer.save(folder, states, origin(self.loaded.folder), optimizer)
        write_complete(folder, done)

    def tell(self, done: Report | None) -> None:
        """Report a milestone, which may end the lease."""
        assert done is not None, "only the first worker reports, and it made this"
        self.interims.forget()
        self.report(done)

    def peak_memory(self) -> float:
        """Bytes at most so far, of the worker that took most; on the first one."""
        return max((float(peak) for peak in self.group.gather(str(peak_memory(self.device)))), default=0.0)

    def write_weights(self, folder: Path, weights: Weights | None) -> None:
        """The adapter, or all weights with what is needed to load them as a base model; `weights` of a sharded model."""
        with exported(self.model, folder):
            if self.held is not None:
                self.held.save(self.model, self.loaded, folder, self.config.base_model)
            elif self.config.adapter != "none":
                adapters.save_weights(self.model, folder, self.config.base_model, weights)
            else:
                self.model.save_pretrained(folder, state_dict=weights)
                self.loaded.tokenizer.save_pretrained(folder)

    def due(self, *, last: bool) -> list[Mapping[str, Any]]:
        """`evaluate` entries of a milestone."""
        return [*self.task.rung_evaluators, *(self.task.end_evaluators if last else ())]

    def telemetry(self, peak: float) -> dict[str, float]:
        """Numbers without an error, over the steps of all workers since the last report; `peak` in bytes."""
        trainer, losses = self.trainer, self.trainer.losses
        counted = trainer.progress
        trainer.losses = StepLosses()
        seconds = counted.train_seconds + counted.evaluation_seconds
        scaled = {}
        if trainer.scaler is not None:
            scaled["train/loss_scale"] = float(trainer.scaler.get_scale())
            scaled["train/skipped_steps"] = float(counted.skipped_steps)
        return {
            **losses.means(),
            "train/grad_norm": losses.grad_norm,
            "train/learning_rate": current_rate(trainer.optimizer, trainer.lr_scheduler),
            "train/samples": float(counted.samples),
            "train/epoch": float(trainer.state.epoch or 0.0),
            "train/trainable_parameters": float(adapters.trainable_parameters(self.model)),
            **self.objective.facts(),
            "train/skipped_rows": float(self.splits.skipped),
            "train/padding": losses.padding / losses.places if losses.places else float("nan"),
            **scaled,
            "cost/seconds": seconds,
            "cost/evaluation_seconds": counted.evaluation_seconds,
            "cost/tokens": float(counted.tokens),
            "cost/tokens_per_second": counted.tokens / counted.train_seconds if counted.train_seconds else float("nan"),
            "cost/peak_memory_bytes": peak,
            **telemetry(counted.energy, self.energy),
        }

    def lap(self, *, training: bool) -> None:
        """Book the seconds and the joules since the last call: joules of all workers, which all call it.

        Those that wait while the first one evaluates hold their devices too.
        """
        now = time.monotonic()
        for one in [json.loads(spent) for spent in self.group.gather(json.dumps(self.meter.lap()))]:
            self.trainer.progress.energy = added(self.trainer.progress.energy, one)
        if training:
            self.trainer.progress.train_seconds += now - self.clock
        else:
            self.trainer.progress.evaluation_seconds += now - self.clock
        self.clock = now
