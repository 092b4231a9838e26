"""Event files for TensorBoard: a folder a run, with its scalars and, for HPARAMS, its parameters.

A run that goes on gets another file in its folder; TensorBoard shows them as one. What is said twice after a crash stands
there twice, at the same step and time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.paths import SweepPaths
from sweeps.track_spec import TensorBoardConfig
from sweeps.trackers.base import RunFacts, SweepFacts

OPEN_AT_MOST = 64
"""Files open at once; the one that was quiet for longest is closed first."""
SWEEP = "sweep"
"""Folder of the sweep's own numbers."""


class TensorBoardTracker:
    """Writes with the package `tensorboard`; TensorFlow is not needed."""

    def __init__(self, config: TensorBoardConfig) -> None:
        self._folder = None if config.log_dir is None else Path(config.log_dir)
        self._files: OrderedDict[str, Any] = OrderedDict()

    def open(self, sweep: SweepFacts, notes: dict[str, Any]) -> None:
        """Name the columns of HPARAMS, once a sweep."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = self._folder or SweepPaths(Path(sweep.folder)).tensorboard
        self._event, self._summary, self._hparams, self._writer = event_pb2, summary_pb2, summary_v2, EventFileWriter
        if notes.get("columns") != [*sweep.parameters, *sweep.metrics]:
            columns = [summary_v2.HParam(path) for path in sweep.parameters]
            metrics = [summary_v2.Metric(name) for name in sweep.metrics]
            self._add(".", self._hparams.hparams_config_pb(columns, metrics), 0.0)
            notes["columns"] = [*sweep.parameters, *sweep.metrics]
        self._told = notes

    def began(self, run: RunFacts, time: float) -> None:
        """Its parameters, for HPARAMS."""
        known = self._told.setdefault("runs", [])
        if run.id not in known:
            self._add(run.label, self._hparams.hparams_pb(dict(run.parameters), run.id, time), time)
            known.append(run.id)

    def reported(self, run: RunFacts, resource: int, values: Mapping[str, float], time: float) -> None:
        """A scalar each."""
        self._scalars(run.label, resource, values, time)

    def ended(self, run: RunFacts, state: str, reason: str, time: float) -> None:
        """Its file is closed."""
        self._close(run.label)

    def told(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Scalars of the sweep's own folder."""
        self._scalars(SWEEP, step, values, time)

    def concluded(self, state: str, time: float) -> None:
        """There is no such thing in TensorBoard."""

    def flush(self) -> None:
        """To the disk."""
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        """Close all files."""
        for name in list(self._files):
            self._close(name)

    def _scalars(self, name: str, step: int, values: Mapping[str, float], time: float) -> None:
        found = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(name, self._summary.Summary(value=found), time, step)

    def _add(self, name: str, summary: Any, time: float, step: int = 0) -> None:
        if name not in self._files:
            while len(self._files) >= OPEN_AT_MOST:
                self._close(next(iter(self._files)))
            assert self._folder is not None, "open comes first"
            self._files[name] = self._writer(str(self._folder / name))
        self._files.move_to_end(name)
        self._files[name].add_event(self._event.Event(wall_time=time, step=step, summary=summary))

    def _close(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file is not None:
            file.close()
