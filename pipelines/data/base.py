"""What every format gives: records in file order, and a record by its place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.stage import UserError

Stamp = tuple[str, int, int]
"""A file as it was: path, time of its last change in nanoseconds, size in bytes."""


class BadRow(ValueError):
    """A row that can't be used; the message says why, without its place."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row as the file holds it.

    Attributes:
        place: finds it again: its first byte, or its number from 0.
        line: for people: the line it begins in, or its number, from 1.
        value: its keys and values, or why it can't be read.
    """

    place: int
    line: int
    value: dict[str, Any] | BadRow


class Reader(Protocol):
    """One file, or one split of a hub data set."""

    path: str

    def columns(self) -> tuple[str, ...] | None:
        """Names that every row has; None where each row names its own."""
        ...

    def records(self) -> Iterator[Record]:
        """Every record in order; blank lines are none.

        Raises:
            UserError: if the file as a whole can't be read.
        """
        ...

    def at(self, places: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The sound records at these places, read anew.

        Raises:
            UserError: if the file has changed since it was opened.
        """
        ...

    def where(self, line: int) -> str:
        """A record's place for people: `data/train.csv, line 7`."""
        ...


def stamp_of(path: str) -> Stamp:
    """What a file looks like now, without reading it.

    Raises:
        UserError: if it is not there.
    """
    try:
        stat = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: can't be read ({reason}); `path` is relative to the sweep file") from None
    return (path, stat.st_mtime_ns, stat.st_size)


def refuse_changed(stamp: Stamp) -> None:
    """Compare a file with what it was.

    Raises:
        UserError: if it has changed.
    """
    if stamp_of(stamp[0]) != stamp:
        raise UserError(
            f"{stamp[0]}: the file was changed while it was in use, so rows would not be those that were split; put the "
            "old content back, or submit a new sweep"
        )


def refuse_twice(path: str, names: Sequence[str]) -> None:
    """Check that no column stands twice.

    Raises:
        UserError: naming those that do.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: the columns {', '.join(map(repr, twice))} stand twice; rename one of each")
