"""Events on their way into the ledger: taken into the standings at once, written together, durable before anyone acts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from evaluators.base import Score
from sweeps.events import Event, Items
from sweeps.ledger import Ledger
from sweeps.standings import Standings
from sweeps.state import SweepState
from sweeps.trial import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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

    def metric_items(self, run: Run, resource: int) -> NDArray[np.float32]:
        """Item scores of the primary metric at a milestone, staged ones included; larger is better. An `ItemReader`.

        Raises:
            LookupError: where there are none.
        """
        metric = self._standings.metrics[0]
        sign = -metric.sign
        for staged in self._items:
            if (staged.owner, staged.resource, staged.score.key) == (run.id, resource, metric.name):
                assert staged.score.items is not None, "only scores with items are staged"
                return sign * staged.score.items
        stored = self._ledger.items(run.id, resource, metric.bare, "tune")
        if stored is None:
            raise LookupError(f"the ledger has no items of {metric.name} for {run.id} at {resource}")
        return sign * stored.values

    def commit(self) -> bool:
        """Write what is staged in one transaction; False when there is nothing."""
        if not self._staged:
            return False
        stored = self._ledger.append(self._staged, self._items)
        self._staged, self._items = [], []
        self.state.seq = stored[-1].seq
        return True
