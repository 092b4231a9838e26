"""Parquet and Arrow (IPC files and streams, Feather): only the columns that are needed are read.

Streamed Parquet goes through the `datasets` library's cache, once a machine: row groups are packed, so that one row
would cost its whole group. Streamed Arrow is mapped into memory as it lies.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.base import BadRow, Record, refuse_changed, refuse_twice, stamp_of
from pipelines.stage import UserError

_AT_ONCE = 256
"""Rows that are Python objects at a time."""
_CACHED = 1000
"""Rows in a batch of the cache: what is unpacked at a time while it is written."""


class ParquetReader:
    """Implements `Reader`; a place is the number of a row.

    Example:
        >>> ParquetReader("train.parquet", ["prompt", "completion"]).columns()
        ('prompt', 'completion', 'source')
    """

    def __init__(self, path: str, columns: Sequence[str] | None = None, *, streaming: bool = False) -> None:
        self.path = path
        self._stamp = stamp_of(path)
        with _arrow_errors(path, "Parquet"):
            self._meta = pq.read_metadata(path)
            names = self._meta.schema.to_arrow_schema().names
        self._names = tuple(names)
        self._wanted = [name for name in dict.fromkeys(columns or names) if name in names]
        refuse_twice(path, [name for name in names if name in self._wanted])
        self._ends = list(accumulate(self._meta.row_group(i).num_rows for i in range(self._meta.num_row_groups)))
        self._mapped = _map_parquet(path, self._wanted) if streaming else None

    def columns(self) -> tuple[str, ...] | None:
        """See `Reader`."""
        return self._names

    def where(self, line: int) -> str:
        """See `Reader`: the row's number in the file, and its row group, both from 1."""
        group = bisect.bisect_left(self._ends, line)
        return f"{self.path}, row {line} (row group {group + 1} of {len(self._ends)})"

    def records(self) -> Iterator[Record]:
        """See `Reader`."""
        number = 0
        with _arrow_errors(self.path, "Parquet"), pq.ParquetFile(self.path) as file:
            for group in range(self._meta.num_row_groups):
                with _group_errors(self.path, group + 1):
                    for batch in file.iter_batches(_AT_ONCE, row_groups=[group], columns=self._wanted):
                        for value in _values(batch.select(self._wanted)):
                            yield Record(number, number + 1, value)
                            number += 1
        refuse_changed(self._stamp)

    def at(self, places: Iterable[int]) -> Iterator[dict[str, Any]]:
        """See `Reader`; for streamed files."""
        assert self._mapped is not None, "law must hold: rows are asked for by place only where streaming was"
        refuse_changed(self._stamp)
        yield from rows_of(self._mapped, places)


class ArrowReader:
    """Implements `Reader`; a place is the number of a row.

    Example:
        >>> ArrowReader("train.feather").columns()
        ('prompt', 'completion')
    """

    def __init__(self, path: str, columns: Sequence[str] | None = None, *, streaming: bool = False) -> None:
        self.path = path
        self._stamp = stamp_of(path)
        before = pa.total_allocated_bytes()
        with _arrow_errors(path, "Arrow"):
            table = _mapped_ipc(path, columns)
        if streaming and pa.total_allocated_bytes() - before > table.nbytes // 2 > 0:
            raise UserError(
                f"{path}: its columns are compressed, so that rows can't be read in place; write it with "
                "compression='uncompressed', or as Parquet"
            )
        self._names = tuple(table.schema.names)
        wanted = [name for name in dict.fromkeys(columns or self._names) if name in self._names]
        refuse_twice(path, [name for name in self._names if name in wanted])
        self._table = table.select(wanted)

    def columns(self) -> tuple[str, ...] | None:
        """See `Reader`."""
        return self._names

    def where(self, line: int) -> str:
        """See `Reader`."""
        return f"{self.path}, row {line}"

    def records(self) -> Iterator[Record]:
        """See `Reader`."""
        refuse_changed(self._stamp)
        with _arrow_errors(self.path, "Arrow"):
            yield from table_records(self._table)
        refuse_changed(self._stamp)

    def at(self, places: Iterable[int]) -> Iterator[dict[str, Any]]:
        """See `Reader`."""
        refuse_changed(self._stamp)
        yield from rows_of(self._table, places)


def table_records(table: pa.Table) -> Iterator[Record]:
    """Every row of a table as a record."""
    number = 0
    for batch in table.to_batches(max_chunksize=_AT_ONCE):
        for value in _values(batch):
            yield Record(number, number + 1, value)
            number += 1


def rows_of(table: pa.Table, places: Iterable[int]) -> Iterator[dict[str, Any]]:
    """The rows of these numbers, from 0."""
    for place in places:
        yield table.slice(place, 1).to_pylist()[0]


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BadRow]:
    """Rows as Python objects; a row whose text is no UTF-8 is a bad one."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_value(batch.slice(i, 1)) for i in range(batch.num_rows)]
    yield from rows


def _value(row: pa.RecordBatch) -> dict[str, Any] | BadRow:
    try:
        value: dict[str, Any] = row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 text ({error.reason})")
    return value


def _mapped_ipc(path: str, columns: Sequence[str] | None) -> pa.Table:
    with pa.memory_map(path) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()
        return reader.read_all()


def _map_parquet(path: str, columns: list[str]) -> pa.Table:
    """The columns of a Parquet file as an uncompressed, memory-mapped table in the cache of `datasets`."""
    import datasets

    with quiet(), _arrow_errors(path, "Parquet"):
        loaded = datasets.load_dataset("parquet", data_files=[path], split="train", columns=columns, batch_size=_CACHED)
    return loaded.data.table


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The `datasets` library without progress bars, which would stand between a trial's lines."""
    import datasets

    were = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _arrow_errors(path: str, kind: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, RuntimeError, KeyError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path}: can't be read as {kind} ({said})") from error


@contextlib.contextmanager
def _group_errors(path: str, group: int) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}, row group {group}: can't be read as Parquet ({str(error).splitlines()[0][:200]})"
        ) from error
