"""`list`, `status` and `logs`: read the ledger beside a running driver, or long after one."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.commands.places import find_sweep, go_on, sweeps_under, trial_named, word_for
from sweeps.paths import SweepPaths, is_remote, storage_folder
from sweeps.trial_log import records, shown

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep
    from sweeps.state import RunState, SweepState

FOLLOW_SECONDS = 0.5
ASK_SECONDS = 5.0
"""How often remote storage is asked for what was added to a log; a driver sends it every 20 s."""
ENDINGS = {
    "finished": "finished its walk",
    "interrupted": "was interrupted",
    "aborted": "gave up",
    "was killed": "ended without a word (killed, or its machine went down)",
}
"""How a driver ended, in words."""


def list_sweeps(arguments: argparse.Namespace) -> int:
    """Name, state, trials, best and age of every sweep under the storage."""
    shots = [look(paths) for paths in sweeps_under(arguments.storage)]
    shots.sort(key=lambda shot: -shot["updated_at"])
    if arguments.json:
        print(json.dumps(shots, indent=2, allow_nan=False))
        return 0
    if not shots:
        print(
            f"no sweeps under {arguments.storage if is_remote(arguments.storage) else storage_folder(arguments.storage)}"
        )
        return 0
    rows = [("name", "state", "trials", "best", "age")]
    rows += [_row(shot) for shot in shots]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(shot: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    from sweeps.words import duration

    if "error" in shot:
        return (shot["name"], "damaged", "", shot["error"], duration(time.time() - shot["updated_at"]))
    trials, found = shot["trials"], shot["best"]
    total = f"/{trials['total']}" if trials["total"] is not None else ""
    best = "" if found is None else f"{found['metric']} {found['value']:.4g} ({found['trial']})"
    age = duration(time.time() - shot["updated_at"])
    return (shot["name"], shot["state"], f"{trials['tried']}{total}", best, age)


def look(paths: SweepPaths) -> dict[str, Any]:
    """A snapshot of a sweep with the driver that holds it; a ledger that can't be read is told, not raised."""
    from sweeps.ledger import LedgerError
    from sweeps.problems import SpecError

    try:
        return read_snapshot(paths)
    except (LedgerError, SpecError) as error:
        first = str(error).strip().splitlines()[0]
        return {
            "name": paths.name,
            "folder": paths.place,
            "state": "damaged",
            "error": first,
            "updated_at": paths.root.stat().st_mtime,
        }


def read_snapshot(paths: SweepPaths) -> dict[str, Any]:
    """`sweeps.progress.snapshot` of the ledger, with `folder`, `driver` and the state as a reader sees it.

    Raises:
        LedgerError: when the ledger can't be read.
        SpecError: when the resolved spec can't be read.
    """
    from sweeps.driving import holder_of
    from sweeps.load import load_resolved

    driver = holder_of(paths)
    return seen(read_state(paths), load_resolved(paths.resolved_spec), paths, driver)


def seen(state: SweepState, loaded: LoadedSweep, paths: SweepPaths, driver: Mapping[str, Any] | None) -> dict[str, Any]:
    """`sweeps.progress.snapshot` as a reader sees it, who knows whether a driver holds the lock.

    Args:
        state: the fold of the ledger.
        loaded: the sweep.
        paths: where it lies.
        driver: who held the lock before the ledger was read: one that ends in between must not seem to be killed.
    """
    from sweeps.progress import snapshot

    shot = snapshot(state, loaded)
    shot["folder"] = paths.place
    shot["driver"] = dict(driver) if driver is not None else None
    if driver is not None and state.driver_ended is not None and shot["state"] in ("running", "stopping"):
        shot["state"] = "starting"  # what the ledger has is the last driver's; this one connects to Ray first
    if driver is None:
        shot["trials"] |= {"running": 0, "unplaced": 0}  # what a dead driver's trials were doing, they no longer do
        shot["eta"] = shot["held_back"] = None
    if driver is None and shot["state"] != "finished":
        shot["state"] = "stopped" if state.stop is not None else "interrupted"
    return shot


def read_state(paths: SweepPaths) -> SweepState:
    """The fold of a sweep's ledger, read only."""
    from sweeps.fold import fold
    from sweeps.ledger import Ledger

    ledger = Ledger.read(paths.root)
    try:
        return fold(ledger.events())
    finally:
        ledger.close()


