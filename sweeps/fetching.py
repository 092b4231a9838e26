"""What comes back from remote storage: a sweep's ledger, its weights and its logs, each held against what was sent.

A driver on another machine fetches everything into its working folder; a reader fetches the ledger into a copy of its own, and
only what is new of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pipelines.finetune.checkpoint import COMPLETE, is_whole
from pipelines.once import locked
from sweeps.bundles import SOUP, Bundle, told_of
from sweeps.ledger_file import DAMAGE, LedgerError, LedgerUnwritable, open_database, trouble
from sweeps.paths import SweepPaths
from sweeps.records import parsed, read_record, write_aside, write_resolved
from sweeps.segments import FOLDER, Segments, SegmentsDamaged, restore, segment_name, segment_number
from sweeps.snapshots import fetch_snapshot
from sweeps.storage import Storage, StorageError, open_storage
from sweeps.storage_lease import look

_WEIGHTS = ("trials", "soups")
_MARKS = (f"/{COMPLETE}", f"/{SOUP}")
_TEXTS = ("report.html", "checklist.md", "logs", "trackers")


def fetch_ledger(storage: Storage, paths: SweepPaths) -> bool:
    """Bring a folder's ledger up to what the storage has; False where there is no sweep there.

    Raises:
        StorageError: `damaged` where a piece is not what was sent, or is missing.
        LedgerUnwritable: when this machine's disk is full.
    """
    there = sorted(number for name in storage.files(FOLDER) if (number := segment_number(name)))
    if not there:
        return False
    segments = Segments(paths.segments)
    have = segments.numbers()
    paths.root.mkdir(parents=True, exist_ok=True)
    reached = max([*have[-1:], fetch_snapshot(storage, paths)], default=0)
    wanted = [number for number in there if number > reached]
    if not wanted and not segments.path(there[-1]).exists():
        wanted = there[-1:]  # a driver goes on numbering from there
    for number in wanted:
        storage.fetch(segment_name(number), segments.path(number))
    try:
        database = open_database(paths.ledger, durable=True)
        try:
            restore(segments, database)
        except DAMAGE as error:
            raise trouble(paths.ledger, error) from error
        finally:
            database.close()
    except LedgerUnwritable:
        raise
    except (SegmentsDamaged, LedgerError) as error:
        raise StorageError("damaged", f"{storage.url}: its ledger can't be trusted: {error}") from error
    return True


def fetch_weights(storage: Storage, paths: SweepPaths, say: Callable[[str], None]) -> list[Bundle]:
    """Bring back every checkpoint and soup that is whole there and not here; one that is not what was sent is passed over.

    Returns:
        What lies there still and was deleted, as the ledger says.

    Raises:
        OSError: if the disk is too small for them.
        LedgerError: when the working folder's ledger can't be read.
    """
    names = {name: size for folder in _WEIGHTS for name, size in storage.files(folder).items()}
    above = {name[:end] for name in names for end, letter in enumerate(name) if letter == "/"}
    doomed = [bundle for bundle in told_of(paths) if bundle.gone and bundle.folder in above]
    _fetch_bundles(storage, paths, say, names, {bundle.folder for bundle in doomed})
    return doomed


def _fetch_bundles(
    storage: Storage, paths: SweepPaths, say: Callable[[str], None], names: Mapping[str, int], passed: Collection[str]
) -> None:
    marks = [name for name in sorted(names) if name.endswith(_MARKS) and not (paths.root / name).is_file()]
    marks = [mark for mark in marks if mark.endswith(_MARKS[1]) or f"{_above(mark)}{_MARKS[1]}" not in names]
    marks = [mark for mark in marks if _above(mark) not in passed]
    inside = {mark: [name for name in names if name.startswith(f"{_above(mark)}/")] for mark in marks}
    if not marks:
        return
    size = sum(names[name] for found in inside.values() for name in found)
    free = shutil.disk_usage(paths.root).free
    say(f"fetching {len(marks)} checkpoints and soups ({size / 1e6:.1f} MB) from {storage.url}")
    if size > free:
        raise StorageError(
            "full",
            f"{paths.root}: {size / 1e9:.2f} GB come back, and {free / 1e9:.2f} GB are free there; set STOCKPOT_WORK to a larger disk",
        )
    for mark, found in inside.items():
        for name in [*(name for name in found if name != mark), mark]:
            storage.fetch(name, paths.root / name)
        folder = (paths.root / mark).parent
        if mark.endswith(_MARKS[0]) and not is_whole(folder):
            shutil.rmtree(folder)
            say(f"{mark} in {storage.url} is not what was sent; what lay there is made again")


def _above(mark: str) -> str:
    return mark.rpartition("/")[0]


def fetch_texts(storage: Storage, paths: SweepPaths) -> None:
    """Bring logs and pages, for people; those that are as large here are not fetched again."""
    for place in _TEXTS:
        for name, size in storage.files(place).items():
            own = paths.root / name
            if not (own.is_file() and own.stat().st_size == size):
                storage.fetch(name, own)


def refresh(paths: SweepPaths, *, texts: bool = False) -> bool:
    """Bring a reader's copy up to date; False where the storage holds no such sweep.

    Args:
        paths: of the copy.
        texts: whether logs and pages are wanted.

    Raises:
        StorageError: when the storage can't be read.
    """
    storage = open_storage(paths.url)
    paths.root.mkdir(parents=True, exist_ok=True)
    with locked(paths.root.with_name(f".{paths.name}.lock")):
        held = look(storage, writing=False)
        first = str(parsed(storage.get("lease/000001.json")).get("nonce", ""))
        if first != read_record(paths.seen).get("first", first):  # the sweep was made anew under its name
            shutil.rmtree(paths.root)
        if not _fetch_copy(storage, paths):
            shutil.rmtree(paths.root, ignore_errors=True)
            return False
        seen = {"first": first, "alive": held.alive, "holder": dict(held.holder), "number": held.number}
        write_aside(paths.seen, json.dumps(seen))
        if texts:
            fetch_texts(storage, paths)
    return True


def _fetch_copy(storage: Storage, paths: SweepPaths) -> bool:
    """Bring a copy's ledger and spec up to date; a damaged copy is fetched anew, once."""
    for again in (True, False):
        try:
            found = fetch_ledger(storage, paths)
            if found:
                write_spec(paths)
            return found
        except LedgerUnwritable:
            raise
        except (StorageError, LedgerError) as error:
            if not again or (isinstance(error, StorageError) and error.kind != "damaged"):
                raise
            shutil.rmtree(paths.root)
    raise AssertionError("two tries end in an answer or an error")


def seen_holder(paths: SweepPaths) -> Mapping[str, Any] | None:
    """Who drove the sweep when the storage was last asked: {pid, host, started}; None where nobody did."""
    seen = read_record(paths.seen)
    holder = seen.get("holder")
    return holder if seen.get("alive") and isinstance(holder, dict) else None


def seen_nonce(paths: SweepPaths) -> str:
    """What the newest lease held when the storage was last asked, by which its working folder is known; empty without one."""
    holder = read_record(paths.seen).get("holder")
    return str(holder.get("nonce", "")) if isinstance(holder, dict) else ""


def write_spec(paths: SweepPaths) -> None:
    """`sweep.resolved.json` as the ledger has it."""
    from sweeps.fold import fold
    from sweeps.ledger import Ledger

    ledger = Ledger.read(paths.root)
    try:
        spec = fold(ledger.events()).spec
    finally:
        ledger.drop()
    write_resolved(paths, spec)
