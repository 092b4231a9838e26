"""JSON: one object a line (JSONL), or one array of objects.

A file is an array when its first sign is `[` and its name does not end in `.jsonl` or `.ndjson`. An array is read
whole and can't be streamed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipelines.data.base import BadRow, Record, refuse_changed, stamp_of
from pipelines.data.text import BOM, not_utf8, opened, packed, refuse_packed
from pipelines.stage import UserError

_BLANKS = " \t\r\n"


class JSONReader:
    """Implements `Reader`; a place is the first byte of a line, or the number of an element.

    Example:
        >>> [record.line for record in JSONReader("train.jsonl").records()]
        [1, 2, 3]
    """

    def __init__(self, path: str, columns: Sequence[str] | None = None, *, streaming: bool = False) -> None:
        self.path = path
        self._stamp = stamp_of(path)
        if streaming:
            refuse_packed(path)
            if self._is_array():
                raise UserError(f"{path}: a JSON array can't be streamed; write one object a line (JSONL)")

    def columns(self) -> tuple[str, ...] | None:
        """See `Reader`: each object names its own keys."""
        return None

    def where(self, line: int) -> str:
        """See `Reader`."""
        return f"{self.path}, line {line}"

    def records(self) -> Iterator[Record]:
        """See `Reader`."""
        if self._is_array():
            yield from self._array()
            return
        with opened(self.path, self._stamp) as file:
            place = 0
            for line, raw in enumerate(file, 1):
                text = raw.removeprefix(BOM) if line == 1 else raw
                if text.strip():
                    yield Record(place, line, _object(text))
                place += len(raw)
        refuse_changed(self._stamp)

    def at(self, places: Iterable[int]) -> Iterator[dict[str, Any]]:
        """See `Reader`."""
        with opened(self.path, self._stamp) as file:
            for place in places:
                file.seek(place)
                value = _object(file.readline().removeprefix(BOM))
                assert isinstance(value, dict)
                yield value

    def _is_array(self) -> bool:
        plain = self.path.lower().removesuffix(".gz") if packed(self.path) else self.path.lower()
        if plain.endswith((".jsonl", ".ndjson")):
            return False
        with opened(self.path, self._stamp) as file:
            for raw in file:
                if text := raw.removeprefix(BOM).strip():
                    return text.startswith(b"[")
        return False

    def _array(self) -> Iterator[Record]:
        with opened(self.path, self._stamp) as file:
            raw = file.read().removeprefix(BOM)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise UserError(f"{self.where(line)}: {not_utf8(raw)}") from None
        decoder = json.JSONDecoder()
        line, counted = 1, 0
        place = _skip(text, text.index("[") + 1)
        for number in range(len(text)):
            if text[place : place + 1] == "]" and not number:
                return
            line, counted = line + text.count("\n", counted, place), place
            try:
                value, end = decoder.raw_decode(text, place)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self.where(line)}: not JSON ({error}), so the array ends here") from None
            yield Record(number, line, value if isinstance(value, dict) else _no_object(value))
            place = _skip(text, end)
            if text[place : place + 1] == "]":
                return
            if text[place : place + 1] != ",":
                line += text.count("\n", counted, place)
                raise UserError(f"{self.where(line)}: not JSON (a comma or the array's end is wanted)")
            place = _skip(text, place + 1)


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in _BLANKS:
        place += 1
    return place


def _object(raw: bytes) -> dict[str, Any] | BadRow:
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        return BadRow(not_utf8(raw))
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "; one JSON object a line is wanted, not an array over several lines" if text[0] in "[{" else ""
        return BadRow(f"not JSON ({error}){hint}")
    return row if isinstance(row, dict) else _no_object(row)


def _no_object(value: Any) -> BadRow:
    return BadRow(f"a {type(value).__name__}, but an object is wanted, such as " + '{"prompt": "...", ...}')
