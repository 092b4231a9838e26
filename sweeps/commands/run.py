"""`check`, `submit`, `resume` and `stop`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.commands.places import UsageError, find_sweep, word_for
from sweeps.paths import SweepPaths

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep
    from sweeps.progress import ProgressView

INTERRUPTED = 130


def check(arguments: argparse.Namespace) -> int:
    """Validate a sweep file and say what it would run; nothing is written."""
    from sweeps.load import check_data, describe, load_file

    loaded = load_file(_file(arguments), arguments.sets)
    rows = None
    if arguments.data:
        loaded = check_data(loaded)
        rows = _rows(loaded)
    told = describe(loaded)
    if arguments.data:
        told["rows"] = rows
    if arguments.json:
        print(json.dumps(told, indent=2, allow_nan=False))
        return 0
    print(_describe(told))
    print(f"next: stockpot submit {shlex.join([arguments.file, *(f'--set={text}' for text in arguments.sets)])}")
    return 0


def _rows(loaded: LoadedSweep) -> dict[str, int] | None:
    """Rows a split, for a pipeline that has datasets."""
    from pipelines.config import SFTConfig
    from pipelines.splits import load_splits

    config = loaded.spec.pipeline
    if not isinstance(config, SFTConfig):
        return None
    splits = load_splits(config.datasets, config.seed_data)
    return {name: len(splits.rows(name)) for name in ("train", "tune", "select", "test")}


def _describe(told: Mapping[str, Any]) -> str:
    """What `check` prints for people."""
    unit = "steps" if told["pipeline"] == "sft" else "units"
    trials = "trials until the hours are up" if told["trials"] is None else _count(told["trials"], "trial")
    seeds = "" if told["seeds"] == 1 else f", {told['seeds']} seeds each"
    space = "" if told["configurations"] is None else f" ({_count(told['configurations'], 'configuration')})"
    hours = "" if told["hours"] is None else f", at most {told['hours']:g} h"
    lines = [
        f"{told['name']}: no mistakes",
        f"  trials   {trials}{seeds}{hours}, {told['method']} over {_count(told['parameters'], 'parameter')}{space}",
        f"  metric   {told['metric']} ({told['direction']})",
    ]
    if told["rungs"] is not None:
        rungs = ", ".join(f"{_count(rung['runs'], 'run')} to {rung['resource']}" for rung in told["rungs"])
        lines.append(f"  runs     {rungs} {unit}: about {told['resource']} {unit} in all")
    if told["soup"] is not None:
        lines.append(f"  soup     {told['soup']['method']}, over the best {told['soup']['top']}")
    if "rows" in told:
        rows = told["rows"]
        said = "the pipeline reads its own" if rows is None else ", ".join(f"{k} {n}" for k, n in rows.items())
        lines.append(f"  rows     {said}")
    lines.append(f"  folder   {told['folder']}")
    lines += [f"  warning  {warning}" for warning in told["warnings"]]
    return "\n".join(lines)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _file(arguments: argparse.Namespace) -> Path:
    """The sweep file.

    Raises:
        UsageError: when none was given, or it is no file, with the files that may be meant.
    """
    verb = arguments.command
    if arguments.file is None:
        here = _sweep_files(Path("."))
        hint = f"here are: {', '.join(here)}" if here else "the README's first screen shows one"
        raise UsageError(f"`{verb}` needs a sweep file: stockpot {verb} SWEEP.yaml ({hint})")
    path = Path(arguments.file).expanduser()
    if path.is_dir():
        inside = _sweep_files(path)
        hint = f"; it holds {', '.join(inside)}" if inside else ""
        raise UsageError(f"'{arguments.file}' is a folder, not a sweep file{hint}")
    if not path.exists():
        import difflib

        folder = path.parent
        near = difflib.get_close_matches(str(path), _sweep_files(folder) if folder.is_dir() else [], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f" (looked in {folder.resolve()})"
        raise UsageError(f"there is no file '{arguments.file}'{hint}")
    return path


def _sweep_files(folder: Path) -> list[str]:
    return sorted(str(path) for pattern in ("*.yaml", "*.yml") for path in folder.glob(pattern))[:8]


def submit(arguments: argparse.Namespace) -> int:
    """Run a sweep from its file to the leaderboard and the soup's verdict."""
    from sweeps.load import load_file

    loaded = load_file(_file(arguments), arguments.sets)
    paths = loaded.paths
    from sweeps.driver import submit as drive

    with _progress(arguments) as view:
        view.on_message(f"sweep {paths.name} in {paths.root}")
        status = drive(loaded, address=arguments.address, progress=view)
    return _ending(arguments, paths, status)


def resume(arguments: argparse.Namespace) -> int:
    """Go on with a sweep whose driver was interrupted, stopped or killed."""
    paths = find_sweep(arguments.name, arguments.storage)
    from sweeps.driver import resume as drive

    with _progress(arguments) as view:
        view.on_message(f"sweep {paths.name} in {paths.root}")
        status = drive(paths, address=arguments.address, progress=view)
    return _ending(arguments, paths, status)


def _progress(arguments: argparse.Namespace) -> ProgressView:
    from sweeps.progress import ProgressView

    return ProgressView(sys.stderr if arguments.json else sys.stdout)


def _ending(arguments: argparse.Namespace, paths: SweepPaths, status: int) -> int:
    """What is printed when a driver has ended: the tables, where things are, and what can be done next."""
    from sweeps.commands.tables import print_sweep, sweep_record

    arguments.status = status  # what the command ends with, also when nobody reads the tables any more
    if arguments.json:
        print(json.dumps({"status": status, **sweep_record(paths)}, indent=2, allow_nan=False))
        return status
    print_sweep(paths)
    if status == INTERRUPTED:
        print(f"interrupted; nothing reported is lost. Go on with: stockpot resume {word_for(paths)}")
    return status


def stop(arguments: argparse.Namespace) -> int:
    """Ask the driver of a sweep to stop, and wait until it has."""
    from sweeps.lock import DriverLock

    paths = find_sweep(arguments.name, arguments.storage)
    word = word_for(paths)
    holder = DriverLock.holder(paths.lock)
    if holder is None:
        print(f"no driver is running {paths.name}; there is nothing to stop (stockpot status {word})")
        return 0
    request_stop(paths)
    who = f"pid {holder.get('pid')} on {holder.get('host')}"
    if arguments.no_wait:
        print(f"asked {who} to stop; running trials end at their next report (stockpot status {word})")
        return 0
    print(f"asked {who} to stop; waiting for running trials to reach their next report", flush=True)
    until = time.monotonic() + arguments.timeout
    while DriverLock.holder(paths.lock) is not None:
        if time.monotonic() > until:
            print(f"still running after {arguments.timeout:g} s; the request stands (stockpot status {word})")
            return 1
        time.sleep(0.2)
    print(f"stopped; go on with: stockpot resume {word}")
    return 0


def request_stop(paths: SweepPaths) -> None:
    """Leave the file that the driver polls for, written aside and moved."""
    aside = paths.stop_request.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps({"pid": os.getpid(), "time": time.time()}), encoding="utf-8")
    aside.replace(paths.stop_request)
