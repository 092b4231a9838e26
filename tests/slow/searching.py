"""Where a word stands on the disk: every byte of every file, and of a sweep's events, which SQLite may cut in the middle."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import killing

from sweeps.paths import SweepPaths


def holding(word: str, folders: Iterable[Path]) -> list[Path]:
    """The files below the folders that hold a word."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files, "there is nothing to look at"
    return [path for path in files if word.encode() in path.read_bytes()]


def told(paths: SweepPaths) -> str:
    """All events of a sweep, as JSON."""
    return json.dumps([event.body for event in killing.read(paths)], ensure_ascii=False)
