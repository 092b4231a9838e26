"""Runs of Weights & Biases: one of the sweep and one of every run, in one group.

A run's id follows from the sweep and the run, so that a resumed sweep goes on in the same runs. Of a run that waits for its
promotion the connection is closed, and opened again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from sweeps.track_spec import WandbConfig
from sweeps.trackers.base import RunFacts, SweepFacts

OPEN_AT_MOST = 32
"""Runs that are connected at once; the one that was quiet for longest is closed first."""
SWEEP = "sweep"
TRIALS = "trials"
"""What the sweep's own numbers are drawn over."""


class WandbTracker:
    """Writes with the package `wandb`: no code, console, requirements, machine or system statistics."""

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._open: OrderedDict[str, Any] = OrderedDict()

    def open(self, sweep: SweepFacts, notes: dict[str, Any]) -> None:
        """Connect the sweep's own run."""
        import wandb

        self._wandb = wandb
        self._sweep = sweep
        self._settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            host="",
            init_timeout=30,
            program="",
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run(SWEEP, sweep.name, {**sweep.settings, "metric": list(sweep.metrics)})

    def began(self, run: RunFacts, time: float) -> None:
        """Its own run, with its parameters."""
        self._of(run)

    def reported(self, run: RunFacts, resource: int, values: Mapping[str, float], time: float) -> None:
        """A row of its history; the resource is the step."""
        self._of(run).log(dict(values), step=resource)

    def ended(self, run: RunFacts, state: str, reason: str, time: float) -> None:
        """Its state in the summary; a failed run is shown as failed."""
        open_run = self._of(run)
        open_run.summary.update({"state": state, "reason": reason})
        self._close(run.label, failed=state == "failed")

    def told(self, step: int, values: Mapping[str, float], time: float) -> None:
        """A row of the sweep's own history, over the trials so far: W&B's own step goes on by itself, also after a resume."""
        self._run(SWEEP, self._sweep.name, {}).log({TRIALS: step, **values})

    def concluded(self, state: str, time: float) -> None:
        """Close everything, the sweep's own run last."""
        for name in [name for name in self._open if name != SWEEP]:
            self._close(name)
        self._run(SWEEP, self._sweep.name, {}).summary.update({"state": state})
        self._close(SWEEP, failed=state == "aborted")

    def flush(self) -> None:
        """W&B sends in the background, and all of it when a run is closed."""

    def close(self) -> None:
        """Close what is open."""
        for name in list(self._open):
            self._close(name)

    def _of(self, run: RunFacts) -> Any:
        return self._run(run.label, run.id, {**run.parameters, "trial": run.trial, "seed": run.seed})

    def _run(self, label: str, name: str, config: Mapping[str, Any]) -> Any:
        if label not in self._open:
            while len(self._open) >= OPEN_AT_MOST:
                self._close(next(iter(self._open)))
            self._open[label] = self._wandb.init(
                project=self._config.project,
                entity=self._config.entity,
                mode=self._config.mode,
                dir=self._sweep.folder,
                group=self._sweep.name,
                job_type="sweep" if label == SWEEP else "run",
                id=f"{self._sweep.key}-{label}",
                name=name,
                config=dict(config),
                resume="allow",
                reinit="create_new",
                settings=self._settings,
            )
            if label == SWEEP:
                self._open[label].define_metric("*", step_metric=TRIALS)
        self._open.move_to_end(label)
        return self._open[label]

    def _close(self, label: str, failed: bool = False) -> None:
        found = self._open.pop(label, None)
        if found is not None:
            found.finish(exit_code=int(failed))
