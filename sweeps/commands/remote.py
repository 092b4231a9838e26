"""Sweeps whose driver runs in another process: submitted to a backend, and read, stopped and resumed from here.

What was submitted is noted in `~/.stockpot/detached/`, so that NAME is enough afterwards. A command about such a sweep reads its
storage where this machine sees it, and else is run where the sweep is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.backend import Asked, Backend, Errand, Job
from cluster.background import Background
from cluster.base import ClusterError
from sweeps.arguments import MISTAKE
from sweeps.away import NOT_BEGUN, VERSIONS, read_answer, versions
from sweeps.commands.backends import (
    KUBERAY,
    RAISING,
    SLURM,
    Machines,
    is_jobs_address,
    machines_of_sweep,
    noted_backend,
    open_backend,
    refuse_foreign,
)
from sweeps.commands.cluster import demand_for
from sweeps.commands.jobs import STATES, as_here, last_words, not_begun, say, told_last
from sweeps.commands.places import UsageError, holds_sweep, sweep_file
from sweeps.commands.watch import leaving
from sweeps.notes import Note, forget_note, read_note, write_note
from sweeps.paths import SweepPaths, is_remote

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

AWAY = ("python", "-P", "-m", "sweeps.away")
"""Begin every job: with -P, a folder `sweeps` that travelled is not taken for our package."""
ASK_SECONDS = 120.0
START_SECONDS, REFUSAL_SECONDS, POLL_SECONDS = 30.0, 3.0, 0.5
"""A job is watched until it has run so long, or for so long in all, before `--detach` returns."""
OWN_SECONDS = 60.0
"""A process of this machine is watched until the sweep has begun, or for so long."""
FOLLOWING = ("watch", "follow")
"""Flags of commands that go on printing."""


def submit(arguments: argparse.Namespace) -> int:
    """Hand a sweep to a backend; return at once with `--detach`, else follow it."""
    from sweeps.load import load_file

    refuse_foreign(arguments)
    file, address = sweep_file(arguments), arguments.address or ""
    loaded = load_file(file, arguments.sets, fetch=False)
    if not (is_jobs_address(address) or address.startswith(KUBERAY)):
        _refuse_used(loaded.paths, arguments.or_resume)
    machines = None
    if address.startswith(RAISING):
        machines = Machines(demand_for(loaded, arguments, file, file.read_text(encoding="utf-8")), arguments.volume)
    backend = open_backend(address, machines, insecure=arguments.insecure)
    storage = _storage_of(loaded, address, file, arguments.sets)
    if isinstance(backend, Asked):
        _warn_unreadable(storage, backend.place, loaded.spec.name)
    with tempfile.TemporaryDirectory(prefix="stockpot-") as folder:
        errand = _errand(arguments, loaded, file, storage, Path(folder))
        job = backend.submit(errand)
    note = Note(loaded.spec.name, address, storage, job.id, machines.record() if machines else {})
    return _submitted(note, backend, arguments, _noted(note, backend, loaded.paths, insecure=arguments.insecure))


def _errand(arguments: argparse.Namespace, loaded: LoadedSweep, file: Path, storage: str, travelling: Path) -> Errand:
    """The command that drives the sweep on a backend.

    Args:
        arguments: as parsed.
        loaded: the sweep.
        file: the sweep file.
        storage: as the backend's machines see it.
        travelling: an empty folder, for what travels along.
    """
    name, address = _job_name(loaded.spec.name), arguments.address or ""
    restarts = ["--or-resume"] if arguments.or_resume else []
    if address.startswith(RAISING):
        return Errand(name, ())
    if not is_jobs_address(address):
        words = [*_own_words("submit"), os.path.abspath(file), *restarts, *_sets(arguments.sets)]
        return Errand(name, [*words, *_at(address, arguments)])
    from sweeps.shipping import stage
    from sweeps.yaml_source import read

    place = stage(file, read(file.read_bytes()).data, travelling)
    words = [*AWAY, "submit", f"--storage={storage}", f"--file={place}", "--"]
    words += _at("", arguments)
    return Errand(name, [*words, *restarts, *_sets(arguments.sets)], travelling, _environment())


def resume(arguments: argparse.Namespace, note: Note) -> int:
    """Go on with a sweep where it ran, or at another address, as a new job."""
    paths = SweepPaths.of(note.storage, note.name)
    if note.address.startswith(RAISING) and not note.machines:
        note = replace(note, machines=machines_of_sweep(arguments, note).record())
    backend = noted_backend(note, insecure=arguments.insecure)
    rest = [word for text in arguments.budget for word in ("--budget", text)]
    rest += [] if arguments.priority is None else ["--priority", str(arguments.priority)]
    if is_jobs_address(note.address):
        words = [*AWAY, "run", "--", "resume", f"{note.storage}/{note.name}", "--address", str(backend.inside)]
        words += [*_at("", arguments), *rest]
    elif isinstance(backend, Asked) or note.address.startswith(SLURM):
        words = ["stockpot", "resume", f"{note.storage}/{note.name}", "--address", str(backend.inside), *rest]
    else:
        words = [*_own_words("resume"), f"{note.storage}/{note.name}", *_at(note.address, arguments), *rest]
    job = backend.submit(Errand(_job_name(note.name), words, None, _environment()))
    note = replace(note, job=job.id)
    begun = _noted(note, backend, paths, resumed=True, insecure=arguments.insecure)
    return _submitted(note, backend, arguments, begun)


def elsewhere(arguments: argparse.Namespace) -> Note | None:
    """The note of the one sweep that a command is about, where its files can't be seen from here, or are not there yet."""
    names = [getattr(arguments, "name", None)] if hasattr(arguments, "name") else list(getattr(arguments, "names", ()))
    if len(names) != 1 or not isinstance(names[0], str):
        return None
    note = read_note(names[0])
    if note is None or any(holds_sweep(SweepPaths.of(root, note.name)) for root in (arguments.storage, note.storage)):
        return None
    return None if is_remote(note.storage) and unreadable(note.storage) is None else note


