"""Progress for people: what a sweep has done, its best so far, and when it will be over.

`snapshot` folds the ledger's state into a small JSON-ready mapping, the same for the driver and for `stockpot status`.
`ProgressView` shows snapshots and messages: two redrawn lines on a terminal, plain lines elsewhere. A reader that went
away never ends a sweep: the view falls silent.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from sweeps.trial import finite

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep
    from sweeps.state import ReportState, RunState, SweepState

REDRAW_SECONDS = 1.0
"""A terminal's lines are drawn at most this often, and at least this often."""
PLAIN_SECONDS = 15.0
"""Without a terminal a line is written at every change, and at least this often."""
BAR_WIDTH = 24
STAGES = {"stopping": "stopping", "soup": "making the soup", "final": "in the final step"}
"""What a line adds in the stages that are not plain running."""


def snapshot(state: SweepState, loaded: LoadedSweep) -> dict[str, Any]:
    """What the ledger says now, JSON-ready.

    `trials.tried` counts trials that have a result or failed; it never falls. `resource.done` counts each run to its
    newest report; `seconds` counts all drivers together, up to the newest event.
    """
    from sweeps.load import describe

    phases = [run.phase for run in state.runs.values()]
    tried = {run.trial for run in state.runs.values() if _standing(run, loaded) is not None or run.phase == "failed"}
    tried |= {trial.id for trial in state.trials.values() if trial.duplicate_of is not None}
    return {
        "name": state.name,
        "state": _phase(state),
        "trials": {
            "total": loaded.trials,
            "started": len(state.trials),
            "tried": len(tried),
            "running": phases.count("running"),
            "waiting": phases.count("waiting"),
            "finished": phases.count("finished"),
            "stopped": phases.count("stopped"),
            "failed": phases.count("failed"),
        },
        "best": best(state, loaded),
        "resource": {
            "done": sum(max(run.reports, default=0) for run in state.runs.values()),
            "expected": describe(loaded)["resource"],
        },
        "unit": "units" if loaded.spec.pipeline.type == "custom" else "steps",
        "seconds": state.spent + max(0.0, state.updated_at - state.driver_started_at),
        "started_at": state.started_at,
        "updated_at": state.updated_at,
    }


def best(state: SweepState, loaded: LoadedSweep) -> dict[str, Any] | None:
    """The best run among those that got furthest with a finite value, or None.

    Where runs are compared on the way, that is the highest milestone reached; elsewhere every finished run counts.
    """
    sign = 1.0 if loaded.direction == "minimize" else -1.0
    found = []
    for run in state.runs.values():
        report = _standing(run, loaded)
        if report is None:
            continue
        value, se, n = _value(report, loaded.metric)
        if value is not None:
            far = report.resource if loaded.spec.early_terminate.type == "asha" else 0
            found.append((-far, sign * value, run.order, run, report, value, se, n))
    if not found:
        return None
    *_, run, report, value, se, n = min(found, key=lambda entry: entry[:3])
    return {
        "trial": run.trial,
        "seed": run.seed,
        "metric": loaded.metric,
        "value": value,
        "se": se,
        "n": n,
        "resource": report.resource,
    }


def _standing(run: RunState, loaded: LoadedSweep) -> ReportState | None:
    """The report a run stands on: at its highest milestone; a finished run's last one."""
    if run.phase == "finished":
        return run.newest
    reached = [resource for resource in loaded.milestones if resource in run.reports]
    return run.reports[reached[-1]] if reached else None


def _value(report: ReportState, metric: str) -> tuple[float | None, float | None, int | None]:
    """Value, error and n of the metric; telemetry has neither error nor n."""
    score = report.scores.get(metric)
    if score is None:
        value = report.telemetry.get(metric)
        return (value if finite(value) else None), None, None
    return (score.value if finite(score.value) else None), (score.se if finite(score.se) else None), score.n


def _phase(state: SweepState) -> str:
    if state.finished is not None:
        return "finished"
    if state.stop is not None:
        return "stopping"
    if state.candidates:
        return "final"
    if any(soup.finished is None for soup in state.soups.values()):
        return "soup"
    return "running"


