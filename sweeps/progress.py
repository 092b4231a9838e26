"""Progress for people: what a sweep has done, its best so far, and when it will be over.

`snapshot` folds the ledger's state into a small JSON-ready mapping, the same for the driver and for `stockpot status`.
`ProgressView` shows it: one redrawn screen on a terminal, plain lines elsewhere. It writes in a thread of its own, so that
neither a slow terminal nor one that went away holds a sweep up or ends it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from sweeps.eta import ahead, estimate
from sweeps.glyphs import clean
from sweeps.seeds import by_trial, combined, measured
from sweeps.trial import finite
from sweeps.words import describe_best, describe_trials, duration, share_done, unit_of

if TYPE_CHECKING:
    from sweeps.events import Event
    from sweeps.load import LoadedSweep
    from sweeps.overview import Overview
    from sweeps.state import ReportState, RunState, SweepState

REDRAW_SECONDS = 0.25
"""The screen is drawn this often."""
LINE_SECONDS = 1.0
"""Plain lines are at least so far apart."""
PLAIN_SECONDS = 15.0
"""Without a terminal a line is written at every change, and at least this often."""
WAITING = 10_000
"""Texts that wait for a slow reader at most; then the oldest are left out."""
BAR_WIDTH = 24
COUNTED = ("running", "unplaced", "waiting", "finished", "stopped", "failed")
"""The phases of runs that `trials` counts."""
GOODBYE_SECONDS = 2.0
"""How long the last picture may take on a terminal that does not read."""


def snapshot(state: SweepState, loaded: LoadedSweep, now: float | None = None) -> dict[str, Any]:
    """What the ledger says now, JSON-ready.

    `trials.tried` counts trials that have a result or failed; it never falls. `resource.done` counts each run to its
    newest report, for the driver itself to where it is, `ahead` is what is still to come; `seconds` counts all drivers together, up to the newest event. `eta` (seconds from `at`, with its range)
    is about the trials; `then` says what follows them. `failures` counts by kind, those that were tried again included.
    `held_back` is the sweep of a shared cluster that goes first, without a name where all places are taken.

    Args:
        state: the fold of the ledger.
        loaded: the sweep.
        now: seconds since the epoch; default: the clock's.
    """
    from sweeps.describe import describe

    at = time.time() if now is None else now
    found = best(state, loaded)
    plan = describe(loaded)
    expected, rungs = plan["resource"], plan["rungs"]
    phase = _phase(state)
    running = phase == "running"
    going_on = running or (phase == "stopping" and state.interrupted)
    eta = estimate(state, loaded, rungs, at) if running else None
    kinds = Counter(failure.kind for run in state.runs.values() for failure in run.failures)
    follows = ["soup"] * (loaded.spec.soup is not None) + ["final step"]
    return {
        "name": state.name,
        "state": phase,
        "metric": loaded.metric,
        "trials": _trials(state, loaded),
        "best": found,
        "front": None if found is None else found.get("front"),
        "resource": {
            "done": sum(run.done for run in state.runs.values()),
            "expected": expected,
        },
        "ahead": None if rungs is None else ahead(state, loaded, rungs).units if going_on else 0,
        "unit": unit_of(loaded.spec.pipeline.type),
        "seconds": state.spent + max(0.0, state.updated_at - state.driver_started_at),
        "started_at": state.started_at,
        "updated_at": state.updated_at,
        "reported_at": max((run.newest.time for run in state.runs.values() if run.newest is not None), default=None),
        "moved_at": max((run.moved_at for run in state.runs.values()), default=0.0),
        "stall_after": loaded.spec.stall_after,
        "failures": dict(sorted(kinds.items())),
        "devices": {key: state.driver.get(key) for key in ("slots", "cpus", "gpus", "workers")},
        "last_driver": {key: state.driver.get(key) for key in ("pid", "host", "address")}
        | {"ended": state.driver_ended, "why": state.driver_ended_why},
        "eta": None if eta is None else eta.record(),
        "then": " and ".join(follows),
        "held_back": None if state.held_back is None else dict(zip(("by", "priority"), state.held_back, strict=True)),
        "priority": {"priority": loaded.spec.priority, "before": state.priority_before},
        "at": at,
    }


def _trials(state: SweepState, loaded: LoadedSweep) -> dict[str, int | None]:
    phases = Counter(state.phase_of(run) for run in state.runs.values())
    tried = {run.trial for run in state.runs.values() if _standing(run, loaded) is not None or run.phase == "failed"}
    tried &= state.searched.keys()
    tried |= {trial.id for trial in state.trials.values() if trial.duplicate_of is not None}
    counted = {phase: phases[phase] for phase in COUNTED}
    return {"total": loaded.trials, "started": len(state.searched), "tried": len(tried), **counted}


def no_trials() -> dict[str, int | None]:
    """`trials` of a sweep that has a job and no ledger yet."""
    return {"total": None, "started": 0, "tried": 0, **dict.fromkeys(COUNTED, 0)}


def best(state: SweepState, loaded: LoadedSweep) -> dict[str, Any] | None:
    """The best configuration among those that got furthest with a finite value, or None; `seed` is its best run's.

    Where runs are compared on the way, that is the highest milestone reached; elsewhere every finished run counts. With
    several tuning seeds value and error are of the mean over `seeds` of them, and more seeds come before fewer.
    """
    sign = 1.0 if loaded.direction == "minimize" else -1.0
    found = []
    for runs in by_trial(state.searched_runs).values():
        stood = [(run, report) for run in runs if (report := _standing(run, loaded)) is not None]
        scored = [(_far(report, loaded), report, run) for run, report in stood if _scored(report, loaded.metric)]
        if not scored:
            continue
        far = max(entry[0] for entry in scored)
        there = [(run, report.resource) for reached, report, run in scored if reached == far]
        value = combined([measured(run, resource, loaded.metric) for run, resource in there])
        run, resource = min(there, key=lambda e: sign * measured(e[0], e[1], loaded.metric).value)
        found.append((-far, -len(there), sign * value.value, run.order, run, resource, value))
    if not found:
        return None
    *_, run, resource, value = min(found, key=lambda entry: entry[:4])
    seeds = -min(found, key=lambda entry: entry[:4])[1]
    front = front_size(state, loaded)
    return {
        "trial": run.trial,
        "seed": run.seed,
        "metric": loaded.metric,
        "value": value.value,
        "se": value.se if finite(value.se) else None,
        "n": value.n,
        "resource": resource,
        **({} if seeds == 1 else {"seeds": seeds}),
        **({} if front is None else {"front": front}),
    }


def front_size(state: SweepState, loaded: LoadedSweep) -> int | None:
    """With several metrics, how many of the runs that got furthest no other dominates; None with one metric."""
    if len(loaded.metrics) == 1:
        return None
    from sweeps.pareto import fronts

    found: list[tuple[int, int, list[float]]] = []
    for runs in by_trial(state.searched_runs).values():
        stood = [(run, report) for run in runs if (report := _standing(run, loaded)) is not None]
        whole = [(run, r) for run, r in stood if all(_scored(r, metric.name) for metric in loaded.metrics)]
        far = max((_far(report, loaded) for _, report in whole), default=None)
        there = [(run, report.resource) for run, report in whole if _far(report, loaded) == far]
        if far is not None:
            means = [fmean(measured(run, at, metric.name).value for run, at in there) for metric in loaded.metrics]
            found.append((far, len(there), [m.sign * v for m, v in zip(loaded.metrics, means, strict=True)]))
    furthest = max((entry[:2] for entry in found), default=(0, 0))
    return fronts([vector for *level, vector in found if tuple(level) == furthest]).count(0)


def _far(report: ReportState, loaded: LoadedSweep) -> int:
    return report.resource if loaded.spec.early_terminate.type != "none" else 0


def _scored(report: ReportState, metric: str) -> bool:
    return finite(report.value(metric))


def _standing(run: RunState, loaded: LoadedSweep) -> ReportState | None:
    """The report a run stands on: at its highest milestone; a finished run's last one."""
    if run.phase == "finished":
        return run.newest
    reached = [resource for resource in loaded.milestones if resource in run.reports]
    return run.reports[reached[-1]] if reached else None


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


