"""A driver's last event, written once: by the driver when it ends, or for one that hangs by whoever ends its process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from sweeps.events import Event
from sweeps.ledger import Ledger, LedgerError


class LastWords:
    """Why a driver ended. Of several that would write it, the first does."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._ledger: Ledger | None = None

    def begin(self, ledger: Ledger) -> None:
        """A driver is at work with this ledger; before, there is nothing to write."""
        self._ledger = ledger

    def write(self, events: Sequence[Event]) -> None:
        """Append a driver's last events, where they are not there yet; when this returns, they are.

        Raises:
            LedgerError: when they can't be written; they are not tried again.
        """
        with self._guard:
            ledger, self._ledger = self._ledger, None
            if ledger is not None:
                ledger.append(events)

    def hang(self, why: str) -> None:
        """Write for a driver that hangs, from any thread, what broke it off."""
        with contextlib.suppress(LedgerError):  # a full disk: the process is ended all the same
            self.write([Event("driver_ended", {"reason": "interrupted", "why": why})])
