"""Driving a sweep whose storage is remote: the lease, what is fetched before, what rides while, and what is left after."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps.fetching import fetch_ledger, fetch_texts, fetch_weights, refresh, seen_holder, write_spec
from sweeps.ledger_file import LedgerError
from sweeps.lock import DriverLock, LockHeld
from sweeps.paths import SweepPaths
from sweeps.riding import Rider
from sweeps.stopping import request_stop, stop_text
from sweeps.storage import Storage, StorageError, open_storage
from sweeps.storage_lease import STOP, StorageLease, look, own_number


class Drive:
    """What became of the storage while a sweep was driven.

    Attributes:
        problem: why not everything is in the storage; None where it is.
    """

    def __init__(self) -> None:
        self.problem: StorageError | None = None

    def status(self, status: int) -> int:
        """The exit status of a command whose own would be `status`."""
        return max(status, 1) if self.problem is not None and status == 0 else status


@contextlib.contextmanager
def driving(paths: SweepPaths, say: Callable[[str], None]) -> Iterator[Drive]:
    """The right to drive a sweep, with its working folder as the storage has it, and the rider; nothing for a local folder.

    Raises:
        StorageError: when the storage can't be used, or another driver has the sweep; nothing was changed there.
        LedgerError: when another process of this machine is at it.
    """
    drive = Drive()
    if not paths.url:
        yield drive
        return
    storage = open_storage(paths.url)
    storage.prove()
    with _alone(paths):
        _set_aside(storage, paths, say)
        lease = StorageLease.take(storage, paths, lambda text: request_stop(paths, text))
        try:
            if fetch_ledger(storage, paths) and not paths.resolved_spec.exists():
                write_spec(paths)
            fetch_weights(storage, paths, say)
            if not paths.logs.is_dir():
                fetch_texts(storage, paths)
            rider = Rider(storage, paths, lease, say)
            try:
                yield drive
            finally:
                drive.problem = rider.close()
                if drive.problem is not None:
                    say(_left(paths, drive.problem))
        finally:
            lease.close()


def _left(paths: SweepPaths, problem: StorageError) -> str:
    if problem.kind == "taken":
        return f"storage: {problem}. What this driver did since lies in {paths.root} alone, and is not part of the sweep any more"
    return (
        f"storage: not everything could be sent ({problem.kind}: {problem}). Nothing is lost: it lies in {paths.root}; once that "
        f"is mended, `stockpot resume {paths.url}` on this machine sends it"
    )


@contextlib.contextmanager
def _alone(paths: SweepPaths) -> Iterator[None]:
    paths.root.mkdir(parents=True, exist_ok=True)
    try:
        lock = DriverLock.take(paths.storage_lock)
    except LockHeld as held:
        raise LedgerError(
            f"sweep {paths.name} is driven by pid {held.holder.get('pid')} on this machine since {held.holder.get('started')}: "
            f"wait for it, or `stockpot stop {paths.url}`"
        ) from held
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # nothing was driven: leave nothing
            if not any(path != paths.storage_lock for path in paths.root.iterdir()):
                paths.storage_lock.unlink()
                paths.root.rmdir()


def _set_aside(storage: Storage, paths: SweepPaths, say: Callable[[str], None]) -> None:
    """Move away what lies in the working folder, where another machine has gone on with the sweep since."""
    number, nonce = own_number(paths)
    found = look(storage)
    if not paths.ledger.exists() or (found.number, found.holder.get("nonce", "")) in ((number, nonce), (0, "")):
        return
    if found.alive:
        return  # refused in a moment
    aside = paths.root.with_name(f"{paths.name}.overtaken-{number}-{time.strftime('%Y%m%d-%H%M%S')}")
    aside.mkdir()
    for path in paths.root.iterdir():
        if path != paths.storage_lock:
            path.rename(aside / path.name)
    say(f"another machine has gone on with {paths.name} since it was driven here; what lay here is in {aside}")


def refuse_storage(paths: SweepPaths) -> None:
    """Raise where a sweep can't be begun: its folder can't be written, or remote storage holds one of the name.

    Raises:
        LedgerError: naming the folder that refuses, or asking for `resume` or another name.
        StorageError: when remote storage can't be used.
    """
    there = next(place for place in (paths.root, *paths.root.parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        mend = "set STOCKPOT_WORK to another folder" if paths.url else "give another one (storage: in the file)"
        raise LedgerError(f"storage {paths.root.parent}: {there} can't be written (read-only, or not yours); {mend}")
    if not paths.url:
        return
    storage = open_storage(paths.url)
    storage.prove()
    if storage.files("ledger"):
        raise LedgerError(
            f"the name '{paths.name}' is in use in {paths.url.rpartition('/')[0]}: go on with `stockpot resume {paths.url}`, "
            "or choose another name (name: in the file, or --set name=...)"
        )
    found = look(storage)
    if found.alive and found.number != own_number(paths)[0]:
        raise LedgerError(f"another driver is just beginning {paths.url}; ask again in a minute")


def send_pages(paths: SweepPaths) -> None:
    """Send the pages that are written when a driver has ended; nothing for a local folder.

    Raises:
        StorageError: if they can't be sent.
    """
    pages = [page for page in (paths.report, paths.checklist) if paths.url and page.is_file()]
    for page in pages:
        open_storage(paths.url).send(page, page.name)


def ask_to_stop(paths: SweepPaths, grace: float) -> None:
    """Ask whoever drives a sweep to stop: here, or through remote storage.

    Args:
        paths: where the sweep lies.
        grace: seconds that running trials may take to their next report.

    Raises:
        StorageError: when that does not take the request.
    """
    if DriverLock.holder(paths.lock) is not None or not paths.url:
        request_stop(paths, stop_text(grace))
    else:
        open_storage(paths.url).put(STOP, stop_text(grace))


def holder_of(paths: SweepPaths, *, ask: bool = False) -> Mapping[str, Any] | None:
    """Who drives a sweep now, {pid, host, started}: by its lock here, else by what remote storage says.

    Args:
        paths: where the sweep lies, or a reader's copy of it.
        ask: ask the storage now; else what it said last counts.
    """
    here = DriverLock.holder(paths.lock)
    if here is not None or not paths.url:
        return here
    if ask and paths.seen.exists():
        with contextlib.suppress(StorageError):  # what it said last counts
            refresh(paths)
    return seen_holder(paths)


def unsent(paths: SweepPaths) -> Mapping[str, Any] | None:
    """What the last driver of a working folder could not send: {segments, why, kind}; None where all is in the storage."""
    return _record(paths.unsent)


def _record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
