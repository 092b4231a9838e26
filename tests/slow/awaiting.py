"""What slow tests wait for, and where they listen meanwhile."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable


def await_that(true: Callable[[], bool], seconds: float, told: Callable[[], object] = lambda: "") -> None:
    """Ask until it is so.

    Raises:
        AssertionError: with what is told, where it is not so in time.
    """
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, told()
        time.sleep(0.3)


def free_port() -> int:
    """A port of this machine's loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