class ProgressView:
    """Shows a sweep and messages. Use it as a context manager; `on_*` may be called from any thread, and none waits.

    Args:
        stream: where to write.
        live: draw a screen instead of appending plain lines; default: where the stream is a terminal that can be drawn on.
        before: seconds that were spent before the view began.
        alternate: draw on the terminal's alternate screen, and leave nothing behind.
        hint: the screen's last line.

    Attributes:
        gone: whether the reader went away.
    """

    def __init__(
        self, stream: TextIO, live: bool | None = None, before: float = 0.0, alternate: bool = False, hint: str = ""
    ) -> None:
        from sweeps.terminal import Terminal, can_draw

        self.gone = False
        self._stream = stream
        self._live = can_draw(stream) if live is None else live
        self._terminal = Terminal(stream, alternate) if self._live else None
        self._hint = hint
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._over, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._began = time.monotonic() - before
        self._shot: Mapping[str, Any] | None = None
        self._shot_at = 0.0
        self._view: Overview | None = None
        self._news: Any = None
        self._texts: deque[str] = deque(maxlen=WAITING)
        self._last = float("-inf")
        self._said = ""

    def __enter__(self) -> ProgressView:
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._shot is not None and not self._live:
                self._line(force=True)
        self._over.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(GOODBYE_SECONDS if self._live else None)

    def on_state(self, state: SweepState, loaded: LoadedSweep, events: Callable[[int], Iterable[Event]]) -> None:
        """Take in how far the sweep is; see `sweeps.driver.Progress`."""
        self.on_read(state, loaded, snapshot(state, loaded), events)

    def on_read(
        self,
        state: SweepState,
        loaded: LoadedSweep,
        shot: Mapping[str, Any],
        events: Callable[[int], Iterable[Event]],
    ) -> None:
        """As `on_state`, with the snapshot as a reader of the ledger sees it."""
        if self.gone:
            return
        if self._live:
            from sweeps.news import News
            from sweeps.overview import overview

            news = self._news = self._news or News()
            for event in events(news.seq):
                news.apply(event)
            news.new_best(shot["best"], shot["updated_at"])
            view = overview(state, loaded, shot, news.items, shot["at"], self._hint)
            with self._lock:
                self._view = view
        self.on_snapshot(shot)

    def on_snapshot(self, shot: Mapping[str, Any]) -> None:
        """Take in the newest snapshot; without a terminal a line is written when something changed."""
        with self._lock:
            self._shot, self._shot_at = shot, time.monotonic()
            if not self._live:
                self._line()
        self._nudge()

    def on_message(self, message: str) -> None:
        """Write a message above the screen, or as a line."""
        with self._lock:
            self._texts.append(clean(message.rstrip("\n"), lines=True) + "\n")
        self._nudge()

    def _nudge(self) -> None:
        if self._thread is None:
            self._flush()
        elif self._texts:
            self._wake.set()

    def _run(self) -> None:
        while not self._over.is_set():
            self._wake.wait(REDRAW_SECONDS)
            self._wake.clear()
            with self._lock:
                if self._shot is not None and not self._live:
                    self._line()
            self._flush()
        self._flush(last=True)

    def _line(self, force: bool = False) -> None:
        """Add a plain line where one is due. The lock is held."""
        assert self._shot is not None
        now = time.monotonic()
        since = now - self._last
        gist = f"{describe_trials(self._shot)}, {describe_best(self._shot['best'])}"
        changed = gist != self._said
        if not (force or since >= PLAIN_SECONDS or (changed and since >= LINE_SECONDS)):
            return
        if force and not changed and since < LINE_SECONDS:
            return
        self._last, self._said = now, gist
        self._texts.append(clean(f"[{duration(now - self._began)}] {gist}{self._outlook(now)}") + "\n")

    def _outlook(self, now: float) -> str:
        assert self._shot is not None
        share = share_done(self._shot)
        text = "" if share is None else f", {share:.0%}"
        eta = self._shot.get("eta")
        if eta is not None and (share is None or share < 1):
            text += f", ETA {duration(eta['seconds'] - (now - self._shot_at))}"
        return text

    def _flush(self, last: bool = False) -> None:
        """Write what waits; on a terminal, draw the screen."""
        with self._writing:
            with self._lock:
                texts, view = list(self._texts), self._view
                self._texts.clear()
            if self._terminal is None:
                self._write("".join(texts))
            elif last:
                self._write(self._terminal.close(texts, self._ending() if not self._terminal.alternate else []))
            else:
                self._write(self._terminal.frame(view, texts, time.time()))

    def _ending(self) -> list[str]:
        """What stays of the screen: two lines."""
        if self._shot is None:
            return []
        now = time.monotonic()
        share = share_done(self._shot)
        filled = round(BAR_WIDTH * (share or 0.0))
        told = "" if share is None else f" {share:.0%},"
        bar = f"[{'#' * filled}{'-' * (BAR_WIDTH - filled)}]"
        return [
            f"{self._shot['name']} {bar}{told} {duration(now - self._began)} elapsed",
            f"  {describe_trials(self._shot)}, {describe_best(self._shot['best'])}",
        ]

    def _write(self, text: str) -> None:
        if self.gone or not text:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self.gone = True
            from sweeps.terminal import let_go

            let_go(self._stream)
