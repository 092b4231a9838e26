"""`status` and `status --watch`: followed by the newest events alone, and told in words."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from simulated_sweeps import events_of, simulate

from sweeps.commands import look, places
from sweeps.commands import watch as watching
from sweeps.commands.look import describe, logs, read_snapshot, read_state, status
from sweeps.commands.watch import Follower, watch
from sweeps.events import Event
from sweeps.ledger import Ledger, LedgerError
from sweeps.load import LoadedSweep, load_resolved
from sweeps.lock import DriverLock
from sweeps.notes import Note
from sweeps.overview import overview
from sweeps.paths import SweepPaths
from sweeps.progress import snapshot


@pytest.fixture
def whole(tmp_path: Path) -> tuple[LoadedSweep, list[Event]]:
    loaded = simulate(tmp_path / "whole", trials=9)
    return loaded, events_of(loaded)


def write(root: Path, events: list[Event]) -> Ledger:
    """A driver's ledger with the events in it, held."""
    ledger = Ledger.create(root, durable=False)
    for event in events:
        ledger.clock = lambda event=event: event.time  # type: ignore[misc]
        ledger.append([event])
    return ledger


@pytest.fixture
def half(whole: tuple[LoadedSweep, list[Event]], tmp_path: Path) -> tuple[SweepPaths, list[Event], Ledger]:
    """A sweep under way, with a driver."""
    loaded, events = whole
    paths = SweepPaths(tmp_path / "half")
    ledger = write(paths.root, events[: len(events) // 2])
    paths.resolved_spec.write_text(json.dumps(loaded.record()))
    return paths, events, ledger


def test_a_follower_reads_each_event_once(
    half: tuple[SweepPaths, list[Event], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, events, ledger = half
    middle = len(events) // 2
    follower = Follower(paths)
    assert follower.state.seq == middle
    asked: list[int] = []
    plain = Ledger.events

    def counted(self: Ledger, after: int = 0):
        for event in plain(self, after):
            asked.append(event.seq)
            yield event

    monkeypatch.setattr(Ledger, "events", counted)
    follower.catch_up()
    assert asked == []
    ledger.append(events[middle : middle + 3])
    follower.catch_up()
    assert asked == [middle + 1, middle + 2, middle + 3]
    state = read_state(paths)
    assert follower.state == state
    follower.close()
    ledger.drop()


def test_a_follower_begins_again_with_another_ledger_file(half: tuple[SweepPaths, list[Event], Ledger]) -> None:
    paths, events, ledger = half
    follower = Follower(paths)
    ledger.close()
    for file in paths.root.glob("ledger.sqlite*"):
        file.unlink()
    follower.catch_up()
    assert follower.state.seq == len(events) // 2
    assert read_state(paths) == follower.state
    shutil.rmtree(paths.segments)
    with pytest.raises(LedgerError, match="no sweep"):
        follower.catch_up()


def test_a_snapshot_tells_what_people_ask(half: tuple[SweepPaths, list[Event], Ledger]) -> None:
    paths, _, ledger = half
    shot = read_snapshot(paths)
    assert shot["driver"]["pid"] == os.getpid()
    assert shot["devices"] == {"slots": 4, "cpus": 1.0, "gpus": 0.5, "workers": None}
    assert shot["eta"]["low"] <= shot["eta"]["seconds"] <= shot["eta"]["high"]
    text = describe(shot, paths)
    assert "half: running" in text.replace("gsm8k-lora", "half")
    assert f"driver   pid {os.getpid()} on " in text
    assert "of 4 slots busy, each 1 CPU and 0.5 GPUs" in text
    assert "left     ETA " in text
    assert "last report " in text
    ledger.append([Event("driver_ended", {"reason": "aborted"})])
    ledger.close()
    shot = read_snapshot(paths)
    assert (shot["state"], shot["eta"], shot["driver"]) == ("interrupted", None, None)
    assert "none is running; the last one, pid 0 on elsewhere, gave up" in describe(shot, paths)


def test_a_killed_driver_is_told_from_one_that_ended(half: tuple[SweepPaths, list[Event], Ledger]) -> None:
    paths, _, ledger = half
    ledger.drop()
    assert "ended without a word (killed, or its machine went down)" in describe(read_snapshot(paths), paths)


def test_failures_are_counted_by_kind(whole: tuple[LoadedSweep, list[Event]], tmp_path: Path) -> None:
    loaded, events = whole
    paths = SweepPaths(tmp_path / "failing")
    run = next(event.body["run"] for event in events if event.kind == "lease_started")
    body = {"lease": "l", "run": run, "attempt": 0, "traceback": "", "final": False}
    more = [Event("failed", {**body, "kind": kind, "message": "m"}) for kind in ("oom", "node", "oom")]
    ledger = write(paths.root, [*events[:8], *more])
    paths.resolved_spec.write_text(json.dumps(loaded.record()))
    before = read_snapshot(paths)["failures"]
    assert (before.get("oom", 0) >= 2, before["node"]) == (True, 1)
    assert "failures " in describe(read_snapshot(paths), paths)
    ledger.drop()


def test_watching_in_json_prints_changes_alone(
    half: tuple[SweepPaths, list[Event], Ledger], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, events, ledger = half
    waits = iter(range(6))

    def passed(seconds: float) -> None:
        turn = next(waits)
        if turn == 2:
            ledger.append(events[len(events) // 2 : len(events) // 2 + 1])
        if turn == 4:
            ledger.drop()

    monkeypatch.setattr(watching.time, "sleep", passed)
    assert watch(paths, 0.1, as_json=True) == 0
    shots = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [shot["state"] for shot in shots] == ["running", "running", "interrupted"]


def test_ctrl_c_leaves_with_a_summary_and_130(
    half: tuple[SweepPaths, list[Event], Ledger], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, _, ledger = half

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", interrupted)
    assert watch(paths, 0.1, as_json=False) == 130
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert ": running\n" in out
    ledger.drop()


def test_watching_from_a_thread_needs_no_signals(half: tuple[SweepPaths, list[Event], Ledger]) -> None:
    paths, _, ledger = half
    ledger.drop()
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(watch(paths, 0.1, as_json=False)))
    thread.start()
    thread.join(20)
    assert answers == [0]


def test_the_driver_that_ends_between_two_looks_is_not_taken_for_killed(
    half: tuple[SweepPaths, list[Event], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is looked at before the ledger: a sweep that finishes in between is seen as finished, never as interrupted."""
    paths, _, ledger = half
    plain = DriverLock.holder

    def slow(path: Path):
        found = plain(path)
        ledger.append([Event("sweep_finished", {"trials": 1, "failed": 0, "best": None, "seconds": 1.0})])
        ledger.drop()
        return found

    monkeypatch.setattr(DriverLock, "holder", staticmethod(slow))
    assert read_snapshot(paths)["state"] == "finished"


def test_a_sweep_that_lets_another_go_first_says_so_while_its_driver_runs(
    half: tuple[SweepPaths, list[Event], Ledger],
) -> None:
    paths, _, ledger = half
    assert "goes first" not in describe(read_snapshot(paths), paths)
    ledger.append([Event("held_back", {"by": "urgent", "priority": 5})])
    assert "  waiting  sweep urgent (priority 5) goes first\n" in describe(read_snapshot(paths), paths)
    ledger.append([Event("held_back", {"by": "", "priority": 0})])
    assert "  waiting  trials have no place on the cluster yet\n" in describe(read_snapshot(paths), paths)
    ledger.drop()
    assert "waiting  " not in describe(read_snapshot(paths), paths)


def test_a_driver_that_connects_first_is_starting_and_not_what_the_last_one_was(
    half: tuple[SweepPaths, list[Event], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, events, ledger = half
    ledger.append([Event("stop_requested", {"by": "command"})])
    assert read_snapshot(paths)["state"] == "stopping"
    ledger.append([Event("driver_ended", {"reason": "interrupted"})])
    text = describe(read_snapshot(paths), paths)
    assert text.splitlines()[0].endswith(": starting")
    assert "a driver is starting" in text
    started = next(event for event in events if event.kind == "driver_started")
    ledger.append([Event("driver_started", {**started.body, "address": "head:6379"})])
    assert read_snapshot(paths)["state"] == "running"
    ledger.append([Event("driver_ended", {"reason": "interrupted"})])
    ledger.drop()
    assert read_snapshot(paths)["state"] == "interrupted"
    goes_on = f"  next     stockpot resume {paths.root} --address head:6379"
    assert describe(read_snapshot(paths), paths).endswith(goes_on), "it ran on a cluster"
    monkeypatch.setattr(places, "read_note", lambda name: Note(name, "http://head:1", str(paths.root.parent), "job"))
    assert describe(read_snapshot(paths), paths).endswith("  next     stockpot resume half"), "it goes on as a job"


def test_a_lease_without_a_place_is_not_counted_as_running(half: tuple[SweepPaths, list[Event], Ledger]) -> None:
    paths, _, ledger = half
    leases = [run.lease for run in read_state(paths).runs.values() if run.phase == "running"]
    assert f"devices  {len(leases)} of 4 slots busy" in describe(read_snapshot(paths), paths)
    ledger.append([Event("unplaced", {"leases": [leases[0], "one that has ended"]})])
    text = describe(read_snapshot(paths), paths)
    assert f"devices  {len(leases) - 1} of 4 slots busy" in text
    assert f"{len(leases) - 1} running, 1 without a place" in text
    state, loaded = read_state(paths), load_resolved(paths.resolved_spec)
    view = overview(state, loaded, snapshot(state, loaded), (), at=0.0)
    assert (view.phases["running"], view.phases["unplaced"]) == (len(leases) - 1, 1)
    assert [row.phase for row in view.rows].count("unplaced") == 1
    ledger.append([Event("unplaced", {"leases": []})])
    assert "without a place" not in describe(read_snapshot(paths), paths)
    ledger.append([Event("unplaced", {"leases": leases})])
    ledger.drop()
    assert "without a place" not in describe(read_snapshot(paths), paths), "a dead driver's leases wait for nothing"


def test_status_takes_its_arguments(
    half: tuple[SweepPaths, list[Event], Ledger], capsys: pytest.CaptureFixture[str]
) -> None:
    paths, _, ledger = half
    words = argparse.Namespace(name=str(paths.root), storage="nowhere", watch=False, json=True, interval=2.0)
    assert status(words) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(paths.root)
    ledger.drop()


def test_logs_are_followed_while_a_driver_runs(
    half: tuple[SweepPaths, list[Event], Ledger], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, _, ledger = half
    log = paths.log("driver")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("one\ntwo\nthree\n")
    added = iter(["four\n", "five\n"])

    def passed(seconds: float) -> None:
        with log.open("a") as file:
            line = next(added)
            file.write(line)
        if line == "five\n":
            ledger.drop()

    monkeypatch.setattr(look.time, "sleep", passed)
    words = argparse.Namespace(name=str(paths.root), storage="nowhere", trial=None, lines=2, follow=True, json=False)
    assert logs(words) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["two", "three", "four", "five"]
