"""Sweeps that run elsewhere: submitted as a Ray job, and read, stopped and resumed from here.

What was submitted is noted in `~/.stockpot/detached/`, so that NAME is enough afterwards. A command about such a sweep reads its
storage where this machine sees it, and else runs as a short job on the cluster's head.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.jobs import Job, RayJobs
from sweeps.arguments import MISTAKE
from sweeps.away import VERSIONS, read_answer, versions
from sweeps.commands.places import UsageError, holds_sweep, sweep_file
from sweeps.notes import Note, read_note, write_note
from sweeps.paths import SweepPaths, is_remote

ASK_SECONDS = 120.0
START_SECONDS, REFUSAL_SECONDS, POLL_SECONDS = 30.0, 3.0, 0.5
"""A job is watched until it has run so long, or for so long in all, before `--detach` returns."""
NOT_YET = "there is no sweep"
"""What a command says of a sweep whose folder is not there."""
FOLLOWING = ("watch", "follow")
"""Flags of commands that go on printing."""


def submit(arguments: argparse.Namespace) -> int:
    """Ship a sweep and start it as a Ray job; return at once with `--detach`, else follow it."""
    from sweeps.load import load_file
    from sweeps.yaml_source import read

    file = sweep_file(arguments)
    loaded = load_file(file, arguments.sets, fetch=False)
    storage = _storage_of(loaded.spec.storage, file, arguments.sets)
    jobs = RayJobs(arguments.address, insecure=arguments.insecure)
    _warn_unreadable(storage, arguments.address, loaded.spec.name)
    from sweeps.shipping import stage

    with tempfile.TemporaryDirectory(prefix="stockpot-") as own:
        place = stage(file, read(file.read_bytes()).data, Path(own))
        words = ["python", "-m", "sweeps.away", "submit", f"--storage={storage}", f"--file={place}", "--"]
        words += [*(["--or-resume"] if arguments.or_resume else ()), *_sets(arguments.sets)]
        job = jobs.submit(words, _job_name(loaded.spec.name), Path(own), _environment())
    note = Note(loaded.spec.name, arguments.address, storage, job)
    write_note(note)
    _refuse_early_end(jobs, job)
    return _submitted(note, jobs, arguments)


def resume(arguments: argparse.Namespace, note: Note) -> int:
    """Go on with a sweep on its cluster, as a new job."""
    jobs = RayJobs(note.address, insecure=arguments.insecure)
    words = ["stockpot", "resume", f"{note.storage}/{note.name}", "--address", "auto"]
    words += [word for text in arguments.budget for word in ("--budget", text)]
    words += [] if arguments.priority is None else ["--priority", str(arguments.priority)]
    job = jobs.submit(words, _job_name(note.name), None, _environment())
    note = Note(note.name, note.address, note.storage, job)
    write_note(note)
    return _submitted(note, jobs, arguments)


def elsewhere(arguments: argparse.Namespace) -> Note | None:
    """The note of the one sweep that a command is about, where its files lie on a cluster and can't be seen from here."""
    names = [getattr(arguments, "name", None)] if hasattr(arguments, "name") else list(getattr(arguments, "names", ()))
    if len(names) != 1 or not isinstance(names[0], str):
        return None
    note = read_note(names[0])
    if note is None or any(holds_sweep(SweepPaths.of(root, note.name)) for root in (arguments.storage, note.storage)):
        return None
    return None if is_remote(note.storage) and unreadable(note.storage) is None else note


def ask(note: Note, arguments: argparse.Namespace, words: Sequence[str]) -> int:
    """Run a command about a sweep on its cluster's head, and print what it printed.

    Args:
        note: of the sweep.
        arguments: as parsed.
        words: as given.

    Raises:
        UsageError: if the cluster could not answer.
    """
    there = [f"{note.storage}/{note.name}" if word == note.name else word for word in words]
    jobs = RayJobs(note.address, insecure=arguments.insecure)
    print(f"asking {note.address} (a short job there)", file=sys.stderr)
    name = _job_name(f"{note.name}-ask")
    if any(getattr(arguments, flag, False) for flag in FOLLOWING):
        return _follow(jobs, jobs.submit(["stockpot", *there], name, None, _environment()))
    job = jobs.submit(["python", "-m", "sweeps.away", "ask", "--", *there], name, None, _environment())
    done = jobs.result(job, ASK_SECONDS)
    found = read_answer(jobs.logs(job))
    if found is None:
        raise UsageError(f"the cluster could not answer: {_last(jobs, done)}")
    status, out, errors = found
    sys.stdout.write(out)
    sys.stderr.write(errors)
    driver = jobs.status(note.job) if status == MISTAKE else None
    if driver is not None and driver.state == "failed":
        print(f"stockpot: its job {note.job} failed: {_last(jobs, driver)}", file=sys.stderr)
    elif driver is not None and not driver.over and NOT_YET in errors:
        print(f"stockpot: its job {note.job} is only just beginning; ask again in a moment", file=sys.stderr)
    return status


