"""A lock on a folder that dies with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FolderLock:
    """A lock on a folder, shared or alone, that the kernel gives back when its process dies.

    Where the file system has no locks there is none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handle: int | None = None

    def take(self, *, alone: bool) -> bool:
        """Take it; whether it could be had. A shared one is waited for: whoever is alone takes seconds."""
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX | fcntl.LOCK_NB) if alone else fcntl.LOCK_SH)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:
            pass
        self._handle = handle
        return True

    def drop(self) -> None:
        """Give it back."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
