"""However a driver ends, but for a kill, the ledger says why; the leases' backend is a small machine without Ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.base import ClusterLost
from evaluators.base import ItemSet, Report, summarise
from pipelines.finetune.checkpoint import placing, write_complete
from sweeps import driver
from sweeps.commands.look import describe, read_snapshot
from sweeps.driver import INTERRUPTED, _Drive, resume
from sweeps.events import Event
from sweeps.failures import Failure
from sweeps.interrupts import terminable
from sweeps.ledger import Ledger
from sweeps.load import LoadedSweep, load_text
from sweeps.loop import CallFailed, Later, Loop
from sweeps.paths import SweepPaths

FILE = """
name: small
pipeline: {type: custom, import_path: "toy:Toy", total: 2, metrics: {loss: minimize}, kwargs: {x: 0.1}}
parameters: {kwargs.x: [0.1]}
method: grid
metric: loss
"""
HOST = {"pid": 7, "host": "here", "version": "0", "slots": 1, "cpus": 1, "gpus": 0, "workers": 1, "address": None}


class Broken:
    """Runs every lease to its end, then makes calls that end with `error`; with `early` it ends so before any lease."""

    slots = 1

    def __init__(self, paths: SweepPaths, error: BaseException, early: bool) -> None:
        self.paths, self.error, self.early = paths, error, early

    def run(self, loop: Loop) -> None:
        if self.early:
            raise self.error
        while (lease := loop.ask()) is not None:
            score = summarise("loss", "tune", "minimize", ItemSet(("a", "b")), [0.1, 0.2])
            report = Report(lease.milestones[-1], (score,), checkpoint="checkpoint-2")
            with placing(self.paths.attempt(lease.attempt) / "checkpoint-2") as folder:
                write_complete(folder, report)
            loop.report(lease.id, report)
            loop.ended(lease.id)

    def call(self, function: str, payload: Mapping[str, Any], on_progress: Callable[[str], None] | None = None) -> Any:
        raise self.error

    def start(self, function: str, payload: Mapping[str, Any]) -> Later:
        return Later(lambda on_progress: self.call(function, payload, on_progress))

    def export(self, numbers: Sequence[Any]) -> None: ...

    def close(self) -> None: ...


def drive(folder: Path, error: BaseException, early: bool) -> tuple[LoadedSweep, Callable[[], int], Ledger]:
    """A sweep that is about to be driven, and its walk."""
    (folder / "toy.py").write_text("class Toy: ...\n")
    loaded = load_text((FILE + f"storage: {folder / 'runs'}\n").encode(), folder)
    ledger = Ledger.create(loaded.paths.root, durable=False)
    ledger.append([Event("sweep_created", {"name": "small", "spec": loaded.record(), "versions": {}, "space": {}})])
    walk = _Drive(loaded, ledger, loaded.paths, Broken(loaded.paths, error, early), HOST, None, lambda text: None)
    return loaded, walk.to_the_end, ledger


def last(loaded: LoadedSweep, count: int) -> list[tuple[str, Mapping[str, Any]]]:
    ledger = Ledger.read(loaded.paths.root)
    try:
        return [(event.kind, event.body) for event in ledger.events()][-count:]
    finally:
        ledger.drop()


@pytest.mark.parametrize("early", [True, False])
def test_ctrl_c_is_a_stop_also_where_no_loop_could_write_it(tmp_path: Path, early: bool) -> None:
    loaded, walk, _ = drive(tmp_path, KeyboardInterrupt(), early)
    assert walk() == INTERRUPTED
    assert last(loaded, 2) == [("stop_requested", {"by": "ctrl-c"}), ("driver_ended", {"reason": "interrupted"})]
    assert read_snapshot(loaded.paths)["state"] == "stopped"


def test_a_lost_cluster_and_a_failed_call_are_told_with_the_reason(tmp_path: Path) -> None:
    for name, error, early, end in (
        ("lost", ClusterLost("the head is gone"), True, {"reason": "interrupted", "why": "the head is gone"}),
        ("call", CallFailed(Failure("user", "no such file")), False, {"reason": "aborted", "why": "no such file"}),
    ):
        (folder := tmp_path / name).mkdir()
        loaded, walk, _ = drive(folder, error, early)
        assert walk() != 0
        assert last(loaded, 1) == [("driver_ended", end)]
        shot = read_snapshot(loaded.paths)
        assert (shot["state"], shot["last_driver"]["why"]) == ("interrupted", end["why"])


def test_an_error_that_nobody_expected_is_told_too(tmp_path: Path) -> None:
    loaded, walk, _ = drive(tmp_path, ZeroDivisionError("by nothing"), early=True)
    with pytest.raises(ZeroDivisionError):
        walk()
    end = {"reason": "interrupted", "why": "ZeroDivisionError: by nothing"}
    assert last(loaded, 1) == [("driver_ended", end)]


def test_the_cluster_is_let_go_before_trackers_and_uploads_are_waited_for(tmp_path: Path) -> None:
    loaded, walk, ledger = drive(tmp_path, KeyboardInterrupt(), early=True)
    told: list[str] = []

    class Tracker:
        def start(self) -> None: ...

        def poll(self) -> None: ...

        def finish(self) -> None:
            told.append("trackers")

    def let_go() -> None:
        told.append("let go")
        assert ledger.holder is None
        raise ConnectionError("the head is gone")

    own = walk.__self__  # type: ignore[attr-defined]
    own._tracking, own._let_go = Tracker(), let_go
    with pytest.raises(ConnectionError):
        walk()
    assert told == ["let go", "trackers"]
    assert last(loaded, 1)[0][0] == "driver_ended"


def test_a_driver_that_hangs_is_written_off_once_with_the_reason(tmp_path: Path) -> None:
    loaded, walk, _ = drive(tmp_path, KeyboardInterrupt(), early=True)
    own = walk.__self__  # type: ignore[attr-defined]
    own._words.hang("nobody is at work yet")
    assert last(loaded, 1)[0][0] == "sweep_created"

    def run(loop: Loop) -> None:
        watchdog = threading.Thread(target=own._words.hang, args=("the head is gone",))
        watchdog.start()
        watchdog.join()
        raise KeyboardInterrupt  # it came out of the call after all

    own._backend.run = run
    assert walk() == INTERRUPTED
    own._words.hang("too late")
    ends = [body for kind, body in last(loaded, 3) if kind == "driver_ended"]
    assert ends == [{"reason": "interrupted", "why": "the head is gone"}]
    shot = read_snapshot(loaded.paths)
    assert (shot["state"], shot["last_driver"]["why"]) == ("interrupted", "the head is gone")


def test_a_stopped_sweep_goes_on_with_another_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, walk, _ = drive(tmp_path, KeyboardInterrupt(), early=True)
    paths, given = loaded.paths, []
    assert walk() == INTERRUPTED

    @contextlib.contextmanager
    def connected(loaded: LoadedSweep, *others: Any) -> Iterator[Broken]:
        given.append(loaded.spec.priority)
        yield Broken(paths, KeyboardInterrupt(), early=True)

    monkeypatch.setattr(driver, "_connected", connected)
    monkeypatch.setattr(driver, "_host", lambda backend, address: HOST)
    assert "priority" not in describe(read_snapshot(paths), paths)
    changed = ("priority_changed", {"priority": 5, "before": 0})
    for priority, told in ((5, [changed]), (5, []), (None, [])):
        assert resume(paths, priority=priority) == INTERRUPTED
        assert last(loaded, 3 + len(told))[:-2] == [("driver_started", HOST), *told]
        assert "  priority 5 (0 before)\n" in describe(read_snapshot(paths), paths)
    assert given == [5, 5, 5]
    assert json.loads(paths.resolved_spec.read_text())["spec"]["priority"] == 5


def test_a_finished_sweep_is_given_no_priority(tmp_path: Path) -> None:
    loaded, _, ledger = drive(tmp_path, KeyboardInterrupt(), early=True)
    ledger.append([Event("sweep_finished", {"trials": 0, "failed": 0, "best": None, "seconds": 1.0})])
    ledger.close()

    class Said:
        def on_message(self, message: str) -> None:
            said.append(message)

        def on_state(self, *seen: Any) -> None: ...

    said: list[str] = []
    assert resume(loaded.paths, priority=5, progress=Said()) == 1
    assert "nothing to resume" in said[0]
    assert last(loaded, 1)[0][0] == "sweep_finished"


def test_sigterm_is_a_ctrl_c_from_the_beginning_to_the_last_upload() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_last_words_are_written_through_another_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, walk, ledger = drive(tmp_path, KeyboardInterrupt(), early=True)
    append = ledger.append

    def pressed_again(events: Sequence[Event]) -> list[Event]:
        if events[-1].kind == "driver_ended":
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
        return append(events)

    monkeypatch.setattr(ledger, "append", pressed_again)
    before = signal.getsignal(signal.SIGINT)
    assert walk() == INTERRUPTED
    assert last(loaded, 1)[0][0] == "driver_ended"
    assert signal.getsignal(signal.SIGINT) is before
