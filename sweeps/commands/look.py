"""`list`, `status` and `logs`: read the ledger beside a running driver, or long after one."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.commands.places import UsageError, find_sweep, sweeps_under, word_for
from sweeps.paths import SweepPaths

if TYPE_CHECKING:
    from sweeps.state import RunState, SweepState

ENDED = {"finished", "stopped", "interrupted"}
"""States in which `status --watch` has nothing more to wait for."""


def list_sweeps(arguments: argparse.Namespace) -> int:
    """Name, state, trials, best and age of every sweep under the storage."""
    shots = [look(paths) for paths in sweeps_under(arguments.storage)]
    shots.sort(key=lambda shot: -shot["updated_at"])
    if arguments.json:
        print(json.dumps(shots, indent=2, allow_nan=False))
        return 0
    if not shots:
        print(f"no sweeps under {Path(arguments.storage).expanduser().resolve()}")
        return 0
    rows = [("name", "state", "trials", "best", "age")]
    rows += [_row(shot) for shot in shots]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(shot: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    from sweeps.progress import duration

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
            "folder": str(paths.root),
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
    from sweeps.load import load_resolved
    from sweeps.lock import DriverLock
    from sweeps.progress import snapshot

    driver = DriverLock.holder(paths.lock)
    state = read_state(paths)
    shot = snapshot(state, load_resolved(paths.resolved_spec))
    shot["folder"] = str(paths.root)
    shot["driver"] = dict(driver) if driver is not None else None
    if driver is None:
        shot["trials"]["running"] = 0  # what a dead driver's trials were doing, they no longer do
    if driver is None and shot["state"] != "finished":
        shot["state"] = "stopped" if state.stop is not None else "interrupted"
    return shot


def read_state(paths: SweepPaths) -> SweepState:
    """The fold of a sweep's ledger, read only."""
    from sweeps.ledger import Ledger
    from sweeps.state import fold

    ledger = Ledger.read(paths.root)
    try:
        return fold(ledger.events())
    finally:
        ledger.close()


def status(arguments: argparse.Namespace) -> int:
    """How far a sweep is, once or until it has ended."""
    paths = find_sweep(arguments.name, arguments.storage)
    if not arguments.watch:
        shot = read_snapshot(paths)
        print(json.dumps(shot, indent=2, allow_nan=False) if arguments.json else _describe(shot, paths))
        return 0
    return _watch(paths, arguments.interval, arguments.json)


def _watch(paths: SweepPaths, interval: float, as_json: bool) -> int:
    from sweeps.progress import ProgressView

    shot = read_snapshot(paths)
    if as_json:
        print(json.dumps(shot, allow_nan=False), flush=True)
        while shot["state"] not in ENDED:
            time.sleep(max(0.1, interval))
            before, shot = shot, read_snapshot(paths)
            if shot != before:
                print(json.dumps(shot, allow_nan=False), flush=True)
        return 0
    with ProgressView(sys.stdout, before=_spent(shot)) as view:
        view.on_snapshot(shot)
        while shot["state"] not in ENDED:
            time.sleep(max(0.1, interval))
            shot = read_snapshot(paths)
            view.on_snapshot(shot)
    print(_describe(shot, paths))
    return 0


def _describe(shot: Mapping[str, Any], paths: SweepPaths) -> str:
    from sweeps.progress import describe_best, describe_trials, duration, share_done

    trials, driver, share = shot["trials"], shot["driver"], share_done(shot)
    spent = "" if share is None else f", {share:.0%} of the expected {shot['resource']['expected']} {shot['unit']}"
    lines = [
        f"{shot['name']}: {shot['state']}",
        f"  trials   {describe_trials(shot)}, {trials['finished']} at the end, {trials['waiting']} waiting at a rung",
        f"  spent    {shot['resource']['done']} {shot['unit']}{spent}, {duration(_spent(shot))}",
        f"  result   {describe_best(shot['best'])}",
        f"  driver   {_driver(driver)}",
        f"  folder   {shot['folder']}",
    ]
    if shot["state"] in ("stopped", "interrupted"):
        lines.append(f"  next     stockpot resume {word_for(paths)}")
    elif shot["state"] == "finished":
        lines.append(f"  next     stockpot show {word_for(paths)}")
    return "\n".join(lines)


def _spent(shot: Mapping[str, Any]) -> float:
    """Seconds of all drivers, up to now where one is at work."""
    running = time.time() - shot["updated_at"] if shot["driver"] else 0.0
    return float(shot["seconds"] + max(0.0, running))


def _driver(driver: Mapping[str, Any] | None) -> str:
    if driver is None:
        return "none is running"
    return f"pid {driver.get('pid')} on {driver.get('host')} since {driver.get('started')}"


def logs(arguments: argparse.Namespace) -> int:
    """The driver's log and a line a failure; or a trial's log and its failures in full."""
    paths = find_sweep(arguments.name, arguments.storage)
    state = read_state(paths)
    lines = arguments.lines
    if arguments.trial is None:
        logged = [name for name in ("driver", "calls") if _print_log(paths.log(name), lines)]
        failed = [(run, failure) for run in _in_order(state.runs.values()) for failure in run.failures]
        for run, failure in failed:
            print(f"{run.id}: {failure.kind}: {failure.message}")
        if failed:
            print(f"the whole traceback: stockpot logs {word_for(paths)} {failed[0][0].trial}")
        elif not logged:
            print("nothing was logged and nothing failed")
        return 0
    trial = _trial(arguments.trial, list(state.trials), paths)
    shown = _print_log(paths.log(trial), lines)
    for run in _in_order(run for run in state.runs.values() if run.trial == trial):
        print(f"{run.id}: {run.phase}{f' ({run.reason})' if run.reason else ''}, {max(run.reports, default=0)} done")
        for failure in run.failures:
            shown = True
            print(f"--- {failure.kind}: {failure.message}")
            print(failure.traceback.rstrip() or "(no traceback)")
    if not shown:
        print("nothing was logged and nothing failed")
    return 0


def _in_order(runs: Iterable[RunState]) -> list[RunState]:
    return sorted(runs, key=lambda run: (run.order, run.seed))


def _print_log(path: Path, lines: int) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            tail = deque(file, maxlen=lines)
    except FileNotFoundError:
        return False
    if tail:
        print(f"--- {path}")
        print("".join(tail).rstrip("\n"))
    return bool(tail)


def _trial(word: str, trials: list[str], paths: SweepPaths) -> str:
    """The trial that `word` means: its id, its number, or a beginning that holds the number.

    Raises:
        UsageError: when none fits.
    """
    if word in trials:
        return word
    found = [trial for trial in trials if word.isdigit() and int(trial.partition("-")[0]) == int(word)]
    found = found or [trial for trial in trials if trial.startswith(word)]
    if len(found) == 1:
        return found[0]
    there = f"{trials[0]} to {trials[-1]}" if trials else "none yet"
    raise UsageError(f"sweep {paths.name} has no trial '{word}'; its trials: {there}")
