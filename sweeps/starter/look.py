"""A first look at a user's data: which files, which columns, what rows are, how many. Reads the first rows only."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.data import build_reader
from pipelines.data.base import BadRow, Reader
from pipelines.data.examples import needed_columns
from pipelines.data.files import GZIP, SUFFIXES, find_files, format_of, is_pattern
from pipelines.stage import UserError
from sweeps.problems import unknown
from sweeps.starter.shapes import FIELDS, Fit, NoShape, Shape, fit, recognise

LOOKED_AT = 20_000
"""Rows read at most; a data set of fewer is counted exactly."""
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "tune": "tune", "valid": "tune", "validation": "tune", "val": "tune", "dev": "tune", "eval": "tune",
    "select": "select",
    "test": "test",
}  # fmt: skip
"""How files of a split are called -> which split they are."""
_UTF8 = "not UTF-8"
_FIRST_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Look:
    """What was seen of one data set.

    Attributes:
        path: absolute: a file, a folder or a pattern.
        ds_type: where the suffix does not tell; else None.
        shape: what its columns mean.
        columns: all of them.
        rows: how many rows it has; None where only a part was read and no header tells.
        exact: whether `rows` was counted.
        looked: rows that were read.
        prompts: different prompts among them.
        fit: how those rows bear the shape.
    """

    path: str
    ds_type: str | None
    shape: Shape
    columns: tuple[str, ...]
    rows: int | None
    exact: bool
    looked: int
    prompts: int
    fit: Fit = field(repr=False)

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns that no field names."""
        return tuple(name for name in self.columns if name not in self.shape.columns.values())


def split_files(path: Path) -> dict[str, str]:
    """The data set of each split: the path itself as `train`, or a folder's files where their names say splits.

    Raises:
        UserError: if nothing is there, or a folder's files say no one thing.
    """
    if not str(path).isprintable() and any("\ud800" <= sign <= "\udfff" for sign in str(path)):
        raise UserError(f"{str(path)!r}: its name is not UTF-8, so no sweep file can name it; rename it")
    if not path.is_dir():
        if not path.exists() and not is_pattern(str(path)):
            raise UserError(f"{path}: there is no such file or folder")
        return {"train": str(path)}
    files = [Path(file) for file in find_files(str(path))]
    named: dict[str, list[Path]] = {}
    for file in files:
        word = _FIRST_WORD.match(file.name)
        split = SPLIT_WORDS.get(word.group().lower()) if word and file.parent == path else None
        if split is None:
            return {"train": str(path)}
        named.setdefault(split, []).append(file)
    if "train" not in named or len(named) == 1:
        return {"train": str(path)}
    return {split: _one_path(path, group) for split, group in named.items()}


def beside(path: Path) -> dict[str, str]:
    """Files that lie beside a file of train and are called as another split: split -> name."""
    found: dict[str, str] = {}
    word = _FIRST_WORD.match(path.name)
    if not path.is_file() or word is None or SPLIT_WORDS.get(word.group().lower()) != "train":
        return found
    for other in sorted(path.parent.glob(f"*{path.suffix}")):
        other_word = _FIRST_WORD.match(other.name)
        split = SPLIT_WORDS.get(other_word.group().lower()) if other_word else None
        if split not in (None, "train") and other.is_file():
            found.setdefault(str(split), other.name)
    return found


def _one_path(folder: Path, group: list[Path]) -> str:
    """One path that means just these files of a folder."""
    if len(group) == 1:
        return str(group[0])
    words = {_FIRST_WORD.match(file.name).group() for file in group}  # type: ignore[union-attr]
    for pattern in (f"{word}*{suffix}" for word in words for suffix in {file.suffix for file in group}):
        if sorted(folder.glob(pattern)) == group:
            return str(folder / pattern)
    names = ", ".join(file.name for file in group[:4])
    raise UserError(f"{folder}: {names} look like one split, and no one pattern means them; give them a folder each")


def look(path: str, given: Shape | None = None) -> Look:
    """Look at a data set.

    Args:
        path: absolute: a file, a folder or a pattern.
        given: what its columns mean, where the user says so.

    Raises:
        UserError: if it can't be read, has no rows, or its columns can't be understood; the message says what was seen.
    """
    files = find_files(path)
    ds_type = None if Path(path).is_dir() or is_pattern(path) else _unnamed(path)
    readers = [build_reader(format_of(file, ds_type), file) for file in files]
    records = list(itertools.islice(_records(readers), LOOKED_AT + 1))
    whole = len(records) <= LOOKED_AT
    records = records[:LOOKED_AT]
    columns = _columns(readers, records)
    if latin := next(
        (f"{at}: {value}" for at, value in records if isinstance(value, BadRow) and _UTF8 in str(value)), None
    ):
        raise UserError(latin)  # leaving such rows out would leave out a language's letters
    if not records:
        raise UserError(f"{path}: has no rows{f' below its header ({_listed(columns)})' if columns else ''}")
    try:
        shape, found = (given, _fit_given(given, columns, records)) if given else recognise(columns, records)
    except NoShape as error:
        raise UserError(f"{path}: {error}") from None
    _refuse_mixture(path, shape, readers, files)
    rows = len(records) if whole else _stored_rows(files, ds_type)
    prompts = len({row.group for row in found.rows})
    return Look(path, ds_type, shape, columns, rows, whole, len(records), prompts, found)


