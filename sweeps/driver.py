"""The driver: from a loaded sweep to its last event, and on from wherever an earlier driver was ended.

The walk is the same for a new sweep and for a resumed one: leases until the engine is done, the soup, the final step,
`sweep_finished`. Each stage reads from the ledger what is there already, so that a driver killed at any moment is
followed by one that goes on with the same decisions.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

from cluster.base import ClusterLost
from cluster.packages import code_hash
from sweeps.changes import changes, describe
from sweeps.data import refuse_changed_data
from sweeps.driving import driving, refuse_storage
from sweeps.engine import Engine
from sweeps.events import Event
from sweeps.exported import numbers
from sweeps.fold import apply_event, fold
from sweeps.interrupts import held, terminable, terminate_as_ctrl_c
from sweeps.last_words import LastWords
from sweeps.ledger import Ledger, LedgerError
from sweeps.load import LoadedSweep, from_record
from sweeps.loop import Backend, CallFailed
from sweeps.paths import SweepPaths
from sweeps.progress import snapshot
from sweeps.records import write_resolved
from sweeps.secret_values import masked
from sweeps.shown import Shown
from sweeps.state import SweepState
from sweeps.tracking import Tracking

if TYPE_CHECKING:
    from sweeps.backend import RayBackend

OK, FAILED, INTERRUPTED = 0, 1, 130
RECORDED = ("stockpot", "ray", "torch", "transformers", "trl", "peft", "optuna", "numpy", "scipy")
"""Packages whose versions the first event keeps."""


class Progress(Protocol):
    """Who shows how a driver is getting on. `sweeps.progress.ProgressView` is one. No call waits for a terminal."""

    def on_state(self, state: SweepState, loaded: LoadedSweep, events: Callable[[int], Iterable[Event]]) -> None:
        """How far the sweep is.

        Args:
            state: the fold of the ledger; it changes when this has returned.
            loaded: the sweep.
            events: the ledger's after a `seq`.
        """
        ...

    def on_message(self, message: str) -> None:
        """Something a person should read once."""
        ...


def submit(
    loaded: LoadedSweep, *, address: str | None = None, insecure: bool = False, progress: Progress | None = None
) -> int:
    """Run a new sweep to its end.

    Args:
        loaded: the sweep, from the door.
        address: a Ray cluster; None starts Ray here.
        insecure: also one that lets everybody in.
        progress: who shows how it goes.

    Returns:
        0 if at least one run finished and the final step ran, 1 otherwise, 130 when interrupted (and resumable).

    Raises:
        LedgerError: when the name is in use; nothing was changed.
        ClusterError: when the cluster can't be reached, or can never run one trial; nothing was written.
        UserError: when `env` names a variable that is not there; nothing was written.
        StorageError: when remote storage can't be used; nothing was written.
        KeyboardInterrupt: before anything was written.
    """
    paths = loaded.paths
    refuse_used_name(paths)
    refuse_storage(paths)
    say = _sayer(paths, progress)
    for warning in loaded.warnings:
        say(f"warning: {warning}")
    words = LastWords()
    with terminable(), contextlib.ExitStack() as cluster:
        backend = cluster.enter_context(_connected(loaded, paths, address, say, words, insecure))
        with driving(paths, say) as drive:
            ledger = _create(loaded, paths)
            host = _host(backend, address)
            walk = _Drive(loaded, ledger, paths, backend, host, progress, say, cluster.close, words)
            status = walk.to_the_end()
    return drive.status(status)


def resume(
    paths: SweepPaths,
    *,
    budget: Mapping[str, Any] | None = None,
    priority: int | None = None,
    address: str | None = None,
    insecure: bool = False,
    progress: Progress | None = None,
) -> int:
    """Go on with a sweep whose driver has ended, however it did; with another budget also with one that is finished.

    Args:
        paths: where the sweep lies.
        budget: `trials`, `hours` or both, in place of the sweep's own (`sweeps.budget`).
        priority: on a cluster that sweeps share, in place of the sweep's own.
        address: a Ray cluster; None starts Ray here.
        insecure: also one that lets everybody in.
        progress: who shows how it goes.

    Returns:
        As `submit`; for a sweep that is finished already, what it ended with.

    Raises:
        BudgetError: when nothing could come of the budget; nothing was written.
        LedgerError: when there is no such sweep, or another driver is at work on it.
        ClusterError: when the cluster can't be reached, or can never run one trial.
        UserError: when `env` names a variable that is not there, or a data file has changed.
        StorageError: when remote storage can't be used, or another driver has the sweep there.
    """
    say = _sayer(paths, progress)
    with terminable(), driving(paths, say) as drive:
        status = _resume(paths, budget, priority, address, progress, say, insecure)
    return drive.status(status)


def _resume(
    paths: SweepPaths,
    budget: Mapping[str, Any] | None,
    priority: int | None,
    address: str | None,
    progress: Progress | None,
    say: Callable[[str], None],
    insecure: bool,
) -> int:
    """As `resume`, with the working folder as the storage has it."""
    ledger = Ledger.open(paths.root)
    try:
        state = fold(ledger.events())
        if not state.seq:
            raise LedgerError(f"{paths.root} holds nothing yet: its driver was ended before it began; submit it again")
        if state.finished is not None and not budget:
            say(
                f"{paths.name} is finished with {len(state.searched)} trials; there is nothing to resume "
                f"(--budget trials={2 * len(state.searched)} would add trials)"
            )
            return _status(state)
        changed = changes(from_record(state.spec), state, budget, priority)
        for event in changed:
            apply_event(state, event)
        loaded = from_record(state.spec)
        refuse_changed_data(loaded)
        with contextlib.ExitStack() as cluster:
            words = LastWords()
            backend = cluster.enter_context(_connected(loaded, paths, address, say, words, insecure))
            host = _host(backend, address)
            walk = _Drive(loaded, ledger, paths, backend, host, progress, say, cluster.close, words)
            return walk.to_the_end(changed)
    finally:
        ledger.drop()


def refuse_used_name(paths: SweepPaths) -> None:
    """Raise when a sweep's folder holds a sweep.

    Raises:
        LedgerError: asking for `resume` or another name.
    """
    if not paths.ledger.is_file() and not paths.segments.is_dir():
        return
    reader = Ledger.read(paths.root)
    used = next(iter(reader.events()), None) is not None
    reader.close()
    if used:
        raise LedgerError(
            f"the name '{paths.name}' is in use in {paths.root.parent}: go on with `stockpot resume {paths.name}`, "
            "or choose another name (name: in the file, or --set name=...)"
        )


def _create(loaded: LoadedSweep, paths: SweepPaths) -> Ledger:
    """The sweep's folder, its resolved spec and its ledger with the first event."""
    record = loaded.record()
    paths.root.mkdir(parents=True, exist_ok=True)
    ledger = Ledger.create(paths.root)
    write_resolved(paths, record)
    space = {"paths": list(loaded.space.paths), "configurations": loaded.space.size}
    body = {"name": loaded.spec.name, "spec": record, "versions": _versions(), "space": space}
    ledger.append([Event("sweep_created", body)])
    return ledger


