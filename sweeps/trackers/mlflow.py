"""Runs of MLflow: one of the sweep, and as its children one of every run, in one experiment.

Numbers said twice after a crash have the same step and time, which MLflow stores once. Runs are found again by their tag,
with the parameters that they have: a process may have been killed before it could note a run, or sent all of its parameters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sweeps.track_rules import SQLITE
from sweeps.track_spec import MLflowConfig
from sweeps.trackers.base import RunFacts, SweepFacts

SWEEP = "sweep"
TAG = "stockpot.run"
STATES = {
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "aborted": "FAILED",
}
"""How a run or a driver ended -> MLflow's status; what was stopped early has done all that was asked of it."""
PARAMETERS_AT_ONCE, NUMBERS_AT_ONCE = 100, 1000
"""MLflow's limits of one call."""


class MLflowTracker:
    """Writes with `mlflow.MlflowClient` (mlflow-skinny is enough)."""

    def __init__(self, config: MLflowConfig) -> None:
        self._config = config

    def open(self, sweep: SweepFacts, notes: dict[str, Any]) -> None:
        """Connect, and find or make the experiment and the sweep's own run."""
        from mlflow import MlflowClient, entities

        self._entities = entities
        self._key = sweep.key
        if (database := _database(self._config.tracking_uri)) is not None and not database.exists():
            _make(database, sweep.key, MlflowClient)
        self._client = MlflowClient(self._config.tracking_uri)
        self._runs: dict[str, str] = notes.setdefault("runs", {})
        self._experiment = notes.get("experiment") or self._find_experiment()
        notes["experiment"] = self._experiment
        self._has: dict[str, set[str]] = {}
        self._recover()
        self._parent = self._run(SWEEP, sweep.name, {}, None)
        self._parameters(SWEEP, {**sweep.settings, "metric": ", ".join(sweep.metrics)})

    def began(self, run: RunFacts, time: float) -> None:
        """Its own run, with its parameters."""
        tags = {"mlflow.parentRunId": self._parent, "stockpot.trial": run.trial, "stockpot.seed": str(run.seed)}
        self._run(run.id, run.id, tags, time)
        self._parameters(run.id, {**run.parameters, "seed": run.seed})

    def reported(self, run: RunFacts, resource: int, values: Mapping[str, float], time: float) -> None:
        """Metrics at a step."""
        self._numbers(self._runs[run.id], resource, values, time)

    def ended(self, run: RunFacts, state: str, reason: str, time: float) -> None:
        """Its status, and why."""
        self._client.set_tag(self._runs[run.id], "stockpot.state", f"{state}: {reason}" if reason else state)
        self._client.set_terminated(self._runs[run.id], STATES[state], end_time=int(time * 1000))

    def told(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Metrics of the sweep's run."""
        self._numbers(self._parent, step, values, time)

    def concluded(self, state: str, time: float) -> None:
        """The sweep's status."""
        self._client.set_terminated(self._parent, STATES.get(state, "FAILED"), end_time=int(time * 1000))

    def flush(self) -> None:
        """Every call has been answered already."""

    def close(self) -> None:
        """Nothing is held."""

    def _find_experiment(self) -> str:
        name = self._config.experiment_name or SWEEP
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def _recover(self) -> None:
        """The runs that earlier processes made, also one that was killed before it could note it, and their parameters."""
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`stockpot.sweep` = '{self._key}'", max_results=1000, page_token=token
            )
            for run in page:
                key = run.data.tags[TAG]
                if self._runs.setdefault(key, run.info.run_id) == run.info.run_id:
                    self._has[key] = set(run.data.params)
            token = page.token
            if not token:
                return

    def _run(self, key: str, name: str, tags: Mapping[str, str], time: float | None) -> str:
        """A run by its key: made, or going on."""
        if key in self._runs:
            self._client.update_run(self._runs[key], status="RUNNING")
        else:
            start = None if time is None else int(time * 1000)
            own = {TAG: key, "stockpot.sweep": self._key, **tags}
            made = self._client.create_run(self._experiment, start_time=start, tags=own, run_name=name)
            self._runs[key] = made.info.run_id
        return self._runs[key]

    def _parameters(self, key: str, values: Mapping[str, Any]) -> None:
        """Those that the run has not: MLflow refuses to change one, as a resume may change a budget."""
        has = self._has.setdefault(key, set())
        made = {_name(path): str(value) for path, value in values.items()}
        new = [self._entities.Param(name, text) for name, text in made.items() if name not in has]
        for at in range(0, len(new), PARAMETERS_AT_ONCE):
            self._client.log_batch(self._runs[key], params=new[at : at + PARAMETERS_AT_ONCE])
        has.update(made)

    def _numbers(self, run: str, step: int, values: Mapping[str, float], time: float) -> None:
        stamp = int(time * 1000)
        made = [self._entities.Metric(_name(name), value, stamp, step) for name, value in values.items()]
        for at in range(0, len(made), NUMBERS_AT_ONCE):
            self._client.log_batch(run, metrics=made[at : at + NUMBERS_AT_ONCE])


def _database(uri: str | None) -> Path | None:
    """The file of a SQLite address."""
    return Path(uri.removeprefix(SQLITE)) if uri is not None and uri.startswith(SQLITE) and "?" not in uri else None


def _make(database: Path, key: str, connect: Callable[[str], Any]) -> None:
    """Have MLflow make a database aside: one whose maker is killed halfway can never be used again.

    Args:
        database: a file that is not there; where another sweep makes it meanwhile, that one stays.
        key: the sweep's.
        connect: makes the tables of a database that has none.
    """
    aside = database.with_name(f".{database.name}.{key}.tmp")
    for left in database.parent.glob(f"{aside.name}*"):
        left.unlink()
    connect(f"{SQLITE}{aside}")
    try:
        os.link(aside, database)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not database.exists():
            aside.replace(database)
    aside.unlink(missing_ok=True)


def _name(text: str) -> str:
    """What MLflow takes as a name: letters, digits and `_-. :/`."""
    return re.sub(r"[^\w./: -]", "_", text, flags=re.ASCII)[:250]
