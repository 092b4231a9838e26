"""Versions of installed libraries, for what the memo's keys depend on."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions of libraries that change answers, without local build tags; empty where there is none.

    Nothing is imported.
    """
    return {name: _version(name) for name in names}


@functools.cache
def _version(name: str) -> str:
    """Looked up once: it reads a file of metadata, some milliseconds for every stage of every trial."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""
