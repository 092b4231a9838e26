"""What comes back from remote storage: a sweep's ledger, its weights and its logs, each held against what was sent.

A driver on another machine fetches everything into its working folder; a reader fetches the ledger into a copy of its own, and
only what is new of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps.ledger_file import DAMAGE, LedgerError, open_database
from sweeps.paths import SweepPaths
from sweeps.riding import COMPLETE, SOUP
from sweeps.segments import Segments, SegmentsDamaged, restore
from sweeps.snapshots import fetch_snapshot
from sweeps.storage import Storage, StorageError, open_storage
from sweeps.storage_lease import look

SEGMENTS = "ledger"
_WEIGHTS = ("trials/", "soups/")
_TEXTS = ("report.html", "checklist.md", "logs/", "trackers/")


def fetch_ledger(storage: Storage, paths: SweepPaths) -> bool:
    """Bring a folder's ledger up to what the storage has; False where there is no sweep there.

    Raises:
        StorageError: `damaged` where a piece is not what was sent, or is missing.
    """
    names = sorted(name for name in storage.files(SEGMENTS) if _number(name))
    if not names:
        return False
    segments = Segments(paths.segments)
    have = segments.numbers()
    paths.root.mkdir(parents=True, exist_ok=True)
    reached = max([*have[-1:], fetch_snapshot(storage, paths)], default=0)
    wanted = [name for name in names if _number(name) > reached]
    if not have and not wanted:
        wanted = names[-1:]  # a driver goes on numbering from there
    for name in wanted:
        storage.fetch(name, paths.root / name)
    try:
        database = open_database(paths.ledger, durable=True)
        try:
            restore(segments, database)
        finally:
            database.close()
    except (SegmentsDamaged, LedgerError, *DAMAGE) as error:
        raise StorageError("damaged", f"{storage.url}: its ledger can't be trusted: {error}") from error
    return True


def fetch_weights(storage: Storage, paths: SweepPaths, say: Callable[[str], None]) -> None:
    """Bring back every checkpoint and soup that is whole there and not here; one that is not what was sent is passed over.

    Raises:
        OSError: if the disk is too small for them.
    """
    names = {name: size for name, size in storage.files().items() if name.startswith(_WEIGHTS)}
    marks = sorted(name for name in names if Path(name).name in (COMPLETE, SOUP) and not (paths.root / name).is_file())
    marks = [mark for mark in marks if Path(mark).name == SOUP or f"{Path(mark).parent.as_posix()}/{SOUP}" not in names]
    inside = {mark: [name for name in names if name.startswith(f"{Path(mark).parent.as_posix()}/")] for mark in marks}
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
        if Path(mark).name == COMPLETE and not _whole(folder):
            shutil.rmtree(folder)
            say(f"{mark} in {storage.url} is not what was sent; what lay there is made again")


def _whole(folder: Path) -> bool:
    from pipelines.finetune.checkpoint import is_whole

    return is_whole(folder)


def fetch_texts(storage: Storage, paths: SweepPaths) -> None:
    """Bring logs and pages, for people; those that are as large here are not fetched again."""
    for name, size in storage.files().items():
        own = paths.root / name
        if name.startswith(_TEXTS) and not (own.is_file() and own.stat().st_size == size):
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
    with _alone(paths.root.with_name(f".{paths.name}.lock")):
        held = look(storage, writing=False)
        first = _first_nonce(storage)
        if first != _seen(paths).get("first", first):  # the sweep was made anew under its name
            shutil.rmtree(paths.root)
        if not fetch_ledger(storage, paths):
            shutil.rmtree(paths.root, ignore_errors=True)
            return False
        write_spec(paths)
        seen = {"first": first, "alive": held.alive, "holder": dict(held.holder), "number": held.number}
        _write(paths.seen, json.dumps(seen))
        if texts:
            fetch_texts(storage, paths)
    return True


def seen_holder(paths: SweepPaths) -> Mapping[str, Any] | None:
    """Who drove the sweep when the storage was last asked: {pid, host, started}; None where nobody did."""
    seen = _seen(paths)
    holder = seen.get("holder")
    return holder if seen.get("alive") and isinstance(holder, dict) else None


def seen_number(paths: SweepPaths) -> int:
    """Number of the newest lease when the storage was last asked."""
    return int(_seen(paths).get("number", 0))


def write_spec(paths: SweepPaths) -> None:
    """`sweep.resolved.json` as the ledger has it."""
    from sweeps.fold import fold
    from sweeps.ledger import Ledger

    ledger = Ledger.read(paths.root)
    try:
        spec = fold(ledger.events()).spec
    finally:
        ledger.drop()
    text = json.dumps(spec, indent=1, ensure_ascii=False, allow_nan=False)
    with contextlib.suppress(OSError):
        if paths.resolved_spec.read_text(encoding="utf-8") == text:
            return
    _write(paths.resolved_spec, text)


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _seen(paths: SweepPaths) -> dict[str, Any]:
    try:
        record = json.loads(paths.seen.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _first_nonce(storage: Storage) -> str:
    data = storage.get("lease/000001.json")
    try:
        return str(json.loads(data)["nonce"]) if data is not None else ""
    except (ValueError, KeyError, TypeError):
        return ""


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _number(name: str) -> int:
    """Number of a segment's name, 0 for another file's."""
    path = Path(name)
    inside = path.parent.as_posix() == SEGMENTS and path.suffix == ".jsonl"
    return int(path.stem) if inside and path.stem.isdigit() else 0
