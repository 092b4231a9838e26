"""The memo: every model call is content-addressed and computed once, across trials, sweeps and restarts.

Key = SHA-256 of the canonical JSON of everything the answer depends on. Value = bytes (safetensors or JSON) with a
checksum and what it cost the first time. This module has the contract and the local store (SQLite, one writer);
`pipelines.computing` asks it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from pipelines.folder_lock import FolderLock
from pipelines.mending import MendingDatabase

_log = logging.getLogger(__name__)

CLAIM_SECONDS = 300.0
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


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
        return hashlib.sha256(_CANONICAL.encode(self.__dict__).encode()).hexdigest()


@dataclass(frozen=True)
class Cost:
    """What an answer cost when it was computed."""

    seconds: float = 0.0
    tokens: int = 0
    price: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.tokens + other.tokens, self.price + other.price)


@dataclass(frozen=True)
class Unanswered:
    """No answer to one call, for good and not for want of trying; it is counted, and never stored.

    Attributes:
        reason: for people; no key and no secret in it.
    """

    reason: str


@dataclass(frozen=True)
class Entry:
    """A computed value as it is stored: under the key of its call, with what it cost, and the call's kind for counting."""

    key: str
    value: bytes
    cost: Cost
    kind: str = ""


@dataclass(frozen=True)
class Claim:
    """Answer to `claim` for one key.

    `hit`: value and cost are there. `yours`: compute it, then `fulfil` or `release`. `wait`: somebody else computes it;
    ask again. `later`: nobody does, but you have claimed as many as you wanted; ask again.
    """

    state: Literal["hit", "yours", "wait", "later"]
    value: bytes | None = None
    cost: Cost | None = None


@dataclass(frozen=True)
class MemoStats:
    """Counters since the store was opened, and what lies in it.

    Attributes:
        hits: keys that were answered with a value.
        misses: keys that a caller was told to compute.
        waits: keys that a caller was told to wait for.
        corrupt: entries and databases that were not what had been written.
        repeated: values that were computed although another caller had stored one meanwhile.
        entries: in the store.
        bytes: of their values.
        saved: what the hits cost when they were computed.
    """

    hits: int = 0
    misses: int = 0
    waits: int = 0
    corrupt: int = 0
    repeated: int = 0
    entries: int = 0
    bytes: int = 0
    saved: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class KindStats:
    """What lies in a store of one kind of call, and what has come of it since the store was made.

    Attributes:
        entries: values stored.
        bytes: of the values.
        cost: of computing what is stored.
        hits: times a value was given out.
        saved: what those cost when they were computed.
        repeated: values computed although another one was stored meanwhile.
        oldest: seconds since the epoch; 0 where there are none.
    """

    entries: int = 0
    bytes: int = 0
    cost: Cost = field(default_factory=Cost)
    hits: int = 0
    saved: Cost = field(default_factory=Cost)
    repeated: int = 0
    oldest: float = 0.0


class Memo(Protocol):
    """One writer; claims expire, so a dead claimer blocks nobody. Owners are unique among those that run at once."""

    def claim(self, keys: Sequence[str], owner: str, most: int | None = None) -> list[Claim]:
        """For each key the stored value, or the right to compute it (for `most` keys at most), or the word to wait."""
        ...

    def renew(self, keys: Sequence[str], owner: str) -> None:
        """Say that the owner is still computing what it has claimed."""
        ...

    def fulfil(self, entries: Sequence[Entry], owner: str) -> None:
        """Store computed values. The first value of a key stays, so that everybody reads the same one."""
        ...

    def release(self, keys: Sequence[str], owner: str) -> None:
        """Give claims back without a value."""
        ...

    def stats(self) -> MemoStats:
        """Counters."""
        ...