def status(arguments: argparse.Namespace) -> int:
    """How far a sweep is, once or until it has ended."""
    paths = find_sweep(arguments.name, arguments.storage)
    if arguments.watch:
        from sweeps.commands.watch import watch

        return watch(paths, arguments.interval, arguments.json)
    shot = read_snapshot(paths)
    if shot["driver"] is None:
        from sweeps.commands.jobs import job_record, open_job

        queued = open_job(paths, insecure=arguments.insecure)
        shot["job"] = None if queued is None else job_record(*queued)
    print(json.dumps(shot, indent=2, allow_nan=False) if arguments.json else describe(shot, paths))
    return 0


def describe(shot: Mapping[str, Any], paths: SweepPaths) -> str:
    """What `status` prints for people."""
    from sweeps.changes import describe_priority
    from sweeps.words import age, describe_best, describe_trials, duration, outlook, share_done, waiting_for

    trials, driver, share = shot["trials"], shot["driver"], share_done(shot)
    spent = "" if share is None else f", {share:.0%} of about {shot['resource']['done'] + shot['ahead']} {shot['unit']}"
    lines = [
        f"{shot['name']}: {shot['state']}",
        f"  trials   {describe_trials(shot)}, {trials['finished']} at the end, {trials['waiting']} waiting at a rung",
        f"  spent    {shot['resource']['done']} {shot['unit']}{spent}, {duration(spent_seconds(shot))}",
        f"  result   {describe_best(shot['best'])}",
    ]
    if shot["failures"]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in shot["failures"].items())
        lines.append(f"  failures {kinds} (stockpot logs {word_for(paths)})")
    if driver is not None and shot["state"] == "running":
        lines.append(f"  left     {outlook(shot, shot['at'])}")
    if shot["held_back"] is not None and shot["state"] == "running":
        lines.append(f"  waiting  {waiting_for(shot['held_back'])}")
    priority = shot["priority"]
    if priority["priority"] or priority["before"] is not None:
        lines.append(f"  priority {describe_priority(**priority)}")
    lines.append(f"  driver   {_driver(shot)}")
    if shot.get("job"):
        from sweeps.commands.jobs import in_words

        lines.append(f"  job      {in_words(shot['job'])}")
    if driver is not None:
        lines.append(f"  devices  {_devices(shot)}")
    heard = shot["reported_at"]
    told = "no report yet" if heard is None else f"last report {age(shot['at'] - heard)} ago"
    lines += [
        f"  news     {told}, last event {age(shot['at'] - shot['updated_at'])} ago",
        f"  folder   {shot['folder']}",
    ]
    if shot["state"] in ("stopped", "interrupted"):
        lines.append(f"  next     {go_on(paths, shot['last_driver']['address'])}")
    elif shot["state"] == "finished":
        lines.append(f"  next     stockpot show {word_for(paths)}")
    return "\n".join(lines)


def spent_seconds(shot: Mapping[str, Any]) -> float:
    """Seconds of all drivers, up to now where one is at work."""
    running = time.time() - shot["updated_at"] if shot["driver"] else 0.0
    return float(shot["seconds"] + max(0.0, running))


def _driver(shot: Mapping[str, Any]) -> str:
    driver, last = shot["driver"], shot["last_driver"]
    if driver is not None:
        return f"pid {driver.get('pid')} on {driver.get('host')} since {driver.get('started')}"
    if last["pid"] is None:
        return "none is running"
    ended = last["ended"] or "was killed"
    why = f": {last['why']}" if last["why"] else ""
    return f"none is running; the last one, pid {last['pid']} on {last['host']}, {ENDINGS.get(ended, ended)}{why}"


def _devices(shot: Mapping[str, Any]) -> str:
    from cluster.base import Placement

    on = shot["devices"]
    if on["slots"] is None:
        return "unknown"
    has = Placement(on["slots"], on["cpus"], on["gpus"] or 0.0, on["workers"] or 1)
    return f"{min(shot['trials']['running'], on['slots'])} of {on['slots']} slots busy, each {has.each}"


