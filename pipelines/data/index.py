"""Where every row of a data set lies and what it is known by: 48 bytes a row, as arrays. Rows are held, or read anew."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from evaluators.base import Example
from pipelines.config import DataFile
from pipelines.data import build_reader
from pipelines.data.base import BadRow, Reader
from pipelines.data.examples import Row, build_row, lacking, needed_columns, optional_columns, row_id
from pipelines.data.files import find_files, format_of, is_hub_id
from pipelines.stage import UserError

SHOWN = 5
"""Bad rows named at most."""
MOSTLY_BAD = 0.5
"""A data set with a larger share of bad rows than this is refused, whatever `on_bad_row` says."""


@dataclass(frozen=True)
class Index:
    """The sound rows of a data set, in file order; all arrays have the shape `(rows,)`.

    Attributes:
        data: what was read.
        readers: the files.
        reader: which of them a row is in.
        place: where in it, as its reader counts.
        line: the same for people.
        prompt: hash of the prompt.
        group: hash of the unit that splits and errors go by.
        content: hash of prompt and completion.
        repeat: which of the rows of the same content it is, from 1.
        held: the rows themselves, where they are kept in memory.
        skipped: how many bad rows were left out.
        bad: the first of them, with their places.
    """

    data: DataFile
    readers: tuple[Reader, ...]
    reader: NDArray[np.int32]
    place: NDArray[np.int64]
    line: NDArray[np.int64]
    prompt: NDArray[np.uint64]
    group: NDArray[np.uint64]
    content: NDArray[np.uint64]
    repeat: NDArray[np.int32]
    held: tuple[Example, ...] | None
    skipped: int
    bad: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.place)

    def where(self, row: int) -> str:
        """A row's place for people."""
        return self.readers[int(self.reader[row])].where(int(self.line[row]))

    def by_id(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """These rows in the order of their ids, as text is ordered."""
        numbers = np.unique(self.repeat[rows])
        rank = np.empty(int(numbers.max(initial=0)) + 1, np.int64)
        rank[numbers[np.argsort([row_id(0, int(n)) for n in numbers])]] = np.arange(len(numbers))
        return rows[np.lexsort((rank[self.repeat[rows]], self.content[rows]))]

    def examples(self, rows: NDArray[np.int64]) -> Sequence[Example]:
        """These rows: a list where they are held, else a sequence that reads each when it is asked for."""
        if self.held is not None:
            return [self.held[row] for row in rows]
        return LazyRows(self, rows)


class LazyRows(Sequence[Example]):
    """Rows that are read from disk when they are asked for, never held.

    Args:
        index: where they are.
        rows: which of them, in order; shape `(n,)`.

    Example:
        >>> isinstance(splits.train, LazyRows), splits.train[-1].completion
        (True, '#### 18')
    """

    def __init__(self, index: Index, rows: NDArray[np.int64]) -> None:
        self._index = index
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> LazyRows: ...

    def __getitem__(self, index: int | slice) -> Example | LazyRows:
        if isinstance(index, slice):
            return LazyRows(self._index, self._rows[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return next(self._read(self._rows[[index]]))

    def __iter__(self) -> Iterator[Example]:
        return self._read(self._rows)

    @property
    def ids(self) -> Sequence[str]:
        """Every row's id, from the index alone."""
        return _Ids(self._index, self._rows)

    def _read(self, rows: NDArray[np.int64]) -> Iterator[Example]:
        index = self._index
        for number, run in itertools.groupby(rows, key=lambda row: int(index.reader[row])):
            reader = index.readers[number]
            chosen, places = itertools.tee(run)
            records = reader.at(int(index.place[row]) for row in places)
            for row, values in zip(chosen, records, strict=True):
                yield self._example(int(row), values)

    def _example(self, row: int, values: Mapping[str, Any]) -> Example:
        index = self._index
        try:
            built = build_row(values, index.data)
        except BadRow as error:
            raise UserError(f"{index.where(row)}: has changed since it was split ({error})") from None
        if built.content != int(index.content[row]) or built.group != int(index.group[row]):
            raise UserError(f"{index.where(row)}: has changed since it was split; put the old content back")
        return built.example(int(index.repeat[row]))


class _Ids(Sequence[str]):
    def __init__(self, index: Index, rows: NDArray[np.int64]) -> None:
        self._index = index
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        row = self._rows[index]
        if isinstance(index, slice):
            return _Ids(self._index, row)
        return row_id(int(self._index.content[row]), int(self._index.repeat[row]))


class _Columns:
    """The arrays of an index while they grow."""

    def __init__(self) -> None:
        self.reader, self.place, self.line = array("i"), array("q"), array("q")
        self.prompt, self.group, self.content = array("Q"), array("Q"), array("Q")


def build_index(data: DataFile, *, skip_bad: bool = False) -> Index:
    """Read a data set once.

    Args:
        data: file, folder, pattern (paths absolute) or hub id; with `streaming` the rows are not held.
        skip_bad: leave bad rows out and count them.

    Raises:
        UserError: on an unreadable or empty file, a missing column, or a bad row (or too many of them, when skipped).
    """
    readers = _readers(data)
    columns = _Columns()
    rows: list[Row] = []
    bad: list[str] = []
    wrong = seen = 0
    for number, reader in enumerate(readers):
        for record in reader.records():
            if data.limit is not None and len(columns.place) + (0 if skip_bad else wrong) >= data.limit:
                break
            seen += 1
            try:
                if isinstance(record.value, BadRow):
                    raise record.value
                row = build_row(record.value, data)
            except BadRow as error:
                wrong += 1
                if len(bad) < SHOWN:
                    bad.append(f"{reader.where(record.line)}: {error}")
                continue
            columns.reader.append(number)
            columns.place.append(record.place)
            columns.line.append(record.line)
            columns.prompt.append(row.prompt_hash)
            columns.content.append(row.content)
            if data.group_by is not None:
                columns.group.append(row.group)
            if not data.streaming:
                rows.append(row)
    _judge(data, wrong, seen, bad, skip_bad)
    content = np.frombuffer(columns.content, np.uint64)
    repeat = _repeats(content)
    prompt = np.frombuffer(columns.prompt, np.uint64)
    return Index(
        data=data,
        readers=readers,
        reader=np.frombuffer(columns.reader, np.int32),
        place=np.frombuffer(columns.place, np.int64),
        line=np.frombuffer(columns.line, np.int64),
        prompt=prompt,
        group=prompt if data.group_by is None else np.frombuffer(columns.group, np.uint64),
        content=content,
        repeat=repeat,
        held=None if data.streaming else tuple(row.example(int(n)) for row, n in zip(rows, repeat, strict=True)),
        skipped=wrong,
        bad=tuple(bad),
    )


def _readers(data: DataFile) -> tuple[Reader, ...]:
    needed = needed_columns(data)
    wanted = (*needed, *optional_columns(data))
    readers: tuple[Reader, ...]
    if is_hub_id(data.path):
        from pipelines.data.hub import HubReader

        readers = (HubReader(data, wanted),)
    else:
        readers = tuple(
            build_reader(format_of(file, data.ds_type), file, wanted, streaming=data.streaming)
            for file in find_files(data.path, data.ds_type)
        )
    for reader in readers:
        names = reader.columns()
        for key, setting in needed.items():
            if names is not None and key not in names:
                raise UserError(f"{reader.path}: {lacking(key, setting, names, 'column')}")
    return readers


def _judge(data: DataFile, wrong: int, seen: int, bad: list[str], skip_bad: bool) -> None:
    """Refuse bad rows, or too many of them, or no rows at all."""
    if not seen:
        raise UserError(f"{data.path}: has no rows; {_WANTED[data.type]}")
    more = [f"... and {wrong - len(bad)} more like these"] * (wrong > len(bad))
    if wrong and not skip_bad:
        raise UserError("\n".join([*bad, *more]))
    if wrong > MOSTLY_BAD * seen:
        head = f"{data.path}: {wrong} of {seen} rows are broken, which is more than `on_bad_row: skip` passes over"
        raise UserError("\n".join([head, *bad, *more]))


_WANTED = {
    "chat": 'a row holds messages, such as {"messages": [{"role": "user", "content": "..."}, ...]}',
    "prompt_completion": 'a row holds two texts, such as {"prompt": "...", "completion": "..."}',
    "text": 'a row holds a text, such as {"text": "..."}',
    "preference": 'a row holds three texts, such as {"prompt": "...", "chosen": "...", "rejected": "..."}',
    "unpaired_preference": 'a row holds two texts and a label, such as {"prompt": "...", "completion": "...", "label": true}',
}


def _repeats(content: NDArray[np.uint64]) -> NDArray[np.int32]:
    """For each row, how many rows up to it have its content; shape `(rows,)`."""
    order = np.argsort(content, kind="stable")
    ordered = content[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(content) else np.empty(0, int)
    lengths = np.diff(np.append(starts, len(content)))
    repeats = np.empty(len(content), np.int32)
    repeats[order] = np.arange(len(content)) - np.repeat(starts, lengths) + 1
    return repeats