def _versions() -> dict[str, str]:
    found = {}
    for name in RECORDED:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextlib.contextmanager
def _connected(
    loaded: LoadedSweep,
    paths: SweepPaths,
    address: str | None,
    say: Callable[[str], None],
    words: LastWords,
    insecure: bool,
) -> Iterator[RayBackend]:
    """The backend, until the cluster is let go."""
    say(f"connecting to Ray at {address}" if address else "starting Ray here")
    from sweeps.backend import RayBackend

    backend = RayBackend(loaded, paths, address, on_message=say, on_hang=words.hang, insecure=insecure)
    try:
        terminate_as_ctrl_c()  # Ray has put its own in the place of ours
        backend.refuse_unseen(paths.root.parent)
        placed = backend.placement
        say(f"{placed.slots} trial{'s' if placed.slots > 1 else ''} at a time, each with {placed.each}")
        yield backend
    finally:
        backend.close()


def _host(backend: RayBackend, address: str | None) -> dict[str, Any]:
    """Who drives and on what: the body of `driver_started`."""
    placed = backend.placement
    on = {"slots": placed.slots, "cpus": placed.cpus, "gpus": placed.gpus, "workers": placed.workers}
    code = {"version": version("stockpot"), "code": code_hash(), "differences": list(backend.differences)}
    return {"pid": os.getpid(), "host": socket.gethostname(), "address": address, **code, **on}


def _sayer(paths: SweepPaths, progress: Progress | None) -> Callable[[str], None]:
    """Says to the person, and to the driver's log where the sweep has its folder."""

    def say(text: str) -> None:
        if progress is not None:
            progress.on_message(text)
        if paths.ledger.is_file():
            paths.logs.mkdir(exist_ok=True)
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            with paths.log("driver").open("a", encoding="utf-8") as log:
                log.write(f"{stamp} {text}\n")

    return say


