"""Ctrl-C and SIGTERM while leases run."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType


class Interrupts:
    """Ctrl-C and SIGTERM while leases run: the first asks, the second ends at once."""

    def __init__(self) -> None:
        self.count = 0
        self.at = 0.0

    @contextlib.contextmanager
    def caught(self) -> Iterator[Interrupts]:
        """Take the signals over for a while; nothing is done outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {sign: signal.signal(sign, self._on_signal) for sign in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            self.at = time.monotonic()
        else:
            raise KeyboardInterrupt
