"""How a new sweep file names its data and itself."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from sweeps.paths import DEFAULT_STORAGE, SweepPaths


def written_path(path: str, folder: str | os.PathLike[str]) -> str:
    """An absolute path as a file in `folder` writes it: relative where that is short."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:
        return path
    shown = path if relative.startswith(os.path.join("..", "..", "..")) else relative
    return os.path.join(".", shown) if shown.startswith("~") else shown


USUAL = {"", "train", "data", "dataset", "datasets", "rows", "input", "questions", "corpus", "docs", "documents"}
"""Names of data that say nothing."""


def sweep_name(paths: Sequence[Path], folder: Path, kind: str) -> str:
    """A name for a sweep that no other has: the data's, or that of the folder they are in, and the kind of pipeline.

    Args:
        paths: of the data, the most telling first.
        folder: of the sweep file.
        kind: of pipeline.
    """
    words = [*(path.name.split(".")[0] for path in paths), *(path.parent.name for path in paths), folder.name, "first"]
    plain = [re.sub(r"[^A-Za-z0-9_-]+", "-", word).strip("-_") for word in words]
    return free_name(next(word for word in plain if word.lower() not in USUAL)[:60] + f"-{kind}")


def free_name(wanted: str) -> str:
    """A name that no sweep in the usual storage has: the wanted one, or with a number behind it."""
    names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not SweepPaths.of(DEFAULT_STORAGE, name).root.exists())
