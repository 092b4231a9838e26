"""`check`, `submit`, `resume` and `stop`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
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
    from sweeps.load import describe, load_file

    loaded = load_file(_file(arguments), tuple(arguments.sets))
    told = describe(loaded)
    if arguments.data:
        told["data"] = _data(loaded)
    if arguments.json:
        print(json.dumps(told, indent=2, allow_nan=False))
        return 0
    print(told)
    return 0


def _data(loaded: LoadedSweep) -> dict[str, Any]:
    """Rows a split and the splits' warnings, for a pipeline that has datasets."""
    from pipelines.config import SFTConfig, parse_pipeline
    from pipelines.splits import load_splits

    config = parse_pipeline(loaded.resolve({}))
    if not isinstance(config, SFTConfig):
        return {"rows": None, "warnings": ["a custom pipeline reads its own data; there is nothing to check here"]}
    splits = load_splits(config.datasets, config.seed_data)
    rows = {name: len(splits.rows(name)) for name in ("train", "tune", "select", "test")}
    return {"rows": rows, "warnings": list(splits.warnings)}


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

    loaded = load_file(_file(arguments), tuple(arguments.sets))
    paths = SweepPaths.of(loaded.spec.storage, loaded.spec.name)
    from sweeps import driver

    with _progress(arguments) as view:
        view.on_message(f"sweep {paths.name} in {paths.root}")
        status = driver.submit(loaded, address=arguments.address, progress=view)
    return _ending(arguments, paths, status)


def resume(arguments: argparse.Namespace) -> int:
    """Go on with a sweep whose driver was interrupted, stopped or killed."""
    paths = find_sweep(arguments.name, arguments.storage)
    from sweeps import driver

    with _progress(arguments) as view:
        view.on_message(f"sweep {paths.name} in {paths.root}")
        status = driver.resume(paths, address=arguments.address, progress=view)
    return _ending(arguments, paths, status)


def _progress(arguments: argparse.Namespace) -> ProgressView:
    from sweeps.progress import ProgressView

    return ProgressView(sys.stderr if arguments.json else sys.stdout)


def _ending(arguments: argparse.Namespace, paths: SweepPaths, status: int) -> int:
    """What is printed when a driver has ended: the tables, where things are, and what can be done next."""
    from sweeps.commands.tables import print_sweep, sweep_record

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
