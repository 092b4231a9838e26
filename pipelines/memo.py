"""The memo: every model call is content-addressed and computed once, across trials, sweeps and restarts.

Key = SHA-256 of the canonical JSON of everything the answer depends on. Value = bytes (safetensors or JSON) with a
checksum and what it cost the first time. This module has the contract and the local store (SQLite, one writer).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

_log = logging.getLogger(__name__)

CLAIM_SECONDS = 300.0


@dataclass(frozen=True)
class Call:
    """Everything an answer depends on.

    Attributes:
        kind: `generate`, `token_losses`, `embed`, `rerank`, `judge`, ...
        function: version of our code that computes it; raise it when the answer changes.
        model: content hash of weights and configuration, adapter included.
        tokenizer: content hash of the tokenizer and chat template.
        dtype: `float32`, `bfloat16`.
        input: exact input, JSON.
        parameters: sampling and other settings, JSON.
        seed: of a sampled answer; None for a deterministic one.
    """

    kind: str
    function: int
    model: str
    tokenizer: str
    dtype: str
    input: Any
    parameters: Mapping[str, Any]
    seed: int | None = None

    @property
    def key(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all fields."""
        body = json.dumps(self.__dict__, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(body.encode()).hexdigest()


@dataclass(frozen=True)
class Cost:
    """What an answer cost when it was computed."""

    seconds: float = 0.0
    tokens: int = 0
    price: float = 0.0


@dataclass(frozen=True)
class Unanswered:
    """No answer to one call, for good and not for want of trying; it is counted, and never stored.

    Attributes:
        reason: for people; no key and no secret in it.
    """

    reason: str


@dataclass(frozen=True)
class Claim:
    """Answer to `claim` for one key.

    `hit`: value and cost are there. `yours`: compute it, then `fulfil` or `release`. `wait`: somebody else computes it;
    ask again.
    """

    state: Literal["hit", "yours", "wait"]
    value: bytes | None = None
    cost: Cost | None = None


@dataclass(frozen=True)
class MemoStats:
    """Counters since the store was opened, and what lies in it."""

    hits: int
    misses: int
    waits: int
    corrupt: int
    entries: int
    bytes: int
    saved: Cost


class Memo(Protocol):
    """One writer; claims expire, so a dead claimer blocks nobody."""

    def claim(self, keys: Sequence[str], owner: str) -> list[Claim]:
        """For each key: the stored value, or the right to compute it, or the word to wait."""
        ...

    def fulfil(self, key: str, owner: str, value: bytes, cost: Cost, kind: str = "") -> None:
        """Store a computed value. The first value of a key stays, so that everybody reads the same one."""
        ...

    def release(self, key: str, owner: str) -> None:
        """Give a claim back without a value."""
        ...

    def stats(self) -> MemoStats:
        """Counters."""
        ...


class LocalMemo:
    """The memo of one machine: entries in SQLite, claims in memory.

    Threads share one object. Several processes may open the same folder: they share entries, and at worst compute a key
    twice at the same moment. Storing never fails a caller: an entry that is not what was written is a miss with a
    warning and is replaced; a database that can't be read is set aside and begun anew. A kill -9 loses nothing that
    `fulfil` returned from.

    Args:
        folder: where the database lies; made when it is not there.
        claim_seconds: a claim older than this is anybody's; claiming again renews it.
        clock: monotonic seconds.

    Example:
        >>> with LocalMemo("runs/.memo") as memo:
        ...     [claim] = memo.claim([call.key], "me")
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        claim_seconds: float = CLAIM_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(folder) / "memo.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._claim_seconds = claim_seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._claims: dict[str, tuple[str, float]] = {}
        self._stats = MemoStats(0, 0, 0, 0, 0, 0, Cost())
        try:
            self._db = self._connect()
        except sqlite3.DatabaseError as error:
            if not _corrupt(error):
                raise
            self._set_aside(error)

    def claim(self, keys: Sequence[str], owner: str) -> list[Claim]:
        """See `Memo`; a key that stands twice in `keys` gets one answer and is counted once."""
        with self._lock:
            found = self._read(list(dict.fromkeys(keys)))
            now = self._clock()
            answers = {key: self._answer(key, owner, found.get(key), now) for key in dict.fromkeys(keys)}
            for answer in answers.values():
                self._count(answer)
            return [answers[key] for key in keys]

    def fulfil(self, key: str, owner: str, value: bytes, cost: Cost, kind: str = "") -> None:
        """See `Memo`; a claim that has gone to somebody else meanwhile does not matter."""
        row = (key, value, _checksum(key, value, cost), kind, cost.seconds, cost.tokens, cost.price, time.time())
        with self._lock:
            self._execute(_INSERT, row)
            self._claims.pop(key, None)

    def release(self, key: str, owner: str) -> None:
        """See `Memo`; only the owner's own claim goes."""
        with self._lock:
            if self._claims.get(key, ("", 0.0))[0] == owner:
                del self._claims[key]

    def stats(self) -> MemoStats:
        """See `Memo`."""
        with self._lock:
            [(entries, size)] = self._execute(_SIZE) or [(0, 0)]
            return replace(self._stats, entries=entries, bytes=size)

    def close(self) -> None:
        """Close the database; claims are forgotten."""
        with self._lock:
            self._db.close()
            self._claims.clear()

    def __enter__(self) -> LocalMemo:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=30, check_same_thread=False, isolation_level=None)
        try:
            db.text_factory = bytes
            for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", _TABLE, f"{_SELECT} ('')"):
                _rows(db, statement)
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Move a database that can't be read out of the way and begin a new one."""
        aside = self.path.with_name(f"{self.path.name}.corrupt-{time.time_ns()}")
        _log.warning("the memo %s can't be read (%s); it is kept as %s and begun anew", self.path, error, aside.name)
        self._stats = replace(self._stats, corrupt=self._stats.corrupt + 1)
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.replace(f"{aside}{suffix}")
        self._db = self._connect()

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Rows; none, with a warning, when the database is locked, full or broken."""
        try:
            return _rows(self._db, statement, values)
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as error:
            if _corrupt(error):
                self._db.close()
                self._reopen(error)
            else:
                _log.warning("the memo %s goes without an answer: %s", self.path, error)
            return []

    def _reopen(self, error: sqlite3.DatabaseError) -> None:
        """Open what lies there now if it is whole (another process has mended it), begin anew otherwise."""
        try:
            self._db = self._connect()
            if self._whole():
                return
            self._db.close()
        except sqlite3.DatabaseError as found:
            error = found
        self._set_aside(error)

    def _whole(self) -> bool:
        return _rows(self._db, "PRAGMA integrity_check(1)") == [(b"ok",)]

    def _drop(self, rows: Sequence[int]) -> None:
        """Delete corrupt entries; where the damage goes beyond them, the database is begun anew."""
        self._stats = replace(self._stats, corrupt=self._stats.corrupt + len(rows))
        for row in rows:
            self._execute("DELETE FROM entries WHERE rowid = ?", (row,))
        if self._execute("PRAGMA integrity_check(1)") not in ([], [(b"ok",)]):
            self._db.close()
            self._set_aside(sqlite3.DatabaseError("its index is broken"))

    def _read(self, keys: Sequence[str]) -> dict[str, tuple[bytes, Cost]]:
        """What is stored whole; what is not whole is deleted, to be computed again."""
        found: dict[str, tuple[bytes, Cost]] = {}
        corrupt: list[int] = []
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            query = f"{_SELECT} ({','.join('?' * len(part))})"
            for rowid, *row in self._execute(query, part):
                key, entry = _decode(row)
                if entry is None:
                    _log.warning("the memo %s has a corrupt entry, computed again: %s", self.path, key)
                    corrupt.append(rowid)
                else:
                    found[key] = entry
        if corrupt:
            self._drop(corrupt)
        return found

    def _answer(self, key: str, owner: str, entry: tuple[bytes, Cost] | None, now: float) -> Claim:
        if entry is not None:
            self._claims.pop(key, None)
            return Claim("hit", *entry)
        holder, expires = self._claims.get(key, (owner, now))
        if holder != owner and now < expires:
            return Claim("wait")
        self._claims[key] = (owner, now + self._claim_seconds)
        return Claim("yours")

    def _count(self, claim: Claim) -> None:
        s = self._stats
        if claim.cost is not None:
            a, b = s.saved, claim.cost
            saved = Cost(a.seconds + b.seconds, a.tokens + b.tokens, a.price + b.price)
            self._stats = replace(s, hits=s.hits + 1, saved=saved)
        elif claim.state == "yours":
            self._stats = replace(s, misses=s.misses + 1)
        else:
            self._stats = replace(s, waits=s.waits + 1)


def open_memo(folder: str | os.PathLike[str]) -> LocalMemo:
    """The local memo in `folder` (`SweepPaths.memo`). `functools.partial(open_memo, folder)` pickles, for `Services`."""
    return LocalMemo(folder)


def compute(
    memo: Memo,
    calls: Sequence[Call],
    compute_missing: Callable[[list[Call]], Sequence[tuple[bytes, Cost]]],
    owner: str,
    *,
    poll_seconds: float = 0.05,
) -> list[bytes]:
    """Answers to the calls in order, computing in one batch what nobody has and waiting for what others compute.

    What is claimed is computed before anything is waited for, so that two callers never wait for each other; a claim
    whose owner died expires and is computed here.

    Args:
        memo: the store.
        calls: what is asked; equal ones are computed once.
        compute_missing: one (value, cost) a call, in order.
        owner: unique among those that run at the same time (worker and thread).
        poll_seconds: pause between questions while others compute.

    Raises:
        ValueError: if `compute_missing` answers with another number of values than it was asked for.
    """
    waiting = {call.key: call for call in calls}
    values: dict[str, bytes] = {}
    while waiting:
        keys = list(waiting)
        claims = dict(zip(keys, memo.claim(keys, owner), strict=True))
        values.update({key: claim.value for key, claim in claims.items() if claim.value is not None})
        mine = [key for key, claim in claims.items() if claim.state == "yours"]
        if mine:
            values.update(_compute_claimed(memo, {key: waiting[key] for key in mine}, compute_missing, owner))
        waiting = {key: call for key, call in waiting.items() if key not in values}
        if waiting and not mine:
            time.sleep(poll_seconds)
    return [values[call.key] for call in calls]


def _compute_claimed(
    memo: Memo,
    calls: Mapping[str, Call],
    compute_missing: Callable[[list[Call]], Sequence[tuple[bytes, Cost]]],
    owner: str,
) -> dict[str, bytes]:
    """Compute and store what was claimed; claims that got no value, for whatever reason, are given back."""
    open_claims = set(calls)
    try:
        answers = compute_missing(list(calls.values()))
        if len(answers) != len(calls):
            raise ValueError(f"compute_missing must answer every call, but got {len(answers)} for {len(calls)}")
        for (key, call), (value, cost) in zip(calls.items(), answers, strict=True):
            memo.fulfil(key, owner, value, cost, call.kind)
            open_claims.discard(key)
    finally:
        for key in open_claims:
            memo.release(key, owner)
    return {key: value for key, (value, _) in zip(calls, answers, strict=True)}


_TABLE = """CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL, kind TEXT NOT NULL,
    seconds REAL NOT NULL, tokens INTEGER NOT NULL, price REAL NOT NULL, created REAL NOT NULL)"""
_INSERT = "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_SELECT = "SELECT rowid, key, value, checksum, seconds, tokens, price FROM entries WHERE key IN"
_SIZE = "SELECT count(*), coalesce(sum(length(value)), 0) FROM entries"
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


def _checksum(key: str, value: bytes, cost: Cost) -> bytes:
    head = json.dumps([key, float(cost.seconds), int(cost.tokens), float(cost.price)]).encode()
    return hashlib.sha256(head + b"\n" + value).digest()


def _decode(row: Sequence[Any]) -> tuple[str, tuple[bytes, Cost] | None]:
    """(key, entry) of a stored row; the entry is None when the row is not what was written."""
    key, value, checksum, seconds, tokens, price = row
    text = key.decode(errors="replace") if isinstance(key, bytes) else str(key)
    numbers = isinstance(seconds, float) and isinstance(tokens, int) and isinstance(price, float)
    if not numbers or not isinstance(value, bytes):
        return text, None
    cost = Cost(seconds, tokens, price)
    return text, ((value, cost) if _checksum(text, value, cost) == checksum else None)


def _rows(db: sqlite3.Connection, statement: str, values: Sequence[Any] = ()) -> list[Any]:
    try:
        return db.execute(statement, values).fetchall()
    except UnicodeDecodeError as error:  # SQLite's message quotes the damaged schema
        raise sqlite3.DatabaseError("its schema is broken") from error


def _corrupt(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is no whole database of ours, rather than locked, full or out of reach."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _OUT_OF_REACH
