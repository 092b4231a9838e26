"""What a `path` means: a file, a folder, a pattern, or a data set of the hub. The standard library alone.

A path that exists wins; else OWNER/NAME without a data suffix is a hub id.

Example:
    >>> find_files("/data/parts/*.parquet")
    ('/data/parts/0.parquet', '/data/parts/1.parquet')
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.data.base import stamp_of
from pipelines.hashes import file_hash, list_hash
from pipelines.stage import UserError

SUFFIXES: dict[str, str] = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
"""Suffix -> `ds_type`."""
GZIP = ".gz"
GZIPPED = ("json", "csv")
"""Formats that may be packed with gzip."""
_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}\Z")
_PACKED = (".zip", ".zst", ".bz2", ".xz", ".7z", ".tar", ".tgz", ".rar", ".lz4")
_SIDE_FILES = ("dataset_info.json", "state.json", "dataset_dict.json")
"""What `Dataset.save_to_disk` writes beside its rows."""


def is_hub_id(path: str) -> bool:
    """Whether a path has the form of a hub id: OWNER/NAME. What exists on disk was made absolute at the door."""
    return bool(_HUB.match(path)) and _suffix(path) not in SUFFIXES


def is_pattern(path: str) -> bool:
    """Whether a path is a glob: it holds `*`, `?` or `[`, and nothing on disk is called so."""
    return glob.has_magic(path) and not os.path.exists(path)


def find_files(path: str, ds_type: str | None = None) -> tuple[str, ...]:
    """The files that a path means, sorted by name: the file, those that match, or the data files of a folder.

    In a folder, hidden files, those beginning with `_`, and those of no known suffix are passed over; subfolders count.

    Raises:
        UserError: if there is none, or a folder holds several formats and `ds_type` does not say which.
    """
    if os.path.isdir(path):
        return _in_folder(path, ds_type)
    if not is_pattern(path):
        return (path,)
    found = tuple(sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file)))
    if not found:
        raise UserError(f"{path}: matches no file; patterns are relative to the sweep file")
    return found


def _in_folder(folder: str, ds_type: str | None) -> tuple[str, ...]:
    found: dict[str, list[str]] = {}
    for file in sorted(Path(folder).rglob("*")):
        inside = file.relative_to(folder).parts
        kind = SUFFIXES.get(_suffix(file.name))
        hidden = file.name in _SIDE_FILES or any(part.startswith((".", "_")) for part in inside)
        if kind is not None and not hidden and file.is_file():
            found.setdefault(kind, []).append(str(file))
    if ds_type is not None:
        found = {kind: files for kind, files in found.items() if kind == ds_type}
    if not found:
        wanted = ", ".join(s for s, kind in SUFFIXES.items() if ds_type in (None, kind))
        raise UserError(f"{folder}: the folder holds no data file ({wanted})")
    if len(found) > 1:
        listed = ", ".join(f"{len(files)} of {kind}" for kind, files in sorted(found.items()))
        raise UserError(
            f"{folder}: the folder holds several formats ({listed}); say which with ds_type, or use a pattern"
        )
    return tuple(next(iter(found.values())))


def format_of(path: str, ds_type: str | None = None) -> str:
    """The format of a file: `ds_type`, else what its suffix says.

    Raises:
        UserError: if neither tells, or the file is packed in a way that can't be read.
    """
    suffix, packed = _suffix(path), Path(path).suffix.lower()
    if packed in _PACKED:
        raise UserError(f"{path}: {packed} files can't be read; unpack it (gzip alone is read, for JSONL and CSV)")
    known = ds_type or SUFFIXES.get(suffix)
    if known is None:
        raise UserError(
            f"{path}: its suffix {suffix or '(none)'} tells no format; write ds_type: json, csv, parquet or arrow "
            f"(known suffixes: {', '.join(SUFFIXES)})"
        )
    if packed == GZIP and known not in GZIPPED:
        raise UserError(f"{path}: gzip is read for JSONL and CSV alone; unpack the file")
    return known


def _suffix(path: str) -> str:
    """The last suffix in lower case, under a `.gz`."""
    plain = Path(path)
    return (Path(plain.stem) if plain.suffix.lower() == GZIP else plain).suffix.lower()


def content_hash(files: Sequence[str]) -> str:
    """SHA-256 (hex): of one file its own, as `sha256sum` prints it; of several, over their names and hashes.

    Raises:
        UserError: if a file can't be read.
    """
    digests = {file: _file_hash(file) for file in files}
    if len(digests) == 1:
        return next(iter(digests.values()))
    root = os.path.commonpath(files)
    return list_hash((os.path.relpath(file, root), digest) for file, digest in digests.items())


def _file_hash(path: str) -> str:
    stamp_of(path)
    try:
        return file_hash(path)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
