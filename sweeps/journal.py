"""Events on their way into the ledger: taken into the standings at once, written together, durable before anyone acts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from evaluators.base import Score
from sweeps.ledger import Event, Items, Ledger
from sweeps.standings import Standings
from sweeps.state import SweepState


class Journal:
    """One transaction after another.

    Args:
        ledger: open for writing.
        standings: the fold of the ledger so far.
        clock: seconds since the epoch.
    """

    def __init__(self, ledger: Ledger, standings: Standings, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._standings = standings
        self._clock = clock
        self._staged: list[Event] = []
        self._items: list[Items] = []

    @property
    def state(self) -> SweepState:
        """The fold, staged events included."""
        return self._standings.state

    def stage(self, kind: str, /, **body: Any) -> None:
        """Take an event in; nobody outside may see its effect before `commit`."""
        event = Event(kind, body, self.state.seq + 1, self._clock())
        self._standings.apply(event)
        self._staged.append(event)

    def stage_items(self, owner: str, resource: int, scores: Sequence[Score]) -> None:
        """Item scores that go with the transaction."""
        self._items += [Items(owner, resource, score) for score in scores if score.items is not None]

    def commit(self) -> bool:
        """Write what is staged in one transaction; False when there is nothing."""
        if not self._staged:
            return False
        stored = self._ledger.append(self._staged, self._items)
        self._staged, self._items = [], []
        self.state.seq = stored[-1].seq
        return True