class LocalMemo:
    """The memo of one machine: entries in SQLite, claims in memory.

    Threads share one object. Several processes may open the same folder: they share entries, and at worst compute a key
    twice at the same moment. Storing never fails a caller: an entry that is not what was written is a miss with a
    warning and is replaced; a database that can't be read is set aside and begun anew. A kill -9 loses nothing that
    `fulfil` returned from. Whoever has it open holds a lock with the others (`pipelines.upkeep` prunes without them).

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
        self.path = Path(folder) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._claim_seconds = claim_seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._shared = FolderLock(self.path.parent)
        self._shared.take(alone=False)
        self._claims: dict[str, tuple[str, float]] = {}
        self._stats = MemoStats()
        self._db = MendingDatabase(self.path, "memo", OPENING)

    def claim(self, keys: Sequence[str], owner: str, most: int | None = None) -> list[Claim]:
        """See `Memo`; a key that stands twice in `keys` gets one answer and is counted once."""
        with self._lock:
            distinct = list(dict.fromkeys(keys))
            found = self._read(distinct)
            now = self._clock()
            answers: dict[str, Claim] = {}
            free = len(distinct) if most is None else most
            for key in distinct:
                answers[key] = self._answer(key, owner, found.get(key), now, free > 0)
                free -= answers[key].state == "yours"
            states = Counter(answer.state for answer in answers.values())
            counted = self._stats
            self._stats = replace(
                counted,
                hits=counted.hits + states["hit"],
                misses=counted.misses + states["yours"],
                waits=counted.waits + states["wait"],
                saved=counted.saved + self._keep_count(list(found.values())),
            )
            return [answers[key] for key in keys]

    def renew(self, keys: Sequence[str], owner: str) -> None:
        """See `Memo`."""
        with self._lock:
            until = self._clock() + self._claim_seconds
            for key in keys:
                if self._claims.get(key, ("", 0.0))[0] == owner:
                    self._claims[key] = (owner, until)

    def fulfil(self, entries: Sequence[Entry], owner: str) -> None:
        """See `Memo`; a claim that has gone to somebody else meanwhile does not matter."""
        now = time.time()
        rows = [
            (
                e.key,
                e.value,
                _checksum(e.key, e.value, e.cost),
                e.kind,
                e.cost.seconds,
                e.cost.tokens,
                e.cost.price,
                now,
            )
            for e in entries
        ]
        with self._lock:
            written = self._db.write(_INSERT, rows)
            if written is not None and written < len(rows):
                self._stats = replace(self._stats, repeated=self._stats.repeated + len(rows) - written)
                self._db.write(_USE, [(entries[0].kind, 0, 0.0, 0, 0.0, len(rows) - written)])
            for entry in entries:
                self._claims.pop(entry.key, None)

    def release(self, keys: Sequence[str], owner: str) -> None:
        """See `Memo`; only the owner's own claims go."""
        with self._lock:
            for key in keys:
                if self._claims.get(key, ("", 0.0))[0] == owner:
                    del self._claims[key]

    def stats(self) -> MemoStats:
        """See `Memo`."""
        with self._lock:
            [(entries, size)] = self._db.execute(_SIZE) or [(0, 0)]
            corrupt = self._stats.corrupt + self._db.corrupt
            return replace(self._stats, entries=entries, bytes=size, corrupt=corrupt)

    def kinds(self) -> dict[str, KindStats]:
        """What lies in it, by kind."""
        with self._lock:
            found: dict[str, KindStats] = {}
            for kind, entries, size, seconds, tokens, price, oldest in self._db.execute(_KINDS):
                found[_text(kind)] = KindStats(entries, size, Cost(seconds, tokens, price), oldest=oldest)
            for kind, hits, seconds, tokens, price, repeated in self._db.execute(_USES):
                before = found.get(_text(kind), KindStats())
                saved = Cost(seconds, tokens, price)
                found[_text(kind)] = replace(before, hits=hits, saved=saved, repeated=repeated)
            return dict(sorted(found.items()))

    def close(self) -> None:
        """Close the database; claims are forgotten."""
        with self._lock:
            self._db.close()
            self._claims.clear()
            self._shared.drop()

    def __enter__(self) -> LocalMemo:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self, keys: Sequence[str]) -> dict[str, Entry]:
        """What is stored whole; what is not whole is deleted, to be computed again."""
        found: dict[str, Entry] = {}
        corrupt: list[tuple[int]] = []
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            query = f"{_SELECT} ({','.join('?' * len(part))})"
            for rowid, *row in self._db.execute(query, part):
                key, entry = _decode(row)
                if entry is None:
                    _log.warning("the memo %s has a corrupt entry, computed again: %s", self.path, key)
                    corrupt.append((rowid,))
                else:
                    found[key] = entry
        if corrupt:
            self._stats = replace(self._stats, corrupt=self._stats.corrupt + len(corrupt))
            self._db.write("DELETE FROM entries WHERE rowid = ?", corrupt)
            self._db.check()
        return found

    def _answer(self, key: str, owner: str, entry: Entry | None, now: float, more: bool) -> Claim:
        if entry is not None:
            self._claims.pop(key, None)
            return Claim("hit", entry.value, entry.cost)
        holder, expires = self._claims.get(key, (owner, now))
        if holder != owner and now < expires:
            return Claim("wait")
        if not more:
            return Claim("later")
        self._claims[key] = (owner, now + self._claim_seconds)
        return Claim("yours")

    def _keep_count(self, given: Sequence[Entry]) -> Cost:
        """Add what was given out to the counters that stay; what it cost in all."""
        rows = []
        for kind in {entry.kind for entry in given}:
            costs = [entry.cost for entry in given if entry.kind == kind]
            rows.append((kind, len(costs), *total(costs), 0))
        if rows:
            self._db.write(_USE, rows)
        return Cost(*total([entry.cost for entry in given]))