def ask(note: Note, arguments: argparse.Namespace, words: Sequence[str]) -> int:
    """Run a command about a sweep where the sweep is, and print what it printed.

    Args:
        note: of the sweep.
        arguments: as parsed.
        words: as given.

    Raises:
        UsageError: if nobody there could answer, or the sweep is gone.
    """
    backend = noted_backend(note, insecure=arguments.insecure)
    if not isinstance(backend, Asked):
        return not_begun(note, backend, backend.status(note.job), arguments)
    if note.address.startswith(KUBERAY) and (job := backend.status(note.job)).state == "waiting":
        return not_begun(note, backend, job, arguments)
    sweep = f"{note.storage}/{note.name}"
    there = [sweep if word == note.name else word for word in words]
    print(f"asking {backend.place} (a short job there)", file=sys.stderr)
    following = any(getattr(arguments, flag, False) for flag in FOLLOWING)
    words = [*AWAY, "follow" if following else "ask", "--sweep", sweep, "--", *there]
    errand = Errand(_job_name(f"{note.name}-ask"), words, None, _environment())
    out = errors = ""
    if following:
        with leaving():
            status = backend.attend(errand, note.job, partial(say, note))
    else:
        longest = arguments.timeout if arguments.command == "stop" else 0.0
        log = backend.ask(errand, note.job, ASK_SECONDS + longest)
        found = read_answer(log)
        if found is None:
            raise UsageError(f"{backend.place} could not answer: {told_last(log) or 'it said nothing'}")
        status, out, errors = found
    if status == NOT_BEGUN:
        driver = backend.status(note.job)
        if driver.state == "failed" or not driver.over:
            return not_begun(note, backend, driver, arguments)
        raise UsageError(f"there is no sweep '{note.name}' in {note.storage} any more")
    sys.stdout.write(as_here(note, out))
    sys.stderr.write(as_here(note, errors))
    if arguments.command == "stop" and status == 0 and note.address.startswith(KUBERAY):
        backend.cancel(note.job)  # it would be answered with a new cluster
    return status


def _submitted(note: Note, backend: Backend, arguments: argparse.Namespace, job: Job) -> int:
    told = {"name": note.name, "address": note.address, "job": note.job, "folder": f"{note.storage}/{note.name}"}
    if arguments.detach:
        if arguments.json:
            print(json.dumps(told, indent=2))
        else:
            print(f"{note.name} {STATES[job.state]} on {backend.place} as the job {note.job}, in {told['folder']}")
            print(f"  stockpot status {note.name}")
        return int(job.state == "failed")  # a sweep that has ended already, without a trial that finished
    print(
        f"{note.name} {STATES[job.state]} on {backend.place} as the job {note.job}; Ctrl-C leaves it running",
        file=sys.stderr,
    )
    try:
        for text in backend.follow(note.job):
            say(note, text)
    except KeyboardInterrupt:
        print(f"\nit goes on without us: stockpot status {note.name}, stockpot stop {note.name}", file=sys.stderr)
        return 130
    return backend.status(note.job).exit_status


