"""Whether the head of a cluster still answers, and how many nodes it has, each asked from a thread of its own.

Ray's own answer to a head that is gone is to end the driver's process after a minute, in the middle of whatever it does.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from cluster.base import ClusterError

EVERY_SECONDS = 2.0
COUNT_SECONDS = 5.0
REACH_SECONDS = 5.0
PATIENCE_SECONDS = 20.0
"""A head that could not be reached for so long is gone: a third of Ray's patience, after which it would end the driver."""
GRACE_SECONDS = 15.0
FEWEST_LOOKS = 3
"""So many looks in a row must have got no answer."""


class HeadWatch:
    """Asks until `close`.

    Args:
        address: `host:port` of the head.
        give_up: called once, from the thread, where the head is gone and nobody has closed this `grace` later: the process
            hangs in a call of Ray's then.
        patience: seconds without an answer until it counts as gone.
        every: seconds between two looks.
        grace: seconds between that and `give_up`.
    """

    def __init__(
        self,
        address: str,
        give_up: Callable[[], None],
        patience: float = PATIENCE_SECONDS,
        every: float = EVERY_SECONDS,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self.address = address
        self._give_up = give_up
        self._grace = grace
        self._patience = patience
        self._every = every
        self._failed = 0
        self._since = 0.0
        self._closed = threading.Event()
        self.severed = False
        """Whether this process's own node has ended, so that nothing of Ray's answers any more."""
        threading.Thread(target=self._look, name="head-watch", daemon=True).start()

    @property
    def silent(self) -> float:
        """Seconds since the first of the looks in a row that got no answer; 0 where the last one got one."""
        return time.monotonic() - self._since if self._failed else 0.0

    @property
    def lost(self) -> bool:
        """Whether it is gone. A process that could not look for a while, as the machine was busy or slept, has seen nothing."""
        return self.severed or (self._failed >= FEWEST_LOOKS and self.silent > self._patience)

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """Let the block, which takes leave of the head, take `grace` seconds where the head is gone; then give up."""
        timer = threading.Timer(self._grace, self._give_up)
        timer.daemon = True
        if self.lost:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _look(self) -> None:
        while not self._closed.is_set():
            began = time.monotonic()
            if answers(self.address):
                self._failed = 0
            else:
                self._since = self._since if self._failed else began
                self._failed += 1
            if self.lost and self.silent > self._patience + self._grace and not self._closed.is_set():
                self._give_up()
                return
            self._closed.wait(self._every)


class NodeCount:
    """How many nodes there are, asked from a thread of its own: the question hangs where the head is gone.

    Args:
        count: asks the cluster.
        every: seconds between two looks.
        joined: called where there are more than before; says, or raises as a `ClusterError`, what is odd about the nodes now.
    """

    def __init__(
        self, count: Callable[[], int], every: float = COUNT_SECONDS, joined: Callable[[], Sequence[str]] = tuple
    ) -> None:
        self._count = count
        self._every = every
        self._joined = joined
        self._odd: deque[str] = deque()
        self._told = self._there = count()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="node-count", daemon=True)
        self._thread.start()

    def news(self) -> list[str]:
        """What a person should know of, since the last call."""
        before, self._told = self._told, self._there
        odd = [self._odd.popleft() for _ in range(len(self._odd))]
        if self._told < before:
            return [f"lost {before - self._told} of {before} nodes; what ran there goes again elsewhere", *odd]
        return [f"{self._told} nodes now, {self._told - before} more", *odd] if self._told > before else odd

    def close(self) -> None:
        """Ask no more, and wait a moment for the answer to the last question."""
        self._closed.set()
        self._thread.join(1.0)

    def _look(self) -> None:
        while not self._closed.wait(self._every):
            with contextlib.suppress(Exception):  # Ray raises bare ones where the head is slow or gone: ask again
                there = self._count()
                odd = self._told_odd() if there > self._there else ()
                self._there = there
                self._odd.extend(odd)

    def _told_odd(self) -> Sequence[str]:
        try:
            return self._joined()
        except ClusterError as error:
            return str(error).splitlines()


def answers(address: str, seconds: float = REACH_SECONDS) -> bool:
    """Whether something listens at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError:
        return False
    return True