def total(costs: Sequence[Cost]) -> tuple[float, int, float]:
    """Seconds, tokens and price of all."""
    return sum(c.seconds for c in costs), sum(c.tokens for c in costs), sum(c.price for c in costs)


def open_memo(folder: str | os.PathLike[str]) -> LocalMemo:
    """The local memo in `folder` (`SweepPaths.memo`). `functools.partial(open_memo, folder)` pickles, for `Services`."""
    return LocalMemo(folder)


FILE = "memo.sqlite"
OPENING = (
    """CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL, kind TEXT NOT NULL,
    seconds REAL NOT NULL, tokens INTEGER NOT NULL, price REAL NOT NULL, created REAL NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS uses (
    kind TEXT PRIMARY KEY, hits INTEGER NOT NULL, seconds REAL NOT NULL, tokens INTEGER NOT NULL, price REAL NOT NULL,
    repeated INTEGER NOT NULL)""",
    "SELECT rowid, key, value, checksum, kind, seconds, tokens, price FROM entries WHERE key IN ('')",
)
_SELECT = "SELECT rowid, key, value, checksum, kind, seconds, tokens, price FROM entries WHERE key IN"
_INSERT = "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_USE = """INSERT INTO uses VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (kind) DO UPDATE SET hits = hits + excluded.hits,
    seconds = seconds + excluded.seconds, tokens = tokens + excluded.tokens, price = price + excluded.price,
    repeated = repeated + excluded.repeated"""
_SIZE = "SELECT count(*), coalesce(sum(length(value)), 0) FROM entries"
_KINDS = """SELECT kind, count(*), sum(length(value)), sum(seconds), sum(tokens), sum(price), min(created)
    FROM entries GROUP BY kind"""
_USES = "SELECT kind, hits, seconds, tokens, price, repeated FROM uses"


def _checksum(key: str, value: bytes, cost: Cost) -> bytes:
    head = json.dumps([key, float(cost.seconds), int(cost.tokens), float(cost.price)]).encode()
    return hashlib.sha256(head + b"\n" + value).digest()


def _decode(row: Sequence[Any]) -> tuple[str, Entry | None]:
    """(key, entry) of a stored row; the entry is None when the row is not what was written."""
    key, value, checksum, kind, seconds, tokens, price = row
    text = _text(key)
    numbers = isinstance(seconds, float) and isinstance(tokens, int) and isinstance(price, float)
    if not numbers or not isinstance(value, bytes):
        return text, None
    cost = Cost(seconds, tokens, price)
    return text, (Entry(text, value, cost, _text(kind)) if _checksum(text, value, cost) == checksum else None)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
