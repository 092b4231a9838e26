"""`submit`, `resume` and `stop`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sweeps.commands.places import (
    find_sweep,
    go_on,
    holds_sweep,
    refuse_idle_insecure,
    sweep_file,
    word_for,
)
from sweeps.notes import Note
from sweeps.paths import SweepPaths

if TYPE_CHECKING:
    from sweeps.progress import ProgressView

INTERRUPTED = 130


def submit(arguments: argparse.Namespace) -> int:
    """Run a sweep from its file to the leaderboard and the soup's verdict."""
    from sweeps.commands.backends import is_elsewhere, refuse_foreign
    from sweeps.data import check_data
    from sweeps.load import load_file

    if is_elsewhere(arguments.address, detach=arguments.detach):
        from sweeps.commands.remote import submit as hand_over

        return hand_over(arguments)
    refuse_foreign(arguments)
    refuse_idle_insecure(arguments)
    loaded = load_file(sweep_file(arguments), arguments.sets, fetch=True)
    if arguments.or_resume and (holds_sweep(loaded.paths) or _in_storage(loaded.paths)):
        return _go_on(arguments, loaded.paths, None)
    loaded = check_data(loaded)
    if arguments.address is None:
        from sweeps.dryrun import warnings_here

        loaded = replace(loaded, warnings=(*loaded.warnings, *warnings_here(loaded)))
    paths = loaded.paths
    from sweeps.driver import submit as drive

    with _progress(arguments, paths) as view:
        view.on_message(f"sweep {paths.name} in {_where(paths)}")
        status = drive(loaded, address=arguments.address, insecure=arguments.insecure, progress=view)
    return _ending(arguments, paths, status)


def resume(arguments: argparse.Namespace) -> int:
    """Go on with a sweep whose driver was interrupted, stopped or killed, or with a finished one that is given more."""
    from sweeps.budget import read_settings
    from sweeps.commands.backends import is_elsewhere
    from sweeps.commands.jobs import noted

    note = noted(arguments.name, arguments.storage)
    address = arguments.address or (note.address if note is not None else "")
    if is_elsewhere(address, detach=arguments.detach):
        from sweeps.commands.remote import resume as go_on_there

        if note is None:
            paths = find_sweep(arguments.name, arguments.storage, writing=True)
            note = Note(paths.name, address, paths.place.removesuffix(f"/{paths.name}"), "")
        machines = note.machines if note.address == address else {}
        return go_on_there(arguments, replace(note, address=address, machines=machines))
    refuse_idle_insecure(arguments)
    paths = find_sweep(arguments.name, arguments.storage, writing=True)
    return _go_on(arguments, paths, read_settings(arguments.budget), arguments.priority)


def _go_on(
    arguments: argparse.Namespace, paths: SweepPaths, budget: Mapping[str, Any] | None, priority: int | None = None
) -> int:
    """Drive a sweep that is there."""
    from sweeps.driver import resume as drive

    with _progress(arguments, paths) as view:
        view.on_message(f"sweep {paths.name} in {_where(paths)}")
        at = {"address": arguments.address, "insecure": arguments.insecure}
        status = drive(paths, budget=budget, priority=priority, progress=view, **at)
    return _ending(arguments, paths, status)


@contextlib.contextmanager
def _progress(arguments: argparse.Namespace, paths: SweepPaths) -> Iterator[ProgressView]:
    """The view of a driver, which outlives its terminal."""
    from sweeps.progress import ProgressView
    from sweeps.terminal import outliving

    hint = f"Ctrl-C stops; {go_on(paths, arguments.address, insecure=arguments.insecure)} goes on"
    with outliving(), ProgressView(sys.stderr if arguments.json else sys.stdout, hint=hint) as view:
        yield view


def _ending(arguments: argparse.Namespace, paths: SweepPaths, status: int) -> int:
    """What is printed when a driver has ended: the tables, where things are, and what can be done next."""
    from sweeps.commands.tables import print_sweep, sweep_record
    from sweeps.driving import send_pages
    from sweeps.report.write import try_report
    from sweeps.storage import StorageError

    arguments.status = status  # what the command ends with, also when nobody reads the tables any more
    page = try_report(paths, lambda text: print(text, file=sys.stderr))
    try:
        send_pages(paths)
    except StorageError as error:
        print(f"the report is in {paths.root} alone: {error} ({error.kind})", file=sys.stderr)
    if arguments.json:
        told = {"status": status, **sweep_record(paths), "report": None if page is None else str(page)}
        print(json.dumps(told, indent=2, allow_nan=False))
        return status
    print_sweep(paths)
    if page is not None:
        print(f"report: {page}")
    if status == INTERRUPTED:
        print(
            f"interrupted; nothing reported is lost. Go on with: {go_on(paths, arguments.address, insecure=arguments.insecure)}"
        )
    return status


def stop(arguments: argparse.Namespace) -> int:
    """Ask the driver of a sweep to stop, and wait until it has."""
    from sweeps.commands.look import read_state
    from sweeps.driving import ask_to_stop, holder_of

    paths = find_sweep(arguments.name, arguments.storage)
    word = word_for(paths)
    holder = holder_of(paths)
    if holder is None:
        from sweeps.commands.jobs import open_job

        queued = open_job(paths, insecure=arguments.insecure)
        if queued is not None:
            _, backend, job = queued
            backend.cancel(job.id)
            print(f"no driver is running {paths.name} yet; its job {job.id} ({backend.place}) is cancelled")
            return 0
        print(f"no driver is running {paths.name}; there is nothing to stop (stockpot status {word})")
        return 0
    ask_to_stop(paths, arguments.grace)
    within = f"at their next report, or in {arguments.grace:g} s" if arguments.grace else "at once"
    who = f"pid {holder.get('pid')} on {holder.get('host')}"
    if arguments.no_wait:
        print(f"asked {who} to stop; running trials end {within} (stockpot status {word})")
        return 0
    print(f"asked {who} to stop; running trials end {within}; waiting until they have", flush=True)
    until = time.monotonic() + arguments.timeout
    while holder_of(paths, ask=True) is not None:
        if time.monotonic() > until:
            print(f"still running after {arguments.timeout:g} s; the request stands (stockpot status {word})")
            return 1
        time.sleep(0.2)
    print(f"stopped; go on with: {go_on(paths, read_state(paths).driver.get('address'))}")
    return 0


def _where(paths: SweepPaths) -> str:
    """Where a sweep lies, for its driver: with the working folder of one in remote storage."""
    return f"{paths.url}, worked on in {paths.root}" if paths.url else str(paths.root)


def _in_storage(paths: SweepPaths) -> bool:
    """Whether remote storage holds a sweep."""
    from sweeps.storage import open_storage

    return bool(paths.url) and bool(open_storage(paths.url).files("ledger"))