def given_shape(kind: str | None, fields: Mapping[str, str]) -> Shape | None:
    """What `--type` and `--field-...` say; None when they say nothing.

    Args:
        kind: the type.
        fields: part -> column.

    Raises:
        UserError: for a field that rows of the type do not have.
    """
    if kind is None and not fields:
        return None
    kind = kind or next(k for k, parts in FIELDS.items() if next(iter(fields)) in parts)
    if kind not in FIELDS:
        raise UserError(f"--type: {unknown(kind, list(FIELDS))}")
    if wrong := [part for part in fields if part not in FIELDS[kind]]:
        legal = ", ".join(f"--field-{part}" for part in FIELDS[kind])
        raise UserError(f"--field-{wrong[0]} means nothing to rows of type {kind}, which have {legal}")
    return Shape(kind, {f"field_{part}": name for part, name in fields.items() if name != part})


def _refuse_mixture(path: str, shape: Shape, readers: Sequence[Reader], files: Sequence[str]) -> None:
    """Check that every file of a folder begins with a row of the shape's columns.

    Raises:
        UserError: naming a file that does not.
    """
    wanted = set(shape.columns.values())
    for file, reader in zip(files, readers, strict=True):
        first = next((record.value for record in reader.records() if isinstance(record.value, Mapping)), None)
        if first is not None and not wanted & first.keys():
            raise UserError(
                f"{path}: its files hold different things: {os.path.basename(file)} has {_listed(tuple(first))}, where others "
                f"have {_listed(sorted(wanted))}; give the one file, or a pattern of files"
            )


def _fit_given(shape: Shape, columns: Sequence[str], records: Sequence[tuple[str, Mapping[str, Any] | BadRow]]) -> Fit:
    if absent := [name for name in needed_columns(shape.data("data")) if name not in columns]:
        raise NoShape(f"has no column {absent[0]!r} (columns: {_listed(columns)})")
    found = fit(shape, records)
    if found.share < 0.5:
        raise NoShape(f"{len(found.rows)} of the {len(records)} rows looked at can be used; {'; '.join(found.bad)}")
    return found


def _records(readers: Sequence[Reader]) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    for reader in readers:
        for record in reader.records():
            yield reader.where(record.line), record.value


def _columns(readers: Sequence[Reader], records: Sequence[tuple[str, Any]]) -> tuple[str, ...]:
    """Every column, in the order in which they come."""
    found: dict[str, None] = {}
    for reader in readers:
        found.update(dict.fromkeys(reader.columns() or ()))
    for _, value in records:
        if isinstance(value, Mapping):
            found.update(dict.fromkeys(value))
    return tuple(found)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns[:20])) + (f", ... {len(columns)} in all" if len(columns) > 20 else "")


def _unnamed(path: str) -> str | None:
    """The `ds_type` of a file whose suffix tells none, by its first bytes; None where the suffix does.

    Raises:
        UserError: if the bytes tell none either.
    """
    plain = path.lower().removesuffix(GZIP)
    if os.path.splitext(plain)[1] in SUFFIXES or not os.path.isfile(path):
        return None
    with Path(path).open("rb") as file:
        start = file.read(512)
    for magic, kind in ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"{", "json")):
        if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(magic):
            return kind
    format_of(path)
    return None


def _stored_rows(files: Sequence[str], ds_type: str | None) -> int | None:
    """Rows of files of which only a part was read: as their headers say, or about, by the length of their first lines."""
    total = 0
    for file in files:
        kind = format_of(file, ds_type)
        if kind == "parquet":
            import pyarrow.parquet as pq

            total += pq.read_metadata(file).num_rows
        elif kind == "arrow" or file.lower().endswith(GZIP) or _array(file):
            return None
        else:
            from sweeps.splitsizes import count_lines

            total += count_lines(Path(file), header=kind == "csv")
    return total


def _array(file: str) -> bool:
    """Whether a file is one JSON array, whose rows are no lines."""
    with Path(file).open("rb") as opened:
        return opened.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
