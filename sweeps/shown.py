"""A loop that shows how far it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from evaluators.base import Report
from sweeps.failures import Failure
from sweeps.loop import Answer, Loop
from sweeps.trial import Lease

SHOW_SECONDS = 0.5
SHOW_SHARE = 20.0
"""A show that took a second is followed by none for so many seconds."""


class Shown:
    """A loop that shows itself at its ticks, twice a second at most, and for a twentieth of its time at most."""

    def __init__(self, loop: Loop, show: Callable[[], None]) -> None:
        self._loop = loop
        self._show = show
        self._due = float("-inf")
        # The calls made for every report go to the loop without a step between.
        self.report: Callable[[str, Report], Answer] = loop.report
        self.ask: Callable[[], Lease | None] = loop.ask

    @property
    def over(self) -> bool:
        """As the loop says."""
        return self._loop.over

    @property
    def stopping(self) -> bool:
        """As the loop says."""
        return self._loop.stopping

    def moved(self, lease: str, at: int | None) -> None:
        """Tell the loop."""
        self._loop.moved(lease, at)

    def ended(self, lease: str) -> None:
        """Tell the loop."""
        self._loop.ended(lease)

    def failed(self, lease: str, failure: Failure) -> None:
        """Tell the loop."""
        self._loop.failed(lease, failure)

    def stalled(self) -> list[str]:
        """As the loop says."""
        return self._loop.stalled()

    @property
    def overdue(self) -> bool:
        """As the loop says."""
        return self._loop.overdue

    def request_stop(self, by: str, grace: float = math.inf) -> None:
        """Tell the loop."""
        self._loop.request_stop(by, grace)

    def held_back(self, by: str | None, priority: int = 0) -> None:
        """Tell the loop."""
        self._loop.held_back(by, priority)

    def unplaced(self, leases: Sequence[str]) -> None:
        """Tell the loop."""
        self._loop.unplaced(leases)

    def tick(self) -> None:
        """Let the loop tick, then show how far it is."""
        self._loop.tick()
        now = time.monotonic()
        if now >= self._due:
            self._show()
            took = time.monotonic() - now
            self._due = now + max(SHOW_SECONDS, SHOW_SHARE * took)
