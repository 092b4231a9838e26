"""Where `package://module/path` lies, without importing the package: only the top-level name is looked up."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE = "package://"


def package_path(source: str) -> Path:
    """The file or folder that a `package://` name stands for, whether or not it exists.

    Raises:
        LookupError: if no such package is installed here; it holds the package's name.
    """
    name, _, rest = source.removeprefix(PACKAGE).partition("/")
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except ValueError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(top)
    roots = [Path(location, *inner) / rest for location in spec.submodule_search_locations]
    return next((path for path in roots if path.exists()), roots[0])
