"""Driving a sweep whose storage is remote: the lease, what is fetched before, what rides while, and what is left after."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sweeps.fetching import fetch_ledger, fetch_texts, fetch_weights, refresh, seen_holder, write_spec
from sweeps.ledger import Ledger, LedgerError
from sweeps.lock import DriverLock, LockHeld
from sweeps.paths import SweepPaths
from sweeps.records import read_record
from sweeps.riding import Rider
from sweeps.segments import FOLDER, Segments, SegmentsDamaged, segment_lines, segment_name, segment_number
from sweeps.stopping import request_stop, stop_text
from sweeps.storage import Storage, StorageError, open_storage
from sweeps.storage_lease import STOP, Held, StorageLease, is_ours, look


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
        found = look(storage)
        _set_aside(storage, paths, found, say)
        lease = StorageLease.take(storage, paths, found, lambda text: request_stop(paths, text))
        try:
            there = fetch_ledger(storage, paths)
            if there and not paths.resolved_spec.exists():
                write_spec(paths)
            if not paths.logs.is_dir():  # before anything is said, which goes into a log
                fetch_texts(storage, paths)
            doomed = fetch_weights(storage, paths, say) if there else []
            rider = Rider(storage, paths, lease, say, doomed)
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


def _set_aside(storage: Storage, paths: SweepPaths, found: Held, say: Callable[[str], None]) -> None:
    """Move away what lies in the working folder, where another machine has gone on with the sweep since."""
    segments, ours = Segments(paths.segments), is_ours(found, paths)
    if not (paths.ledger.exists() or segments.numbers()) or (found.alive and not ours):
        return  # nothing lies here, or it is refused in a moment
    if (ours or not found.number) and not _diverged(storage, paths, segments):
        return
    number = read_record(paths.lease).get("number", 0)
    aside = paths.root.with_name(f"{paths.name}.overtaken-{number}-{time.strftime('%Y%m%d-%H%M%S')}")
    aside.mkdir()
    for path in paths.root.iterdir():
        if path != paths.storage_lock:
            path.rename(aside / path.name)
    say(f"another machine has gone on with {paths.name} since it was driven here; what lay here is in {aside}")


def _diverged(storage: Storage, paths: SweepPaths, segments: Segments) -> bool:
    """Whether a driver that was taken for dead has written a segment late, and what lies here says something else.

    It is the newest that is both here and there; or it is there alone, and events wait here that are in no segment yet.

    Raises:
        StorageError: `damaged` where what is there is no segment.
        LedgerError: when what lies here can't be read.
    """
    there, here = storage.files(FOLDER), segments.numbers()
    common = [number for number in here if segment_name(number) in there]
    if not common:
        return False
    if max(map(segment_number, there)) > here[-1] and paths.ledger.exists() and _unshipped(paths, segments):
        return True
    name, own = segment_name(common[-1]), segments.path(common[-1])
    data = storage.get(name)
    if data is None or data == own.read_bytes():
        return False
    try:
        segment_lines(name, data)
    except SegmentsDamaged as error:
        raise StorageError(
            "damaged", f"{storage.url}: {error}, and {own} is sound: remove {name} there, and it is sent again"
        ) from error
    return True


def _unshipped(paths: SweepPaths, segments: Segments) -> bool:
    ledger = Ledger.read(paths.root)
    try:
        return next(ledger.events(after=segments.last), None) is not None
    finally:
        ledger.drop()


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
    if storage.files(FOLDER):
        raise LedgerError(
            f"the name '{paths.name}' is in use in {paths.url.rpartition('/')[0]}: go on with `stockpot resume {paths.url}`, "
            "or choose another name (name: in the file, or --set name=...)"
        )
    found = look(storage)
    if found.alive and not is_ours(found, paths):
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


def holder_of(paths: SweepPaths, *, ask: bool = False, texts: bool = False) -> Mapping[str, Any] | None:
    """Who drives a sweep now, {pid, host, started}: by its lock here, else by what remote storage says.

    Args:
        paths: where the sweep lies, or a reader's copy of it.
        ask: ask the storage now; else what it said last counts.
        texts: bring logs and pages up to date, too, where it is asked.
    """
    here = DriverLock.holder(paths.lock)
    if here is not None or not paths.url:
        return here
    if ask and paths.seen.exists():
        with contextlib.suppress(StorageError):  # what it said last counts
            refresh(paths, texts=texts)
    return seen_holder(paths)


def unsent(paths: SweepPaths) -> Mapping[str, Any] | None:
    """What the last driver of a working folder could not send: {segments, why, kind}; None where all is in the storage."""
    return read_record(paths.unsent) or None
