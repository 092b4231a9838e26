"""How a new sweep file names its data and itself."""

from __future__ import annotations

import itertools
import os

from sweeps.paths import DEFAULT_STORAGE, SweepPaths


def written_path(path: str, folder: str | os.PathLike[str]) -> str:
    """An absolute path as a file in `folder` writes it: relative where that is short."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:
        return path
    shown = path if relative.startswith(os.path.join("..", "..", "..")) else relative
    return os.path.join(".", shown) if shown.startswith("~") else shown


def free_name(wanted: str) -> str:
    """A name that no sweep in the usual storage has: the wanted one, or with a number behind it."""
    names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not SweepPaths.of(DEFAULT_STORAGE, name).root.exists())
