"""Make a memo smaller: entries go by age, by kind, or the oldest until the rest fits."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.folder_lock import FolderLock
from pipelines.memo import FILE
from pipelines.stage import UserError


@dataclass(frozen=True)
class Pruned:
    """What has gone.

    Attributes:
        entries: values.
        bytes: of the values.
        left: bytes of the values that stay.
    """

    entries: int
    bytes: int
    left: int


def prune(
    folder: Path, *, older_than: float | None = None, most_bytes: int | None = None, kinds: Sequence[str] = ()
) -> Pruned:
    """Delete entries. What a sweep asks for again is computed again, so nobody may have the memo open.

    Args:
        folder: the memo's.
        older_than: seconds; entries stored longer ago go.
        most_bytes: the oldest go until the values of all that stay come to no more.
        kinds: only entries of these go; without another rule all of them.

    Raises:
        UserError: while a sweep uses it.
    """
    if not (folder / FILE).is_file():
        return Pruned(0, 0, 0)
    lock = FolderLock(folder)
    if not lock.take(alone=True):
        raise UserError(
            f"the memo {folder} is in use: a sweep that computes with it is running; prune when it has ended"
        )
    try:
        return _pruned(folder / FILE, older_than, most_bytes, kinds)
    finally:
        lock.drop()


def _pruned(path: Path, older_than: float | None, most_bytes: int | None, kinds: Sequence[str]) -> Pruned:
    try:
        db = sqlite3.connect(path, isolation_level=None)
        try:
            going = _chosen(db, older_than, most_bytes, kinds)
            before = _size(db)
            db.execute("BEGIN IMMEDIATE")
            db.executemany("DELETE FROM entries WHERE rowid = ?", [(row,) for row in going])
            db.execute("COMMIT")
            after = _size(db)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            db.execute("VACUUM")
            return Pruned(len(going), before - after, after)
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        raise UserError(f"the memo {path} can't be pruned: {error}; delete the folder to begin anew") from error


def _chosen(
    db: sqlite3.Connection, older_than: float | None, most_bytes: int | None, kinds: Sequence[str]
) -> list[int]:
    """Rows that go, the oldest first."""
    marks = ",".join("?" * len(kinds))
    where = f" WHERE kind IN ({marks})" if kinds else ""
    rows = db.execute(
        f"SELECT rowid, length(value), created FROM entries{where} ORDER BY created, rowid", kinds
    ).fetchall()
    if older_than is None and most_bytes is None:
        return [row for row, _, _ in rows]
    before = float("-inf") if older_than is None else time.time() - older_than
    over = float("-inf") if most_bytes is None else _size(db) - most_bytes
    going = []
    for row, size, created in rows:
        if created > before and over <= 0:
            break
        going.append(row)
        over -= size
    return going


def _size(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(sum(length(value)), 0) FROM entries").fetchone()[0])
