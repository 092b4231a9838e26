"""One lease beside its process's main thread: it waits at every report until it is told to go on, or to end."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluators.base import Report
from pipelines.pulse import listened
from pipelines.stage import Task
from sweeps.failures import Failure, classify
from sweeps.trial_log import BEGAN, printing, write_record

END_SECONDS = 30.0
"""How long a stopped lease may take to leave its pipeline before its worker is given up."""
BEAT_SECONDS = 15.0
"""Of a sweep with the default `stall_after`; a quarter of a shorter one."""
Run = Callable[[Task, Callable[[Report], None]], None]
"""What a lease runs; `report` waits, and raises `SystemExit` at the end."""


@dataclass(frozen=True)
class Met:
    """What came of letting a lease go on.

    Attributes:
        kind: `reported`, `moved` (no report yet, but a sign of life), `ended` (the pipeline returned) or `failed`.
        report: with `reported`.
        at: with `moved`: the resource it has come to, where it said so.
        failure: with `failed`.
        recycle: this process should not serve another lease.
    """

    kind: Literal["reported", "moved", "ended", "failed"]
    report: Report | None = None
    at: int | None = None
    failure: Failure | None = None
    recycle: bool = False


class LeaseThread:
    """One lease running beside the process's main thread, met at every report.

    Args:
        task: what to run.
        log: file that standard output and error go to while it runs; None leaves them.
        run: what to do with it.
        beat_seconds: so long without a report, it is told of where it gave a sign of life.
    """

    def __init__(self, task: Task, log: str | None, run: Run, beat_seconds: float = BEAT_SECONDS) -> None:
        self.broken = False
        """Whether it failed, or something beside it did: it may wait for what never comes."""
        self._task = task
        self._log = log
        self._run = run
        self._beat_seconds = beat_seconds
        self._met: queue.SimpleQueue[Met] = queue.SimpleQueue()
        self._beats = self._told = 0
        self._at: int | None = None
        self._go = threading.Semaphore(0)
        self._stopped = False
        self._waiting = False
        self._thread = threading.Thread(target=self._main, name=f"lease-{task.trial}", daemon=True)
        self._thread.start()

    def next(self) -> Met:
        """Let it go on until it reports, ends or fails, or gave a sign of life and some time has passed."""
        if self._waiting:
            self._waiting = False
            self._go.release()
        met = None
        while met is None:
            met = self._soon()
        self._waiting = met.kind == "reported"
        return met

    def _soon(self) -> Met | None:
        """What came of it within that time; None where it gave no sign of life."""
        with contextlib.suppress(queue.Empty):
            return self._met.get(timeout=self._beat_seconds)
        if self._beats == self._told:
            return None
        self._told = self._beats
        return Met("moved", at=self._at)

    def _beat(self, at: int | None) -> None:
        self._at = self._at if at is None else at
        self._beats += 1

    def finish(self, seconds: float = END_SECONDS) -> bool:
        """Make `report` raise `SystemExit` and wait for the pipeline to leave; whether it did."""
        self._stopped = True
        self._go.release()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def fail(self, failure: Failure) -> None:
        """Say that something beside the lease failed: that is its end, wherever it is."""
        self.broken = True
        self._met.put(Met("failed", failure=failure, recycle=True))

    def _report(self, report: Report) -> None:
        if not isinstance(report, Report):
            raise TypeError(f"report() takes an evaluators.base.Report, but got {type(report).__name__}")
        for name, value in report.telemetry.items():
            _refuse_text(name, value)
        if not self._stopped:
            self._met.put(Met("reported", report=report))
            self._go.acquire()
        if self._stopped:
            raise SystemExit

    def _main(self) -> None:
        with logged(self._log, self._task), listened(self._beat):
            try:
                self._run(self._task, self._report)
            except SystemExit:
                end = Met("ended")
            except BaseException as error:  # the one place where a trial may fail and the sweep goes on
                failure = classify(error)
                print(failure.traceback, end="", file=sys.stderr, flush=True)
                end = Met("failed", failure=failure, recycle=True)
                self.broken = True
            else:
                end = Met("ended")
        if "torch" in sys.modules:
            gc.collect()  # an exception's frames held the trainer and its tensors up to here
        self._met.put(end)


def _refuse_text(name: str, value: Any) -> None:
    """Raise where telemetry is no number; what it is instead is not said, for it may be anything."""
    try:
        float(value)
    except (TypeError, ValueError):
        raise TypeError(f"report() takes numbers as telemetry, but {name} is of type {type(value).__name__}") from None


@contextlib.contextmanager
def logged(path: str | None, task: Task | None) -> Iterator[None]:
    """Append standard output and error, also of libraries in C, to a file. A file that can't be written is done without.

    What Python prints loses the secrets that this process knows. With a task it becomes records of the trial's log (`sweeps.trial_log`).
    """
    try:
        if path is None:
            raise OSError
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        yield
        return
    saved = {1: os.dup(1), 2: os.dup(2)}
    _flush()
    for stream in saved:
        os.dup2(target, stream)
    by_lines()
    try:
        with printing(target, None if task is None else _begun(target, path, task)):
            yield
    finally:
        os.close(target)
        _flush()
        for stream, old in saved.items():
            os.dup2(old, stream)
            os.close(old)


def _begun(log: int, path: str, task: Task) -> dict[str, Any]:
    """Write an attempt's first line; what every line says of it."""
    sweep = Path(path).absolute().parents[1].name
    about: dict[str, Any] = {"sweep": sweep, "trial": task.trial, "seed": task.seed, "attempt": task.attempt}
    if task.rank.size > 1:
        about["worker"] = task.rank.index
    began = {"from": task.start_resource, "pid": os.getpid(), "host": socket.gethostname()}
    write_record(log, {**about, "event": BEGAN, **began})
    return about


def by_lines() -> None:
    """Have what Python prints reach a file line by line, as it does a terminal: a log is read while it grows."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