def duration(seconds: float) -> str:
    """`12 s`, `3:05`, `2:03:05`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe_best(found: Mapping[str, Any] | None) -> str:
    """`best tune/loss 0.2301 ± 0.0120 (0003-ab12cd34 at 30)`."""
    if found is None:
        return "no result yet"
    error = f" ± {found['se']:.2g}" if found.get("se") is not None else ""
    return f"best {found['metric']} {found['value']:.4g}{error} ({found['trial']} at {found['resource']})"


def describe_trials(shot: Mapping[str, Any]) -> str:
    """`5/6 trials, 1 running, 1 failed`."""
    trials = shot["trials"]
    total = f"/{trials['total']}" if trials["total"] is not None else ""
    parts = [f"{trials['tried']}{total} trials", f"{trials['running']} running"]
    if trials["failed"]:
        parts.append(f"{trials['failed']} failed")
    if shot["state"] in STAGES:
        parts.append(STAGES[shot["state"]])
    return ", ".join(parts)


def share_done(shot: Mapping[str, Any]) -> float | None:
    """Part of the expected resource that is spent, at most 1; None when no end is known."""
    expected = shot["resource"]["expected"]
    return min(1.0, shot["resource"]["done"] / expected) if expected else None


class Pace:
    """Estimates the seconds left from resource done since the first snapshot seen."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def eta(self, shot: Mapping[str, Any], now: float) -> float | None:
        """Seconds left at the pace so far; None before there is a pace or without an expected end."""
        done, expected = shot["resource"]["done"], shot["resource"]["expected"]
        if self._first is None:
            self._first = (now, done)
        began, base = self._first
        if not expected or done <= base or now <= began:
            return None
        return max(0.0, (expected - done) * (now - began) / (done - base))


class ProgressView:
    """Shows a driver's snapshots and messages. Use it as a context manager; `on_*` may be called from any thread.

    Args:
        stream: where to write.
        live: redraw two lines (a terminal) instead of appending plain ones; default: whether the stream is a terminal.
        before: seconds that were spent before the view began.
    """

    def __init__(self, stream: TextIO, live: bool | None = None, before: float = 0.0) -> None:
        self._stream = stream
        self._live = stream.isatty() if live is None else live
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._ticker: threading.Thread | None = None
        now = time.monotonic()
        self._began = now - before
        self._pace = Pace()
        self._shot: Mapping[str, Any] | None = None
        self._eta: float | None = None
        self._eta_at = now
        self._drawn = 0
        self._last = float("-inf")
        self._said = ""
        self._gone = False

    def __enter__(self) -> ProgressView:
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._ticker is not None:
            self._ticker.join(timeout=2)
        with self._lock:
            if self._shot is not None:
                self._show(force=True)
            self._drawn = 0

    def on_snapshot(self, shot: Mapping[str, Any]) -> None:
        """Take in the newest snapshot; draws when something changed, at most every second."""
        with self._lock:
            now = time.monotonic()
            before = self._shot["resource"]["done"] if self._shot is not None else None
            self._shot = shot
            if before != shot["resource"]["done"]:
                self._eta, self._eta_at = self._pace.eta(shot, now), now
            self._show()

    def on_message(self, message: str) -> None:
        """Write a message above the redrawn lines, or as a line."""
        with self._lock:
            self._erase()
            self._write(message.rstrip("\n") + "\n")
            if self._live and self._shot is not None:
                self._show(force=True)

    def _tick(self) -> None:
        while not self._over.wait(REDRAW_SECONDS):
            with self._lock:
                if self._shot is not None:
                    self._show()

    def _show(self, force: bool = False) -> None:
        assert self._shot is not None
        now = time.monotonic()
        since = now - self._last
        gist = f"{describe_trials(self._shot)}, {describe_best(self._shot['best'])}"
        if not force:
            due = since >= REDRAW_SECONDS if self._live else since >= PLAIN_SECONDS
            changed = gist != self._said and since >= REDRAW_SECONDS
            if not (due or changed):
                return
        elif not self._live and gist == self._said and since < REDRAW_SECONDS:
            return
        self._last, self._said = now, gist
        if self._live:
            self._redraw(now)
        else:
            self._write(f"[{duration(now - self._began)}] {gist}{self._outlook(now)}\n")

    def _outlook(self, now: float) -> str:
        assert self._shot is not None
        share = share_done(self._shot)
        text = "" if share is None else f", {share:.0%}"
        if self._eta is not None and share is not None and share < 1:
            text += f", ETA {duration(self._eta - (now - self._eta_at))}"
        return text

    def _redraw(self, now: float) -> None:
        assert self._shot is not None
        share = share_done(self._shot)
        filled = round(BAR_WIDTH * (share or 0.0))
        bar = f"[{'#' * filled}{'-' * (BAR_WIDTH - filled)}]"
        columns = max(20, shutil.get_terminal_size().columns - 1)
        lines = [
            f"{self._shot['name']} {bar}{self._outlook(now).removeprefix(',')}, {duration(now - self._began)} elapsed",
            f"  {describe_trials(self._shot)}, {describe_best(self._shot['best'])}",
        ]
        self._erase()
        self._write("".join(f"{line[:columns]}\n" for line in lines))
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            self._write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0

    def _write(self, text: str) -> None:
        if self._gone:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (BrokenPipeError, ValueError):
            self._gone = True
