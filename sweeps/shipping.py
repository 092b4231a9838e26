"""What travels with a sweep that runs elsewhere: its file, the data it names by relative paths, and the user's own modules.

The files keep their places relative to each other under one folder, so that the sweep file means the same there. Absolute paths
stay as they are: they are promises that the cluster's nodes see them too.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.jobs import LARGEST_BYTES
from pipelines.data.files import is_pattern
from sweeps.commands.places import UsageError

MODULES_AT_MOST = 2000
_SKIPPED = {"__pycache__", ".git", ".venv", "venv", "node_modules", "stockpot-runs", ".mypy_cache", ".ruff_cache"}


def stage(file: Path, data: Mapping[str, Any], into: Path) -> Path:
    """Copy what a sweep file needs into an empty folder; the file's place in it, relative.

    Args:
        file: the sweep file.
        data: its content.
        into: where to.

    Raises:
        UsageError: if it is too much to travel.
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
        place = into / path.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return Path(os.path.abspath(file)).relative_to(root)


def named(data: Any, folder: Path) -> set[Path]:
    """Files that relative paths anywhere in a file's content lead to; folders with all that is in them."""
    found: set[Path] = set()
    for text in _texts(data):
        if not text or text.startswith(("/", "~")) or "://" in text or "\n" in text or "\0" in text:
            continue
        pattern = os.path.join(glob.escape(str(folder)), text) if is_pattern(text) else None
        for path in map(Path, glob.glob(pattern, recursive=True)) if pattern else [folder / text]:
            found |= _inside(Path(os.path.abspath(path)), folder)
    return found


def modules(data: Mapping[str, Any], folder: Path) -> set[Path]:
    """Python files beside the sweep file, where its pipeline is the user's own.

    Raises:
        UsageError: if there are so many that the folder can't be meant.
    """
    pipeline = data.get("pipeline")
    if not isinstance(pipeline, Mapping) or pipeline.get("type") != "custom":
        return set()
    found = {path for path in _walk(folder) if path.suffix == ".py"}
    if len(found) > MODULES_AT_MOST:
        raise UsageError(f"{folder}: {len(found)} Python files lie beside the sweep file; give it a folder of its own")
    return found


def tree_hash(folder: Path) -> str:
    """SHA-256 (hex, 16 digits) over names and contents of a folder's files."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix().encode()
        whole.update(len(name).to_bytes(8, "big") + name + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("storage", "name"):
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


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            path = Path(root) / name
            if path.is_file():
                yield path
