"""CSV and TSV: a header and records, as RFC 4180 and Excel write them; quoted fields may hold line ends.

`.tsv` is split at tabs; else the header tells whether fields are split at commas, semicolons or tabs. Every value is
text. A record with more or fewer fields than the header is a bad row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

from pipelines.data.base import BadRow, Record, refuse_changed, refuse_twice, stamp_of
from pipelines.data.text import BOM, not_utf8, opened, refuse_packed
from pipelines.stage import UserError

_FIELD_BYTES = 1 << 27
"""A longer field is a quote that was never closed."""


class CSVReader:
    """Implements `Reader`; a place is the first byte of a record.

    Example:
        >>> CSVReader("train.csv").columns()
        ('prompt', 'completion')
    """

    def __init__(self, path: str, columns: Sequence[str] | None = None, *, streaming: bool = False) -> None:
        self.path = path
        self._stamp = stamp_of(path)
        if streaming:
            refuse_packed(path)
        csv.field_size_limit(_FIELD_BYTES)
        self._delimiter, self._names, self._line = self._header()

    def columns(self) -> tuple[str, ...] | None:
        """See `Reader`."""
        return self._names

    def where(self, line: int) -> str:
        """See `Reader`."""
        return f"{self.path}, line {line}"

    def records(self) -> Iterator[Record]:
        """See `Reader`."""
        with opened(self.path, self._stamp) as file:
            lines = _Lines(file, 0, 1)
            for _ in range(self._line - 1):
                next(lines, None)
            reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            while True:
                place, line = lines.place, lines.line
                value = self._next(reader, lines)
                if value is None:
                    break
                if value:
                    yield Record(place, line, value if isinstance(value, BadRow) else self._row(value))
        refuse_changed(self._stamp)

    def at(self, places: Iterable[int]) -> Iterator[dict[str, Any]]:
        """See `Reader`."""
        with opened(self.path, self._stamp) as file:
            for place in places:
                file.seek(place)
                lines = _Lines(file, place, 1)
                value = self._next(csv.reader(lines, delimiter=self._delimiter, strict=True), lines)
                assert isinstance(value, list)
                row = self._row(value)
                assert isinstance(row, dict)
                yield row

    def _next(self, reader: Iterator[list[str]], lines: _Lines) -> list[str] | BadRow | None:
        """The next record: its fields, none for a blank line, None at the end."""
        lines.wrong = None
        try:
            fields = next(reader, None)
        except csv.Error as error:
            return BadRow(lines.wrong or _explained(str(error)))
        return fields if fields is None or lines.wrong is None else BadRow(lines.wrong)

    def _row(self, fields: list[str]) -> dict[str, Any] | BadRow:
        if len(fields) == len(self._names):
            return dict(zip(self._names, fields, strict=True))
        return BadRow(
            f"has {len(fields)} fields, but the header names {len(self._names)}; a field that holds {self._delimiter!r} "
            "must stand in quotes"
        )

    def _header(self) -> tuple[str, tuple[str, ...], int]:
        """Delimiter, names, and the line that the records begin in."""
        with opened(self.path, self._stamp) as file:
            lines = _Lines(file, 0, 1)
            first = next((text for text in lines if text.strip()), None)
            if first is None:
                raise UserError(f"{self.path}: has no rows; a header and a record a line are wanted")
            delimiter = "\t" if self.path.lower().removesuffix(".gz").endswith(".tsv") else _delimiter(first)
            before, line = lines.place - lines.last, lines.line - 1
            file.seek(before)
            lines = _Lines(file, before, line)
            names = self._next(csv.reader(lines, delimiter=delimiter, strict=True), lines)
            if not isinstance(names, list):
                raise UserError(f"{self.where(line)}: the header can't be read: {names}")
            refuse_twice(self.path, names)
            return delimiter, tuple(names), lines.line


class _Lines(Iterator[str]):
    """Lines of a file as text, with where the next one begins; bytes that are no text are kept and noted."""

    def __init__(self, file: IO[bytes], place: int, line: int) -> None:
        self._file = file
        self.place = place
        self.line = line
        self.last = 0
        self.wrong: str | None = None

    def __next__(self) -> str:
        raw = self._file.readline()
        if not raw:
            raise StopIteration
        text = raw.removeprefix(BOM) if self.place == 0 else raw
        self.place += len(raw)
        self.line += 1
        self.last = len(raw)
        if b"\0" in text:
            self.wrong = "holds a NUL byte"
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            self.wrong = not_utf8(text)
            return text.decode("utf-8", errors="surrogateescape")


def _delimiter(header: str) -> str:
    """What a header's fields are split at: the sign that stands most often outside of quotes, else a comma."""
    plain = "".join(header.split('"')[::2])
    return max(",;\t", key=plain.count)


def _explained(error: str) -> str:
    if "field larger than" in error:
        return f"a field of more than {_FIELD_BYTES >> 20} MiB; is a quote opened and never closed?"
    if "unexpected end of data" in error:
        return "a quote is opened and never closed"
    if "new-line character" in error:
        return "a carriage return without a line feed; save the file with Unix or Windows line ends"
    if "expected after" in error:
        return 'a quote inside a quoted field must be doubled: "" (' + error + ")"
    return f"not CSV ({error})"
