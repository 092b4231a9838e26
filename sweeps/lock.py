"""The driver's lock: `flock` on a file that says who holds it. A dead driver's lock frees itself."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sweeps.records import read_record

_TRIES, _PAUSE = 10, 0.02
"""A reader that looks who holds the lock holds it for an instant itself; a driver outwaits that."""


class LockHeld(RuntimeError):
    """Another process holds the lock; `holder` is what it wrote into the file: {pid, host, started}."""

    def __init__(self, holder: Mapping[str, Any]) -> None:
        super().__init__(f"held by {dict(holder)}")
        self.holder = holder


class DriverLock:
    """Made by `take`; held until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        """Not for callers: use `take`."""
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path) -> DriverLock:
        """Lock `path`, and write pid, host and time into it.

        Raises:
            LockHeld: if another driver has it.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    os.close(descriptor)
                    raise LockHeld(_read(path)) from None
                time.sleep(_PAUSE)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        return cls(descriptor)

    @staticmethod
    def holder(path: Path) -> Mapping[str, Any] | None:
        """What the present holder wrote, or None when the lock is free."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(path)
        finally:
            os.close(descriptor)
        return None

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _read(path: Path) -> Mapping[str, Any]:
    return read_record(path) or {"pid": "unknown", "host": "unknown", "started": "unknown"}
