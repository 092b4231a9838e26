"""A SQLite file that mends itself: what is no whole database is set aside with a warning, and begun anew.

For stores whose content can be computed again. Locked, full or out of reach is no damage: such a statement goes without
an answer, with a warning, and never fails a caller.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class MendingDatabase:
    """One connection; callers take turns.

    Args:
        path: the file; its folder is there.
        what: what it is called in warnings.
        opening: statements that make tables where they are missing, and read from them.

    Attributes:
        corrupt: times it was set aside.
    """

    def __init__(self, path: Path, what: str, opening: Sequence[str]) -> None:
        self.path = path
        self.corrupt = 0
        self._what = what
        self._opening = ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", *opening)
        try:
            self._db = self._connect()
        except sqlite3.DatabaseError as error:
            if not _damaged(error):
                raise
            self._set_aside(error)

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Rows; none, with a warning, when the database is locked, full or broken."""
        try:
            return _rows(self._db, statement, values)
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as error:
            self._failed(error)
            return []

    def write(self, statement: str, rows: Sequence[Sequence[Any]]) -> int | None:
        """Run a statement for each row, all or none; the rows it changed, None when nothing could be written."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                changed = self._db.executemany(statement, rows).rowcount
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
            return changed
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as error:
            self._failed(error)
            return None

    def check(self) -> None:
        """Begin anew where the damage goes beyond single rows."""
        if self.execute("PRAGMA integrity_check(1)") not in ([], [(b"ok",)]):
            self._db.close()
            self._set_aside(sqlite3.DatabaseError("its index is broken"))

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def _failed(self, error: sqlite3.DatabaseError) -> None:
        if _damaged(error):
            self._db.close()
            self._reopen(error)
        else:
            _log.warning("the %s %s goes without an answer: %s", self._what, self.path, error)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=30, check_same_thread=False, isolation_level=None)
        try:
            db.text_factory = bytes
            for statement in self._opening:
                _rows(db, statement)
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Move a database that can't be read out of the way and begin a new one."""
        aside = self.path.with_name(f"{self.path.name}.corrupt-{time.time_ns()}")
        _log.warning(
            "the %s %s can't be read (%s); it is kept as %s and begun anew", self._what, self.path, error, aside.name
        )
        self.corrupt += 1
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.replace(f"{aside}{suffix}")
        self._db = self._connect()

    def _reopen(self, error: sqlite3.DatabaseError) -> None:
        """Open what lies there now if it is whole (another process has mended it), begin anew otherwise."""
        try:
            self._db = self._connect()
            if _rows(self._db, "PRAGMA integrity_check(1)") == [(b"ok",)]:
                return
            self._db.close()
        except sqlite3.DatabaseError as found:
            error = found
        self._set_aside(error)


_OUT_OF_REACH = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_AUTH,
}


def _rows(db: sqlite3.Connection, statement: str, values: Sequence[Any] = ()) -> list[Any]:
    try:
        return db.execute(statement, values).fetchall()
    except UnicodeDecodeError as error:  # SQLite's message quotes the damaged schema
        raise sqlite3.DatabaseError("its schema is broken") from error


def _damaged(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is no whole database of ours, rather than locked, full or out of reach."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _OUT_OF_REACH