def _noted(note: Note, backend: Backend, paths: SweepPaths, *, insecure: bool, resumed: bool = False) -> Job:
    """Note a sweep's new job and see it begin; where it is refused, what was noted of the sweep of this name stands again.

    Args:
        note: with the new job.
        backend: that has it.
        paths: where the sweep lies.
        insecure: also where it lets everybody in.
        resumed: whether the sweep was there before; else the refused job is kept where no other one began it, for `status` to tell.

    Raises:
        UsageError: as `refuse_early_end`.
    """
    former = read_note(note.name)
    write_note(note)
    try:
        return refuse_early_end(backend, note.job, paths)
    except UsageError:
        if former is not None and (resumed or not _has_failed(former, insecure=insecure)):
            write_note(former)
        elif resumed:
            forget_note(note.name)
        raise


def _has_failed(note: Note, *, insecure: bool) -> bool:
    with contextlib.suppress(ClusterError, UsageError):
        return noted_backend(note, insecure=insecure).status(note.job).state == "failed"
    return False


def refuse_early_end(backend: Backend, job: str, paths: SweepPaths) -> Job:
    """Wait until the job has run for a moment, on this machine until the sweep has begun: a refusal is told at once.

    Returns:
        how far it is then; one that waits in a queue is not waited for.

    Raises:
        UsageError: with what the job said.
    """
    began, running = time.monotonic(), 0.0
    here = isinstance(backend, Background)
    while True:
        found, waited = backend.status(job), time.monotonic() - began
        if found.state == "failed" and not (here and holds_sweep(paths) and found.status != MISTAKE):
            raise UsageError(f"{backend.place} did not start it: {last_words(backend, found)}")
        settled = running >= REFUSAL_SECONDS and (not here or _driven(paths))
        queued = backend.queues and found.state == "waiting" and waited >= REFUSAL_SECONDS
        if found.over or settled or queued or waited >= (OWN_SECONDS if here else START_SECONDS):
            return found
        time.sleep(POLL_SECONDS)
        running += POLL_SECONDS if found.state == "running" else 0.0


def _driven(paths: SweepPaths) -> bool:
    from sweeps.driving import holder_of

    return holds_sweep(paths) and holder_of(paths) is not None


def _refuse_used(paths: SweepPaths, or_resume: bool) -> None:
    """Raise where a sweep of this name is there and is not to be gone on with.

    Raises:
        LedgerError: naming what to do.
    """
    from sweeps.driver import refuse_used_name

    if not or_resume:
        refuse_used_name(paths)


def _storage_of(loaded: LoadedSweep, address: str, file: Path, sets: list[str]) -> str:
    """The storage as the backend's machines see it.

    Raises:
        UsageError: if it is relative, which means nothing on a cluster that only the data travel to.
    """
    from cluster.kuberay import MOUNT
    from sweeps.yaml_source import read

    if loaded.paths.url or not (is_jobs_address(address) or address.startswith(KUBERAY)):
        return loaded.spec.storage if loaded.paths.url else str(loaded.paths.root.parent)
    written = next((text.partition("=")[2] for text in reversed(sets) if text.startswith("storage=")), None)
    if written is None:
        written = (read(file.read_bytes()).data or {}).get("storage")
    if address.startswith(KUBERAY):
        return os.path.normpath(os.path.join(MOUNT, str(written or "stockpot-runs")))
    if not isinstance(written, str) or not written.startswith("/"):
        raise UsageError(
            "storage: a sweep on a cluster needs an absolute folder that all its nodes see, or remote storage: storage: /shared/stockpot-runs or "
            "s3://bucket/prefix in the file, or --set storage=/shared/stockpot-runs"
        )
    return os.path.normpath(loaded.spec.storage)


def _warn_unreadable(storage: str, place: str, name: str) -> None:
    why = unreadable(storage)
    if why is not None:
        print(
            f"stockpot: {storage} {why}: while that is so, status, logs, show, compare and stop of {name} ask {place}, a short "
            "job each time",
            file=sys.stderr,
        )


def unreadable(storage: str) -> str | None:
    """Why this machine can't read a storage, to be put behind its name; None where it can."""
    if not is_remote(storage):
        if os.access(storage, os.R_OK):
            return None
        return "can't be read from here" if os.path.lexists(storage) else "is not on this machine"
    from sweeps.storage import StorageError, open_storage

    try:
        open_storage(storage).folders()
    except StorageError as error:
        return f"can't be read from here ({error.kind}: {error})"
    return None


def _own_words(command: str) -> list[str]:
    """The words before a command of ours on this machine. `-P`: no folder here is to be taken for a package of ours."""
    return [sys.executable, "-P", "-m", "sweeps.cli", command]


def _at(address: str, arguments: argparse.Namespace) -> list[str]:
    return [*(["--address", address] if address else ()), *(["--insecure"] if arguments.insecure else ())]


def _sets(sets: Sequence[str]) -> list[str]:
    return [word for text in sets for word in ("--set", text)]


def _environment() -> dict[str, str]:
    return {VERSIONS: json.dumps(versions())}


def _job_name(name: str) -> str:
    return f"stockpot-{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
