"""Folders that are made once and then shared: by the runs of a sweep, its workers, and later sweeps."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path


def made_once(cache: Path, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `cache/name`, made by `make` in a temporary one and moved; several processes make it once."""
    folder = cache / name
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f".{name}.lock"):
        if not folder.is_dir():
            for torn in cache.glob(f".{name}.*.tmp"):
                shutil.rmtree(torn, ignore_errors=True)
            aside = cache / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
            aside.mkdir()
            try:
                make(aside)
                aside.rename(folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process of this machine at a time, by a lock on a file that dies with its process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
