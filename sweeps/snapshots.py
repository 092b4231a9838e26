"""Snapshots of a ledger in remote storage: so that another machine need not read every segment since the beginning.

A snapshot is a copy by SQLite's own backup, cut back to the events that the storage has, uploaded under a new name; then
`snapshot.json` points to it, with its hash. What does not have that hash is not opened. Without one the segments do.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.hashes import file_hash
from sweeps.paths import SweepPaths
from sweeps.records import parsed
from sweeps.storage import Storage, StorageError

FOLDER, POINTER = "snapshot", "snapshot.json"
_TABLES = ("events", "items", "item_sets")


def send_snapshot(
    storage: Storage, paths: SweepPaths, segment: int, until: int, refuse_lost: Callable[[], None]
) -> bool:
    """Copy the ledger up to an event, and point to the copy; False where this machine can't make one (a full disk).

    Args:
        storage: the sweep's.
        paths: its working folder.
        segment: number of the segment that ends with `until`.
        until: the last event that the storage has.
        refuse_lost: raises where another driver has the sweep; asked before anything that was there is changed.

    Raises:
        StorageError: if it can't be sent.
    """
    try:
        with tempfile.TemporaryDirectory(dir=paths.root, prefix=".snapshot-") as own:
            copy = Path(own) / "ledger.sqlite"
            _copy(paths.ledger, copy, until)
            name = f"{FOLDER}/{until:09d}.sqlite"
            record = {"name": name, "until": until, "segment": segment, "sha256": file_hash(copy)}
            before = _pointer(storage)
            refuse_lost()
            storage.send(copy, name)
    except (OSError, sqlite3.Error):
        return False
    refuse_lost()
    storage.put(POINTER, json.dumps(record).encode())
    kept = {name, None if before is None else before["name"]}
    storage.delete(sorted(set(storage.files(FOLDER)) - kept))
    return True


def fetch_snapshot(storage: Storage, paths: SweepPaths) -> int:
    """Put the newest snapshot in the place of a ledger that is not there; the number of its last segment, 0 without one.

    Raises:
        StorageError: `damaged` where it is not what was sent.
    """
    record = _pointer(storage)
    if record is None or paths.ledger.exists():
        return 0
    aside = paths.ledger.with_name(".snapshot.tmp")
    try:
        storage.fetch(record["name"], aside)
        if file_hash(aside) != record["sha256"]:
            raise StorageError("damaged", f"{storage.url}: {record['name']} is not what was sent")
        for left in ("-wal", "-shm"):  # of a ledger that was moved away: SQLite would play them into this one
            paths.ledger.with_name(paths.ledger.name + left).unlink(missing_ok=True)
        aside.replace(paths.ledger)
    finally:
        aside.unlink(missing_ok=True)
    return int(record["segment"])


def _copy(ledger: Path, copy: Path, until: int) -> None:
    source = sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True, timeout=10)
    target = sqlite3.connect(copy, isolation_level=None)
    try:
        source.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")
        for table in _TABLES:
            target.execute(f"DELETE FROM {table} WHERE seq > ?", (until,))
        target.execute("VACUUM")
    finally:
        source.close()
        target.close()


def _pointer(storage: Storage) -> dict[str, Any] | None:
    record = parsed(storage.get(POINTER))
    try:
        whole = {"name": str(record["name"]), "until": int(record["until"])}
        return {**whole, "segment": int(record["segment"]), "sha256": str(record["sha256"])}
    except (ValueError, KeyError, TypeError):
        return None
