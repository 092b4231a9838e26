"""Immutable numbered segments of a ledger: `<sweep>/ledger/NNNNNN.jsonl`, written aside and moved.

The first line is a header with the range of event numbers; then come item sets, item scores and events, one a line, and last
the SHA-256 of all lines before. All segments together rebuild the live file.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.seals import event_seal, items_seal, text_seal

FORMAT = 2
UNSEALED = 1
"""An older format, without the last line."""


FOLDER = "ledger"
"""Where segments lie, below a sweep's folder or URL."""


class SegmentsDamaged(RuntimeError):
    """A segment is unreadable or one is missing between others; says which."""


@dataclass(frozen=True)
class SegmentSource:
    """Events with after < seq <= until, and the items that belong to them, read from `database`."""

    database: sqlite3.Connection
    after: int
    until: int

    def lines(self) -> Iterator[dict[str, Any]]:
        """What the segment holds, below its header."""
        bounds = (self.after, self.until)
        for key, seq, body in self.database.execute(
            "SELECT hash, seq, body FROM item_sets WHERE seq > ? AND seq <= ? ORDER BY seq, hash", bounds
        ):
            yield {"item_set": key, "seq": seq, "body": json.loads(body)}
        for owner, resource, name, split, seq, item_set, scores in self.database.execute(
            "SELECT owner, resource, name, split, seq, item_set, scores FROM items WHERE seq > ? AND seq <= ? ORDER BY seq, owner, resource, name, split",
            bounds,
        ):
            yield {
                "items": [owner, resource, name, split],
                "seq": seq,
                "item_set": item_set,
                "scores": base64.b64encode(scores).decode(),
            }
        for seq, when, kind, body in self.database.execute(
            "SELECT seq, time, kind, body FROM events WHERE seq > ? AND seq <= ? ORDER BY seq", bounds
        ):
            yield {"event": kind, "seq": seq, "time": when, "body": json.loads(body)}


class Segments:
    """The folder of segments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._next: int | None = None

    def numbers(self) -> list[int]:
        """Numbers of the segments there are, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.stem) for path in self.folder.glob("*.jsonl") if path.stem.isdigit())

    @property
    def last(self) -> int:
        """Number of the last event in the last segment, 0 without one."""
        numbers = self.numbers()
        return int(self.header(numbers[-1])["until"]) if numbers else 0

    def path(self, number: int) -> Path:
        """File of a segment."""
        return self.folder / f"{number:06d}.jsonl"

    def after(self, number: int) -> Iterator[int]:
        """Numbers of the segments that follow one, as far as there are; without a look at all the others."""
        while self.path(number + 1).exists():
            number += 1
            yield number

    def header(self, number: int) -> dict[str, Any]:
        """First line of a segment: {format, after, until}.

        Raises:
            SegmentsDamaged: if it can't be read.
        """
        try:
            with self.path(number).open(encoding="utf-8") as file:
                header = json.loads(file.readline())
            if header["format"] not in (FORMAT, UNSEALED):
                raise SegmentsDamaged(
                    f"{self.path(number).name} has format {header['format']}, this version reads {FORMAT}"
                )
            return {"after": int(header["after"]), "until": int(header["until"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SegmentsDamaged(f"{self.path(number).name} can't be read: {error}") from error

    def write(self, source: SegmentSource) -> Path:
        """Write the next segment, durable and whole once it has its name."""
        if self._next is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._next = max(self.numbers(), default=0) + 1
        path = self.path(self._next)
        aside = path.with_name(f".{path.name}.tmp")
        head = {"format": FORMAT, "after": source.after, "until": source.until}
        text = "".join(_dumps(line) + "\n" for line in (head, *source.lines()))
        with aside.open("w", encoding="utf-8") as file:
            file.write(text + _dumps({"sha256": text_seal(text)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        self._next += 1
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return path

    def lines(self, number: int) -> Iterator[dict[str, Any]]:
        """What a segment holds, below its header.

        Raises:
            SegmentsDamaged: if a line can't be read.
        """
        name = self.path(number).name
        try:
            data = self.path(number).read_bytes()
        except OSError as error:
            raise SegmentsDamaged(f"{name} can't be read: {error}") from error
        yield from segment_lines(name, data)


def segment_name(number: int) -> str:
    """A segment's name below its sweep's folder or URL."""
    return f"{FOLDER}/{number:06d}.jsonl"


def segment_number(name: str) -> int:
    """Number of a segment by its name below its sweep's folder or URL; 0 for another file's."""
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return int(stem) if folder == FOLDER and suffix == "jsonl" and stem.isdecimal() and stem.isascii() else 0


def segment_lines(name: str, data: bytes) -> list[dict[str, Any]]:
    """What a segment's bytes hold, below its header.

    Raises:
        SegmentsDamaged: if they are not what was written.
    """
    try:
        text = data.decode("utf-8")
        found = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
        sealed = found[0]["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise SegmentsDamaged(f"{name} can't be read: {error}") from error
    if sealed:
        body, _, _ = text[:-1].rpartition("\n")
        if found.pop() != {"sha256": text_seal(body + "\n")}:
            raise SegmentsDamaged(f"{name} is not what was written")
    return found[1:]


def restore(segments: Segments, database: sqlite3.Connection) -> int:
    """Put events that only the segments have into `database`, in one transaction; the number of events put in.

    Raises:
        SegmentsDamaged: if a segment is unreadable or one is missing.
    """
    have = database.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0]
    missing = [number for number in segments.numbers() if segments.header(number)["until"] > have]
    if not missing:
        return 0
    database.execute("BEGIN IMMEDIATE")
    try:
        reached, put = have, 0
        for number in missing:
            header = segments.header(number)
            if header["after"] > reached:
                raise SegmentsDamaged(
                    f"events {reached + 1} to {header['after']} are missing before {segments.path(number).name}"
                )
            put += _insert(segments.lines(number), database, reached)
            reached = header["until"]
            if database.execute("SELECT max(seq) FROM events").fetchone()[0] != reached:
                raise SegmentsDamaged(f"{segments.path(number).name} does not hold events up to {reached}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise
    return put


def _insert(lines: Iterator[dict[str, Any]], database: sqlite3.Connection, after: int) -> int:
    put = 0
    for line in lines:
        seq = line["seq"]
        if seq <= after:
            continue
        if "event" in line:
            event = (seq, float(line["time"]), line["event"], _dumps(line["body"]))
            database.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", (*event, event_seal(*event)))
            put += 1
        elif "items" in line:
            scores = base64.b64decode(line["scores"])
            owner, resource, name, split = line["items"]
            seal = items_seal(owner, resource, name, split, line["item_set"], scores)
            items = (owner, resource, name, split, seq, line["item_set"], scores, seal)
            database.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?)", items)
        else:
            item_set = (line["item_set"], seq, _dumps(line["body"]))
            database.execute("INSERT OR IGNORE INTO item_sets VALUES (?, ?, ?)", item_set)
    return put


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