def _follow(jobs: RayJobs, job: str) -> int:
    """Show what a job prints until it ends, or end it on Ctrl-C."""
    try:
        for text in jobs.follow(job):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        jobs.cancel(job)
        return 130
    return jobs.status(job).status or 0


def _submitted(note: Note, jobs: RayJobs, arguments: argparse.Namespace) -> int:
    told = {"name": note.name, "address": note.address, "job": note.job, "folder": f"{note.storage}/{note.name}"}
    if arguments.detach:
        if arguments.json:
            print(json.dumps(told, indent=2))
        else:
            print(f"{note.name} runs on {note.address} as the job {note.job}, in {told['folder']}")
            print(f"  stockpot status {note.name}")
        return 0
    print(f"{note.name} runs on {note.address} as the job {note.job}; Ctrl-C leaves it running", file=sys.stderr)
    try:
        for text in jobs.follow(note.job):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\nit goes on without us: stockpot status {note.name}, stockpot stop {note.name}", file=sys.stderr)
        return 130
    done = jobs.status(note.job)
    return done.status if done.status is not None else int(done.state != "succeeded")


def _refuse_early_end(jobs: RayJobs, job: str) -> None:
    """Wait until the job has run for a moment: what the cluster refuses at once is told at once.

    Raises:
        UsageError: with what the job said.
    """
    until, running = time.monotonic() + START_SECONDS, 0.0
    while time.monotonic() < until and running < REFUSAL_SECONDS:
        found = jobs.status(job)
        if found.state == "failed":
            raise UsageError(f"the cluster did not start it: {_last(jobs, found)}")
        if found.over:
            return
        time.sleep(POLL_SECONDS)
        running += POLL_SECONDS if found.state == "running" else 0.0


def _last(jobs: RayJobs, job: Job) -> str:
    lines = [line for line in jobs.logs(job.id).splitlines() if line.strip()]
    told = [line.removeprefix("stockpot: ") for line in lines if line.startswith("stockpot: ")]
    return (told or lines or [job.message])[-1]


def _storage_of(storage: str, file: Path, sets: list[str]) -> str:
    """The storage as the cluster's nodes see it.

    Raises:
        UsageError: if it is relative, which means nothing there.
    """
    from sweeps.yaml_source import read

    written = next((text.partition("=")[2] for text in reversed(sets) if text.startswith("storage=")), None)
    if written is None:
        written = (read(file.read_bytes()).data or {}).get("storage")
    if isinstance(written, str) and is_remote(written):
        return storage
    if not isinstance(written, str) or not written.startswith("/"):
        raise UsageError(
            "storage: a sweep on a cluster needs an absolute folder that all its nodes see, or remote storage: storage: /shared/stockpot-runs or "
            "s3://bucket/prefix in the file, or --set storage=/shared/stockpot-runs"
        )
    return os.path.normpath(storage)


def _warn_unreadable(storage: str, address: str, name: str) -> None:
    why = unreadable(storage)
    if why is not None:
        print(
            f"stockpot: {storage} can't be read from here{why}: status, logs, show, stop and resume of {name} will ask {address}, a short "
            "job each time",
            file=sys.stderr,
        )


def unreadable(storage: str) -> str | None:
    """Why this machine can't read a storage, to be put behind it; None where it can."""
    if not is_remote(storage):
        return None if os.access(storage, os.R_OK) else ""
    from sweeps.storage import StorageError, open_storage

    try:
        open_storage(storage).folders()
    except StorageError as error:
        return f" ({error.kind}: {error})"
    return None


def _sets(sets: Sequence[str]) -> list[str]:
    return [word for text in sets for word in ("--set", text)]


def _environment() -> dict[str, str]:
    return {VERSIONS: json.dumps(versions())}


def _job_name(name: str) -> str:
    return f"stockpot-{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
