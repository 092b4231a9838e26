"""The append-only ledger: the only truth of a sweep. Everything shown or resumed is a fold over its events.

Live in SQLite (WAL, synchronous FULL) on the driver's local disk; events also go to `<sweep>/ledger/` as immutable
numbered segments (at most 2 s or 100 events apart). One `append` is one transaction, durable when it returns.

Events (kind: body). `run` is `Run.id`; bodies are JSON; NaN never appears (scores use `Score.record`).

    sweep_created     {name, spec, versions, space}                    first event; the resolved spec
    driver_started    {pid, host, version}                             one a driver: submit, resume
    suggested         {trial, order, config, parameters, choices, distributions, attributes, duplicate_of}
    lease_started     {lease, run, attempt, from_resource, from_checkpoint, milestones, changes}
    reported          {lease, run, attempt, resource, scores, telemetry, checkpoint, worker_seconds}
    decided           {run, resource, action, reason}                  same transaction as the report or lease it answers
    lease_ended       {lease, run, reason}                             stopped | finished | interrupted
    failed            {lease, run, attempt, kind, message, traceback, final}
    run_ended         {run, state, reason}                             finished | stopped | failed
    checkpoint_deleted {run, attempt, resource, bytes}
    stop_requested    {by}                                             ctrl-c | command | budget | same-error
    final_frozen      {candidates: [{role, run|soup|model, ...}]}
    test_opened       {by, candidates, metrics}
    final_scored      {role, candidate, scores, seed}                  items under run `final/<role>[/seed-s]`
    verdict           {left, right, metric, difference, se, low, high, p, n, better}
    soup_started      {soup, method, metric, ingredients: [{run, checkpoint, hash, score}]}
    soup_scored       {soup, mixture: [[run, weight], ...], score}     items under run `soup/<id>/<step>`
    soup_decided      {soup, run, decision, score, best, reason}
    soup_finished     {soup, ingredients, folder, score, hash}
    driver_ended      {reason}                                         finished | interrupted | aborted
    sweep_finished    {trials, failed, best, seconds}

Reports of any attempt of a run but the newest are dropped by the fold, and a report of a (run, resource) that is already
there is not appended again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.base import ItemSet, Score


@dataclass(frozen=True)
class Event:
    """One fact. `seq` and `time` (seconds since the epoch, UTC) are given by the ledger."""

    kind: str
    body: Mapping[str, Any]
    seq: int = 0
    time: float = 0.0


@dataclass(frozen=True)
class Items:
    """Item scores to store with an event: keyed by (owner, resource, name, split), owner = run id, `final/...`, `soup/...`."""

    owner: str
    resource: int
    score: Score


@dataclass(frozen=True)
class StoredItems:
    """Item scores as read back."""

    item_set: ItemSet
    values: NDArray[np.float32] = field(compare=False)


class LedgerError(RuntimeError):
    """The ledger can't be opened, is held by another driver, or is damaged; the message says what to do."""


class Ledger:
    """Open with `create`, `open` (a driver, takes the lock) or `read` (any number of readers, no lock)."""

    @classmethod
    def create(cls, root: Path) -> Ledger:
        """A new sweep's ledger, locked. Raises LedgerError when one is there already."""
        raise NotImplementedError

    @classmethod
    def open(cls, root: Path) -> Ledger:
        """An existing ledger, locked for this driver. Raises LedgerError naming the holder's pid and host."""
        raise NotImplementedError

    @classmethod
    def read(cls, root: Path) -> Ledger:
        """Read only, beside a running driver. Raises LedgerError when there is none."""
        raise NotImplementedError

    def append(self, events: Sequence[Event], items: Sequence[Items] = ()) -> list[Event]:
        """Write events and items in one transaction, durable on return."""
        raise NotImplementedError

    def events(self, after: int = 0) -> Iterator[Event]:
        """Events with seq > after, in order."""
        raise NotImplementedError

    def items(self, owner: str, resource: int, name: str, split: str) -> StoredItems | None:
        """The item scores behind a score, or None."""
        raise NotImplementedError

    def ship(self, force: bool = False) -> None:
        """Write the next segment when it is due."""
        raise NotImplementedError

    def close(self) -> None:
        """Ship what is left, give the lock back."""
        raise NotImplementedError