class _Drive:
    """One driver's walk. The ledger is open; it is closed when the walk ends, and then `let_go` lets the cluster go."""

    def __init__(
        self,
        loaded: LoadedSweep,
        ledger: Ledger,
        paths: SweepPaths,
        backend: Backend,
        host: Mapping[str, Any],
        progress: Progress | None,
        say: Callable[[str], None],
        let_go: Callable[[], None] = lambda: None,
        words: LastWords | None = None,
    ) -> None:
        self._loaded = loaded
        self._words = words or LastWords()
        self._let_go = let_go
        self._ledger = ledger
        self._paths = paths
        self._backend = backend
        self._host = host
        self._progress = progress
        self._said = say
        self._state: SweepState | None = None
        self._tracking = Tracking(paths, loaded.spec.track, say)

    def to_the_end(self, changed: Sequence[Event] = ()) -> int:
        """Leases, soup, final step; the exit status.

        Args:
            changed: of the sweep, that this driver begins with (`sweeps.changes`).
        """
        end: dict[str, Any] = {"reason": "interrupted"}
        status, asked = INTERRUPTED, ""
        try:
            self._words.begin(self._ledger)
            self._ledger.append([Event("driver_started", self._host), *changed])
            write_resolved(self._paths, fold(self._ledger.events()).spec)
            for change in changed:
                self._said(describe(change))
            self._tracking.start()
            reason = self._tune()
            if reason == "finished":
                self._conclude()
                status = _status(fold(self._ledger.events()))
            elif reason == "aborted":
                status = FAILED
            end["reason"] = reason
        except KeyboardInterrupt as interrupt:
            asked = str(interrupt) or "ctrl-c"
        except ClusterLost as lost:
            end["why"] = str(lost)
            self._say(f"{lost}; {lost.mend}")
        except CallFailed as failed:
            end, status = {"reason": "aborted", "why": failed.failure.message}, FAILED
            self._say(f"failed: {failed.failure.message} (see {self._paths.log('calls')}); mend it, then resume")
        except Exception as error:
            end["why"] = masked(f"{type(error).__name__}: {error}")
            raise
        finally:
            with held():
                self._words.write([*(self._stop(asked) if asked else ()), Event("driver_ended", end)])
            self._show()
            self._ledger.close()
            try:
                self._let_go()  # GPUs wait for no tracker, and for no upload
            finally:
                self._tracking.finish()
        return status

    def _stop(self, by: str) -> list[Event]:
        """The request to stop, where nobody wrote it: leases were over, or the second Ctrl-C came at once."""
        return [Event("stop_requested", {"by": by})] if fold(self._ledger.events()).stop is None else []

    def _tune(self) -> str:
        """Leases until there are none left; `finished`, `interrupted` or `aborted`."""
        engine = Engine(self._loaded, self._ledger, self._paths, self._backend.slots)
        self._state = engine.state
        engine.drive(self._backend, Shown(engine, self._show))
        if engine.abort is not None:
            self._say(f"stopped: the first trials all failed alike: {engine.abort.message}")
            return "aborted"
        return "interrupted" if engine.interrupted else "finished"

    def _conclude(self) -> None:
        """Soup, final step and the last event; what is in the ledger already is not made again."""
        state = fold(self._ledger.events())
        if any(run.phase in ("finished", "stopped") and run.reports for run in state.runs.values()):
            from sweeps.probing import probe_latency

            probe_latency(self._loaded, self._ledger, self._backend, self._say)
            soup = None
            if self._loaded.spec.soup is not None:
                from sweeps.soup import make_soup

                self._show()
                soup = make_soup(
                    self._loaded, self._ledger, self._paths, self._backend, self._loaded.spec.soup, self._say
                )
            from sweeps.final import run_final

            self._show()
            run_final(self._loaded, self._ledger, self._paths, self._backend, soup, self._say)
        else:
            self._say("no trial has a result; the soup and the final step are left out")
        state = fold(self._ledger.events())
        failed = sum(run.phase == "failed" for run in state.runs.values())
        shot = snapshot(state, self._loaded)
        seconds = round(state.spent + time.time() - state.driver_started_at, 3)
        body = {"trials": len(state.searched), "failed": failed, "best": shot["best"], "seconds": seconds}
        self._ledger.append([Event("sweep_finished", body)])

    def _say(self, text: str) -> None:
        """Say it, and show what has become of the sweep since."""
        self._said(text)
        self._show()

    def _show(self) -> None:
        """Show the sweep as it is: the engine's fold, kept up with what the later stages append.

        A person sees it, the cluster's monitoring gets its numbers, and trackers say what they complain of.
        """
        self._tracking.poll()
        if self._state is None:
            return
        for event in self._ledger.events(after=self._state.seq):
            apply_event(self._state, event)
        self._backend.export(numbers(self._state, self._loaded))
        if self._progress is not None:
            self._progress.on_state(self._state, self._loaded, self._ledger.events)


def _status(state: SweepState) -> int:
    searched = state.searched
    return OK if any(run.phase == "finished" and run.trial in searched for run in state.runs.values()) else FAILED
