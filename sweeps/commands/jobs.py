"""What the job that drives a sweep says of itself: while it waits in a queue, before there is a ledger, and after it failed."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from cluster.backend import Backend, Job
from cluster.base import ClusterError, last_line
from sweeps.commands.backends import noted_backend
from sweeps.commands.places import UsageError, holds_sweep
from sweeps.notes import Note, read_note
from sweeps.paths import SweepPaths, is_remote
from sweeps.progress import no_trials

STATES = {"waiting": "waits", "running": "runs", "succeeded": "has ended", "failed": "failed", "stopped": "was stopped"}


def not_begun(note: Note, backend: Backend, job: Job, arguments: argparse.Namespace) -> int:
    """What there is to say of a sweep that has a job and no ledger yet.

    Raises:
        UsageError: if the job has ended without one.
    """
    if job.over:
        raise UsageError(
            f"{note.name} never began: its job {job.id} ({backend.place}) {STATES[job.state]}: {last_words(backend, job)}"
        )
    if arguments.command == "stop":
        backend.cancel(job.id)
        print(f"{note.name} had not begun; its job {job.id} ({backend.place}) is cancelled")
        return 0
    if getattr(arguments, "json", False):
        record = {"name": note.name, "state": "not begun", "trials": no_trials(), "job": job_record(note, backend, job)}
        print(json.dumps(record, indent=2))
        return 0
    print(f"{note.name}: not begun")
    print(f"  job      {in_words(job_record(note, backend, job))}")
    if arguments.command == "logs":
        print(backend.logs(job.id), end="")
    return 0


def job_record(note: Note, backend: Backend, job: Job) -> dict[str, Any]:
    """A job as `status --json` has it."""
    return {"id": job.id, "place": backend.place, "address": note.address, "state": job.state, "message": job.message}


def in_words(record: dict[str, Any]) -> str:
    """A job as `status` prints it."""
    why = f" ({record['message']})" if record["message"] else ""
    return f"{record['id']} on {record['place']} {STATES[record['state']]}{why}"


def open_job(paths: SweepPaths, *, insecure: bool) -> tuple[Note, Backend, Job] | None:
    """The job that is to drive a sweep and has not ended; None where there is none, or nobody can tell."""
    note = note_of(paths)
    if note is None or not note.job:
        return None
    with contextlib.suppress(ClusterError, UsageError):
        backend = noted_backend(note, insecure=insecure)
        job = backend.status(note.job)
        return None if job.over else (note, backend, job)
    return None


def note_of(paths: SweepPaths) -> Note | None:
    """The note of a sweep that lies here; None where it was not submitted to a backend from here."""
    note = read_note(paths.name)
    return note if note is not None and SweepPaths.of(note.storage, note.name).place == paths.place else None


def noted(name: str, storage: str) -> Note | None:
    """The note of the sweep that NAME means; None where another one of its name lies here, or none was submitted from here."""
    if is_remote(name):
        return note_of(SweepPaths.of(*name.rstrip("/").rsplit("/", 1)))
    folder = Path(name).expanduser()
    here = SweepPaths.of(storage, name) if folder.name == name else SweepPaths(folder.resolve())
    return note_of(here) if holds_sweep(here) else read_note(name)


def job_log(arguments: argparse.Namespace) -> int:
    """What the newest job of a sweep has printed.

    Raises:
        UsageError: if there is none.
    """
    note = noted(arguments.name, arguments.storage)
    if note is None:
        raise UsageError(f"'{arguments.name}' was not submitted from here with --detach or to a backend: it has no job")
    backend = noted_backend(note, insecure=arguments.insecure)
    if not arguments.follow:
        lines = as_here(note, backend.logs(note.job)).splitlines()
        print("\n".join(lines[-arguments.lines :]))
        return 0
    for text in backend.follow(note.job):
        say(note, text)
    return 0


def last_words(backend: Backend, job: Job) -> str:
    """Why a job ended, as far as it said."""
    return told_last(backend.logs(job.id)) or last_line(job.message)


def told_last(log: str) -> str:
    """What Stockpot said last in a log, else the last line of it."""
    told = [line.removeprefix("stockpot: ") for line in log.splitlines() if line.startswith("stockpot: ")]
    return told[-1] if told else last_line(log)


def say(note: Note, text: str) -> None:
    """Print at once what was printed where a sweep is."""
    sys.stdout.write(as_here(note, text))
    sys.stdout.flush()


def as_here(note: Note, text: str) -> str:
    """What was printed where a sweep is, with the commands in it as they are given here: by its name, which is noted here alone."""
    if "://" not in note.address:
        return text
    there = rf"(stockpot [a-z-]+) {re.escape(f'{note.storage}/{note.name}')}(?![\w./-])( --address auto(?![\w:]))?"
    return re.sub(there, rf"\1 {note.name}", text)
