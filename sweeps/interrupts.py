"""Ctrl-C and SIGTERM: as one, while leases run, and while a driver writes its last words."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Ctrl-C and SIGTERM while leases run: the first asks, the second ends at once."""

    def __init__(self) -> None:
        self.count = 0

    @contextlib.contextmanager
    def caught(self) -> Iterator[Interrupts]:
        """Take the signals over for a while; nothing is done outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        with _handled(self._on_signal):
            yield self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is a Ctrl-C meanwhile."""
    before = terminate_as_ctrl_c()
    try:
        yield
    finally:
        _on_sigterm(before)


def terminate_as_ctrl_c() -> Any:
    """Have SIGTERM raise KeyboardInterrupt from now on, in the main thread; what handled it before."""
    return _on_sigterm(_interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _on_sigterm(handler: Any) -> Any:
    if threading.current_thread() is not threading.main_thread() or handler is None:
        return None
    return signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def noted() -> Iterator[Interrupts]:
    """Ctrl-C and SIGTERM are counted and break nothing off, for a block that looks at the count; main thread only.

    A count and no `threading.Event`: a handler that sets one waits for ever where it came in the middle of its `wait`.
    """
    interrupts = Interrupts()

    def count(number: int, frame: FrameType | None) -> None:
        interrupts.count += 1

    with _handled(count):
        yield interrupts


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let neither Ctrl-C nor SIGTERM break into the block, which ends what they would end; main thread only, as `caught`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled(lambda number, frame: None):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {sign: signal.signal(sign, handler) for sign in SIGNALS}
    try:
        yield
    finally:
        for sign, old in before.items():
            signal.signal(sign, old)