def logs(arguments: argparse.Namespace) -> int:
    """The driver's log, a line a failure and a line a running trial; or a trial's log and its failures in full."""
    paths = find_sweep(arguments.name, arguments.storage)
    state = read_state(paths)
    lines = arguments.lines
    if arguments.follow:
        name = "driver" if arguments.trial is None else trial_named(arguments.trial, list(state.trials), paths.name)
        return _follow(paths, paths.log(name), lines, arguments.json)
    if arguments.json:
        asked = None if arguments.trial is None else trial_named(arguments.trial, list(state.trials), paths.name)
        return _print_records(paths, asked, lines)
    if arguments.trial is None:
        logged = [name for name in ("driver", "calls") if _print_log(paths.log(name), lines)]
        for run in _in_order(state.runs.values()):
            if run.adjusted:
                print(_adjusted(run))
        failed = [(run, failure) for run in _in_order(state.runs.values()) for failure in run.failures]
        for run, failure in failed:
            print(f"{run.id}: {failure.kind}: {failure.message}")
        if failed:
            print(f"the whole traceback: stockpot logs {word_for(paths)} {failed[0][0].trial}")
        running = [run for run in _in_order(state.runs.values()) if run.phase == "running"]
        for run in running:
            print(f"{run.id}: running{_newest_line(paths.log(run.trial))}")
        if not (failed or logged or running):
            print("nothing was logged and nothing failed")
        return 0
    trial = trial_named(arguments.trial, list(state.trials), paths.name)
    shown = _print_log(paths.log(trial), lines)
    for run in _in_order(run for run in state.runs.values() if run.trial == trial):
        print(f"{run.id}: {run.phase}{f' ({run.reason})' if run.reason else ''}, {max(run.reports, default=0)} done")
        if run.adjusted:
            print(_adjusted(run))
        for failure in run.failures:
            shown = True
            print(f"--- {failure.kind}: {failure.message}")
            print(failure.traceback.rstrip() or "(no traceback)")
    if not shown:
        print("nothing was logged and nothing failed")
    return 0


def _newest_line(log: Path) -> str:
    """`: ` and what a trial printed last; nothing where it printed nothing, or on another machine."""
    with contextlib.suppress(FileNotFoundError), log.open(errors="replace") as file:
        for record in deque(records(file), maxlen=1):
            return f": {shown(record)}"
    return ""


def _adjusted(run: RunState) -> str:
    changes = ", ".join(f"{name} {value}" for name, value in run.changes.items())
    return f"{run.id}: began with {changes}: {run.adjusted}"


def _print_records(paths: SweepPaths, trial: str | None, lines: int) -> int:
    """The end of a trial's log, or of the driver's, one JSON object a line."""
    names = {"sweep": paths.name, **({} if trial is None else {"trial": trial})}
    with contextlib.suppress(FileNotFoundError), paths.log(trial or "driver").open(errors="replace") as file:
        for record in deque(records(file, names), maxlen=lines):
            print(json.dumps(record, ensure_ascii=False))
    return 0


def _follow(paths: SweepPaths, log: Path, lines: int, as_records: bool) -> int:
    """The end of a log and what is added to it, until no driver is at work."""
    from sweeps.driving import holder_of

    read = log.stat().st_size if log.exists() else 0
    if as_records:
        _print_records(paths, None if log.stem == "driver" else log.stem, lines)
    else:
        _print_log(log, lines)
    names = {"sweep": paths.name, **({} if log.stem == "driver" else {"trial": log.stem})}
    while True:
        alive = holder_of(paths, ask=True, texts=True) is not None
        if log.exists() and (size := log.stat().st_size) != read:
            with log.open("rb") as file:
                file.seek(read if size > read else 0)
                whole = file.read().rpartition(b"\n")
                read = file.tell() - len(whole[2])
            for record in records(whole[0].decode("utf-8", "replace").split("\n") if whole[1] else (), names):
                print(json.dumps(record, ensure_ascii=False) if as_records else shown(record), flush=True)
        if not alive:
            return 0
        time.sleep(ASK_SECONDS if paths.seen.exists() else FOLLOW_SECONDS)


def _in_order(runs: Iterable[RunState]) -> list[RunState]:
    return sorted(runs, key=lambda run: (run.order, run.seed))


def _print_log(path: Path, lines: int) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            tail = deque(map(shown, records(file)), maxlen=lines)
    except FileNotFoundError:
        return False
    if tail:
        print(f"--- {path}")
        print("\n".join(tail).rstrip("\n"))
    return bool(tail)
