"""The append-only ledger: the only truth of a sweep. Everything shown or resumed is a fold over its events.

Live in SQLite (WAL, synchronous FULL) on the driver's local disk; events also go to `<sweep>/ledger/` as immutable
numbered segments (at most 2 s or 100 events apart). One `append` is one transaction, durable when it returns.

`sweeps.events` says what kinds of events there are.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.base import ItemSet
from sweeps.events import Event, Items, StoredItems
from sweeps.ledger_file import DAMAGE, SCHEMA, damaged, open_database, trouble, unwritable
from sweeps.ledger_file import LedgerBegun as LedgerBegun
from sweeps.ledger_file import LedgerError as LedgerError
from sweeps.lock import DriverLock, LockHeld
from sweeps.paths import SweepPaths
from sweeps.seals import event_seal, items_seal
from sweeps.segments import Segments, SegmentsDamaged, SegmentSource, restore

SHIP_SECONDS = 2.0
"""Events wait at most this long for their segment."""
SHIP_EVENTS = 100
"""A segment is written as soon as this many events wait."""
_PAGE = 1000


class Ledger:
    """Open with `create`, `open` (a driver, takes the lock) or `read` (any number of readers, no lock).

    Attributes:
        root: the sweep's folder.
        clock: seconds since the epoch; a simulation puts its virtual clock here.
    """

    def __init__(self, root: Path, database: sqlite3.Connection, lock: DriverLock | None, segments: Segments) -> None:
        """Not for callers: `create`, `open` and `read` make ledgers."""
        self.root = root
        self.clock: Callable[[], float] = time.time
        self._database = database
        self._held = lock
        self._segments = segments
        self._guard = threading.RLock()
        columns = {row[1] for row in self._select("PRAGMA table_info(events)")}
        self._seal = "seal" if "seal" in columns else "NULL"
        self._examined = False
        self._seq = self._newest()
        self._shipped = 0 if lock is None else segments.last
        self._shipped_at = time.monotonic()
        self._known_sets = {row[0] for row in self._select("SELECT hash FROM item_sets")}

    @classmethod
    def create(cls, root: Path, *, durable: bool = True) -> Ledger:
        """A new sweep's ledger, locked.

        Args:
            root: the sweep's folder, made where it is missing.
            durable: False lets the operating system write when it likes: for simulations only.

        Raises:
            LedgerError: when one with events is there already, or another driver holds the lock.
        """
        paths = SweepPaths(root)
        root.mkdir(parents=True, exist_ok=True)
        lock = _take(paths)
        try:
            database = open_database(paths.ledger, durable)
            ledger = cls(root, database, lock, Segments(paths.segments))
            if ledger._seq or ledger._segments.numbers():
                database.close()
                raise LedgerError(
                    f"{root} holds a sweep already: go on with `stockpot resume {root.name}`, or choose another name"
                )
            return ledger
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, root: Path, *, durable: bool = True) -> Ledger:
        """An existing ledger, locked for this driver; rebuilt from the segments where the live file lacks their events.

        Raises:
            LedgerError: when there is none, when it is damaged, or when another driver holds it (naming pid and host).
        """
        paths = SweepPaths(root)
        segments = Segments(paths.segments)
        if not paths.ledger.is_file() and not segments.numbers():
            raise LedgerError(f"there is no sweep in {root}")
        lock = _take(paths)
        try:
            database = open_database(paths.ledger, durable)
            _restore(segments, database, paths)
            return cls(root, database, lock, segments)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def read(cls, root: Path) -> Ledger:
        """Read only, beside a running driver; from the segments alone where only they are left.

        Raises:
            LedgerError: when there is none, or it is damaged.
        """
        paths = SweepPaths(root)
        segments = Segments(paths.segments)
        if paths.ledger.is_file():
            try:
                shipped = segments.last  # before the events are counted: a driver may ship some between the two
                database = sqlite3.connect(
                    f"{paths.ledger.as_uri()}?mode=ro", uri=True, timeout=10, check_same_thread=False
                )
                ledger = cls(root, database, None, segments)
                if ledger._seq < shipped:  # what its driver would put back first
                    raise damaged(paths.ledger, f"it ends at event {ledger._seq}, and {shipped} were written")
                return ledger
            except SegmentsDamaged as error:
                raise LedgerError(f"{paths.segments}: {error}") from error
            except DAMAGE as error:
                raise damaged(paths.ledger, str(error)) from error
        if not segments.numbers():
            raise LedgerError(f"there is no sweep in {root}")
        database = sqlite3.connect(":memory:", check_same_thread=False)
        database.executescript(SCHEMA)
        _restore(segments, database, paths)
        return cls(root, database, None, segments)

    @property
    def holder(self) -> Mapping[str, Any] | None:
        """Who drives the sweep now ({pid, host, started}), as its lock file says; None when nobody does."""
        return DriverLock.holder(SweepPaths(self.root).lock)

    def append(self, events: Sequence[Event], items: Sequence[Items] = ()) -> list[Event]:
        """Write events and items in one transaction, durable on return.

        Args:
            events: at least one; their `seq` and `time` are ignored.
            items: item scores that belong to the last event; scores without items are passed over.

        Returns:
            The events as stored.

        Raises:
            LedgerError: when this ledger was opened with `read` or is closed, or the disk is full.
            ValueError: when a body holds NaN or infinity.
        """
        if self._held is None or not events:
            raise LedgerError(f"{self.root}: nothing can be written through a reader" if events else "no events given")
        with self._guard:
            now = self.clock()
            stored = [Event(event.kind, event.body, self._seq + 1 + i, now) for i, event in enumerate(events)]
            rows = [_row(event.seq, now, event.kind, _dumps(event.body)) for event in stored]
            sets, values = self._rows(items, stored[-1].seq)
            try:
                with self._writing():
                    self._database.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
                    if values:
                        self._database.executemany("INSERT OR IGNORE INTO item_sets VALUES (?, ?, ?)", sets)
                        self._database.executemany(
                            "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values
                        )
            except KeyboardInterrupt:  # it comes after the commit as easily as before
                self._seq = self._newest()
                raise
            self._seq = stored[-1].seq
            self._known_sets.update(row[0] for row in sets)
            return stored

    def _newest(self) -> int:
        return int(self._select("SELECT coalesce(max(seq), 0) FROM events")[0][0])

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, undone where it can't be written whole."""
        try:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.OperationalError as error:
            raise LedgerError(
                f"{SweepPaths(self.root).ledger} can't be written ({error}): free some space there, then resume"
            ) from error

    def events(self, after: int = 0) -> Iterator[Event]:
        """Events with seq > after, in order. No read transaction stays open between pages, so writers are never held up.

        Raises:
            LedgerError: when one is not what was written, or one is missing.
        """
        while True:
            with self._guard:
                rows = self._select(
                    f"SELECT seq, time, kind, body, {self._seal} FROM events WHERE seq > ? ORDER BY seq LIMIT ?",
                    (after, _PAGE),
                )
            for seq, when, kind, body, seal in rows:
                if seq != after + 1 or seal not in (None, event_seal(seq, when, kind, body)):
                    raise damaged(
                        SweepPaths(self.root).ledger,
                        f"event {after + 1} is {'not what was written' if seq == after + 1 else 'missing'}",
                    )
                yield Event(kind, json.loads(body), seq, when)
                after = seq
            if len(rows) < _PAGE:
                return

    def items(self, owner: str, resource: int, name: str, split: str) -> StoredItems | None:
        """The item scores behind a score, or None.

        Raises:
            LedgerError: when they are not what was written.
        """
        with self._guard:
            rows = self._select(
                f"SELECT s.hash, s.body, i.scores, {'i.seal' if self._seal == 'seal' else 'NULL'} FROM items i JOIN item_sets s ON s.hash = i.item_set"
                " WHERE i.owner = ? AND i.resource = ? AND i.name = ? AND i.split = ?",
                (owner, resource, name, split),
            )
        if not rows:
            self._examine()
            return None
        key, body, scores, seal = rows[0]
        try:
            ids, weights, groups = json.loads(body)
            item_set = ItemSet(tuple(ids), _tuple(weights), _tuple(groups))
            sound = item_set.hash == key
        except (ValueError, TypeError):
            sound = False
        if not sound or seal not in (None, items_seal(owner, resource, name, split, key, scores)):
            raise damaged(
                SweepPaths(self.root).ledger, f"the item scores of {owner} at {resource} are not what was written"
            )
        return StoredItems(item_set, np.frombuffer(scores, dtype="<f4").astype(np.float32))

    def _examine(self) -> None:
        """Look through the file once, before it is believed that something was never written: a damaged key is not found.

        Raises:
            LedgerError: when something is not what was written.
        """
        if self._examined or self._seal == "NULL":
            return
        with self._guard:
            [(sound,)] = self._select("PRAGMA quick_check(1)")
            rows = self._select("SELECT owner, resource, name, split, item_set, scores, seal FROM items")
        if sound != "ok" or any(row[-1] not in (None, items_seal(*row[:-1])) for row in rows):
            raise damaged(SweepPaths(self.root).ledger, "item scores are not what was written")
        self._examined = True

    def _select(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        try:
            return self._database.execute(query, values).fetchall()
        except DAMAGE as error:
            if str(error).startswith("no such table"):  # its driver has made the file and not yet the tables
                raise LedgerBegun(f"the sweep in {self.root} is just beginning; ask again in a moment") from None
            raise damaged(SweepPaths(self.root).ledger, str(error)) from error

    def ship(self, force: bool = False) -> None:
        """Write the next segment when it is due: 100 events wait, or the oldest for 2 s. `force` writes what there is."""
        if self._held is None or self._seq == self._shipped:
            return
        waited = time.monotonic() - self._shipped_at
        if not force and self._seq - self._shipped < SHIP_EVENTS and waited < SHIP_SECONDS:
            return
        with self._guard:
            self._segments.write(SegmentSource(self._database, self._shipped, self._seq))
            self._shipped = self._seq
            self._shipped_at = time.monotonic()

    def close(self) -> None:
        """Ship what is left, give the lock back."""
        self.ship(force=True)
        self.drop()

    def drop(self) -> None:
        """Let go without shipping, as a killed driver does; what was appended is durable all the same."""
        self._database.close()
        if self._held is not None:
            self._held.release()
            self._held = None

    def _rows(self, items: Sequence[Items], seq: int) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        sets: dict[str, tuple[Any, ...]] = {}
        values: list[tuple[Any, ...]] = []
        for entry in items:
            score = entry.score
            if score.items is None or score.item_set is None:
                continue
            key = score.item_set.hash
            if key not in self._known_sets:
                body = [score.item_set.ids, score.item_set.weights, score.item_set.groups]
                sets[key] = (key, seq, _dumps(body))
            blob = np.ascontiguousarray(score.items, dtype="<f4").tobytes()
            named = (entry.owner, entry.resource, score.name, score.split)
            values.append((*named, seq, key, blob, items_seal(*named, key, blob)))
        return list(sets.values()), values


def number(value: float) -> float | str | None:
    """A float as events hold it: NaN is null, infinities are text (`inf`, `-inf`)."""
    if math.isfinite(value):
        return float(value)
    return None if math.isnan(value) else ("inf" if value > 0 else "-inf")


def _restore(segments: Segments, database: sqlite3.Connection, paths: SweepPaths) -> None:
    try:
        restore(segments, database)
    except SegmentsDamaged as error:
        database.close()
        raise LedgerError(f"{paths.segments}: {error}") from error
    except DAMAGE as error:
        database.close()
        raise trouble(paths.ledger, error) from error


def _take(paths: SweepPaths) -> DriverLock:
    try:
        return DriverLock.take(paths.lock)
    except OSError as error:
        raise unwritable(paths.lock, error.strerror or str(error)) from error
    except LockHeld as held:
        raise LedgerError(
            f"sweep {paths.name} is driven by pid {held.holder.get('pid')} on {held.holder.get('host')} since "
            f"{held.holder.get('started')}: wait for it, or `stockpot stop {paths.name}`"
        ) from held


def _row(seq: int, time: float, kind: str, body: str) -> tuple[Any, ...]:
    return seq, time, kind, body, event_seal(seq, time, kind, body)


def _dumps(body: Any) -> str:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)
