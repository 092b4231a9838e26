"""The live file of a ledger: its tables, and how it is opened for writing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

DAMAGE = (sqlite3.Error, UnicodeDecodeError)
"""What SQLite and its Python module raise where a file is not what was written."""


UNWRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
"""What SQLite says where the disk is full or may not be written."""
UNWRITABLE_IO = (
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMMAP,
)
"""The same, where it was the WAL or its index that found no room."""


class LedgerError(RuntimeError):
    """The ledger can't be opened, is held by another driver, or is damaged; the message says what to do."""


class LedgerBegun(LedgerError):
    """A driver has made the file and not yet its tables."""


class LedgerUnwritable(LedgerError):
    """The ledger is sound and can't be written: a full or read-only disk."""


SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
    seal INTEGER);
CREATE TABLE IF NOT EXISTS item_sets (hash TEXT PRIMARY KEY, seq INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (
    owner TEXT NOT NULL, resource INTEGER NOT NULL, name TEXT NOT NULL, split TEXT NOT NULL,
    seq INTEGER NOT NULL, item_set TEXT NOT NULL, scores BLOB NOT NULL, seal INTEGER,
    PRIMARY KEY (owner, resource, name, split)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_by_seq ON items (seq);
CREATE INDEX IF NOT EXISTS item_sets_by_seq ON item_sets (seq);
"""


def damaged(file: Path, what: str) -> LedgerError:
    """The error for a file that does not hold what was written, with the way out."""
    return LedgerError(
        f"{file} is damaged ({what}): move it away and resume; it is rebuilt from the segments in {file.with_suffix('')}/"
    )


def trouble(file: Path, error: Exception) -> LedgerError:
    """The error for what SQLite raised about a file that is written: `LedgerUnwritable` where it is sound."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF in UNWRITABLE or code in UNWRITABLE_IO:
        return unwritable(file, str(error))
    return damaged(file, str(error))


def open_database(path: Path, durable: bool) -> sqlite3.Connection:
    """Open the file, made where it is missing; tables of an older version get what they lack.

    Raises:
        LedgerError: when it is damaged.
        LedgerUnwritable: when the disk is full or read-only.
    """
    try:
        database = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise unwritable(path, str(error)) from error
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
        database.executescript(SCHEMA)
        for table in ("events", "items"):  # of an older version, whose rows have no seals
            if "seal" not in {row[1] for row in database.execute(f"PRAGMA table_info({table})")}:
                database.execute(f"ALTER TABLE {table} ADD COLUMN seal INTEGER")
    except DAMAGE as error:
        database.close()
        raise trouble(path, error) from error
    return database


def unwritable(path: Path, why: str) -> LedgerUnwritable:
    """The error for a file that is sound and can't be written, with the way out."""
    return LedgerUnwritable(f"{path} can't be written ({why}): free some space or make it writable there, then go on")
