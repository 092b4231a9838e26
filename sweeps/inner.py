"""A sweep inside a sweep: a part of its ledger that is read and written as a ledger of its own.

A phase of a sparse soup has trials, leases, reports and a soup like any sweep, and the same engine drives it. Its events lie in
the sweep's own ledger, each inside a `phase` event, which every other reader passes over; so one lock, one order and one set of
segments hold for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sweeps.events import Event, Items, StoredItems
from sweeps.ledger import Ledger

KIND = "phase"


class InnerLedger(Ledger):
    """The events of one phase; `driver_started` among them, once for every driver that comes to it.

    Args:
        outer: the sweep's ledger.
        name: the phase's, `sparse-1/phase-2`; its items have it before their owner.
    """

    def __init__(self, outer: Ledger, name: str) -> None:
        self.root, self.clock = outer.root, outer.clock
        self._outer, self._name = outer, name

    def append(self, events: Sequence[Event], items: Sequence[Items] = ()) -> list[Event]:
        """See `Ledger.append`."""
        wrapped = [Event(KIND, {"phase": self._name, "kind": one.kind, "body": one.body}) for one in events]
        owned = [Items(f"{self._name}/{one.owner}", one.resource, one.score) for one in items]
        return [_unwrapped(event) for event in self._outer.append(wrapped, owned)]

    def events(self, after: int = 0) -> Iterator[Event]:
        """See `Ledger.events`."""
        for event in self._outer.events(after):
            if event.kind == KIND and event.body["phase"] == self._name:
                yield _unwrapped(event)

    def items(self, owner: str, resource: int, name: str, split: str) -> StoredItems | None:
        """See `Ledger.items`."""
        return self._outer.items(f"{self._name}/{owner}", resource, name, split)

    def ship(self, force: bool = False) -> None:
        """See `Ledger.ship`."""
        self._outer.ship(force)

    def close(self) -> None:
        """Nothing: the sweep's ledger is its driver's to close."""

    drop = close


def _unwrapped(event: Event) -> Event:
    return Event(event.body["kind"], event.body["body"], event.seq, event.time)
