"""What travels with a sweep that runs elsewhere: its file, the data it names by relative paths, and the user's own modules.

The files keep their places relative to each other under one folder, so that the sweep file means the same there. Absolute paths
stay as they are: they are promises that the cluster's nodes see them too. Hidden files (`.env`, `.git`, `.stockpot`) travel only
where the file names one itself; what reads folders passes them over too.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.jobs import LARGEST_BYTES
from cluster.packages import hash_files
from sweeps.commands.places import UsageError

MODULES_AT_MOST = 2000
_SKIPPED = {"__pycache__", "venv", "node_modules", "stockpot-runs"}
_NO_PATHS = {
    "name",
    "storage",
    "env",
    "metric",
    "method",
    "early_terminate",
    "seeds",
    "resources",
    "on_failure",
    "keep",
    "track",
}
"""Sections of a sweep file that name nothing that is read; a folder that happens to be called as a word there is not meant."""


def stage(file: Path, data: Mapping[str, Any], into: Path) -> Path:
    """Copy what a sweep file needs into an empty folder; the file's place in it, relative.

    Args:
        file: the sweep file.
        data: its content.
        into: where to.

    Raises:
        UsageError: if it is too much to travel, or something of it can't.
    """
    folder = Path(os.path.abspath(file.parent))
    wanted = sorted({Path(os.path.abspath(file)), *named(data, folder), *modules(data, folder)})
    size = sum(path.stat().st_size for path in wanted)
    if size > LARGEST_BYTES:
        largest = max(wanted, key=lambda path: path.stat().st_size)
        raise UsageError(
            f"{size / 1024**2:.0f} MiB are named by relative paths, and a job carries {LARGEST_BYTES / 1024**2:.0f}; put the large ones "
            f"({largest}) where the cluster's nodes see them, and name them by absolute paths"
        )
    root = Path(os.path.commonpath([path.parent for path in wanted]))
    for path in wanted:
        _refuse_name(path.relative_to(root).as_posix())
        place = into / path.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, place)
        except PermissionError as error:
            raise UsageError(f"{path} is named by the sweep file and can't be read: {error.strerror}") from error
    return Path(os.path.abspath(file)).relative_to(root)


def named(data: Mapping[str, Any], folder: Path) -> set[Path]:
    """Files that relative paths in a sweep file's content lead to; folders with all in them that is not hidden.

    Raises:
        UsageError: if a folder holds a link: data sets and corpora read links differently, and what is behind one may not be meant.
    """
    found: set[Path] = set()
    for text in _texts({key: value for key, value in data.items() if key not in _NO_PATHS}):
        if not text or text.startswith(("/", "~")) or "://" in text or "\0" in text:
            continue
        if glob.has_magic(text) and not os.path.exists(folder / text):
            found |= _matching(text, folder)
        else:
            found |= _inside(Path(os.path.abspath(folder / text)), folder)
    return found


def _matching(pattern: str, folder: Path) -> set[Path]:
    """What a pattern of files leads to; one without a letter or a number is a separator or a stop word, and a text is no pattern."""
    if "\n" in pattern or not any(map(str.isalnum, pattern)):
        return set()
    whole = os.path.join(glob.escape(str(folder)), pattern)
    return {
        inner for path in glob.glob(whole, recursive=True) for inner in _inside(Path(os.path.abspath(path)), folder)
    }


def modules(data: Mapping[str, Any], folder: Path) -> set[Path]:
    """Python files beside the sweep file, where its pipeline is the user's own.

    Raises:
        UsageError: if there are so many that the folder can't be meant.
    """
    pipeline = data.get("pipeline")
    if not isinstance(pipeline, Mapping) or pipeline.get("type") != "custom":
        return set()
    found = {path for path in _walk(folder, links=True) if path.suffix == ".py"}
    if len(found) > MODULES_AT_MOST:
        raise UsageError(f"{folder}: {len(found)} Python files lie beside the sweep file; give it a folder of its own")
    return found


def tree_hash(folder: Path) -> str:
    """SHA-256 (hex, 16 digits) over names and contents of a folder's files, without what running them leaves there."""
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return hash_files({path.as_posix(): folder / path for path in files if "__pycache__" not in path.parts})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "type":
                yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _inside(path: Path, folder: Path) -> set[Path]:
    try:
        if path.is_file():
            return {path}
        if path.is_dir() and path != folder and not folder.is_relative_to(path):
            return set(_walk(path))
    except OSError:
        pass
    return set()


def _walk(folder: Path, links: bool = False) -> Iterator[Path]:
    """Files below a folder that are not hidden.

    Args:
        folder: where.
        links: whether to take what links lead to: files, and folders that are packages, each once.

    Raises:
        UsageError: if there is a link that is not to be followed.
    """
    seen = {os.path.realpath(folder)}
    for root, folders, names in os.walk(folder, followlinks=links):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        shown = sorted(name for name in names if not name.startswith("."))
        linked = [Path(root) / name for name in (*folders, *shown) if (Path(root) / name).is_symlink()]
        if linked and not links:
            raise UsageError(
                f"{linked[0]} is a link, and files travel without links: put a copy in its place, or name {folder} by its absolute path, "
                "where the cluster's nodes see it"
            )
        for link in [link for link in linked if link.is_dir()]:
            real = link.resolve()
            if str(real) in seen or Path(root).resolve().is_relative_to(real) or not (real / "__init__.py").is_file():
                folders.remove(link.name)
            seen.add(str(real))
        yield from (path for name in shown if (path := Path(root) / name).is_file())


def _refuse_name(name: str) -> None:
    """Raise for a name that Ray would drop without a word, or that no archive can hold.

    Raises:
        UsageError: naming it.
    """
    if "\\" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise UsageError(f"{name!r}: files whose names hold a backslash or are no Unicode can't travel; rename it")
