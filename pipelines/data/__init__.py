"""Where rows come from: files of several formats, and data sets of the hub. No torch; nothing heavy loads here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from pipelines.data.base import Reader

READERS: dict[str, str] = {
    "json": "pipelines.data.json_rows:JSONReader",
    "csv": "pipelines.data.csv_rows:CSVReader",
    "parquet": "pipelines.data.columns:ParquetReader",
    "arrow": "pipelines.data.columns:ArrowReader",
}
"""`ds_type` -> the class that reads such a file."""


def build_reader(ds_type: str, path: str, columns: Sequence[str] | None = None, *, streaming: bool = False) -> Reader:
    """Open a file of a format.

    Args:
        ds_type: a key of `READERS`.
        path: the file.
        columns: those needed; a format that stores columns apart reads no other. None for all.
        streaming: whether rows will be asked for by place.

    Raises:
        UserError: if the file can't be read, or not by place.
    """
    module, _, name = READERS[ds_type].partition(":")
    reader: Reader = getattr(importlib.import_module(module), name)(path, columns, streaming=streaming)
    return reader
