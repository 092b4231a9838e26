"""Several sweeps on one cluster: who starts new trials while others wait for a place.

The rule is `ahead`, a pure function of what the drivers say of their sweeps. Each says it in a small entry of Ray's own
key-value store, on the head, and reads those of the others: no process outlives a driver. An entry whose count has stood
still for `DEAD_SECONDS`, by the reader's own clock, is a dead driver's.

Of two sweeps with equal priority the one that holds less of what it holds most of, as a share of the cluster, goes first:
dominant resource fairness (Ghodsi et al. 2011, NSDI), at the grain of a trial; nothing that runs is taken away.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from cluster.base import ClusterError, Node, Placement, place

NAMESPACE = b"stockpot"
PREFIX = b"sweep-"
EVERY_SECONDS = 1.5
ANSWER_SECONDS = 5.0
DEAD_SECONDS = 10.0
"""A driver that has not counted on for so long is dead."""
USELESS_SECONDS = 30.0
"""How long everything may stand empty for a sweep that does not take it: the places it waits for are not ours to give."""
LOOKS = 2
"""So many looks in a row must find nobody ahead before new trials start: Ray takes a moment to give a free place away."""


@dataclass(frozen=True)
class Claim:
    """What a driver says of its sweep.

    Attributes:
        sweep: its name.
        priority: larger goes first.
        waiting: whether trials of it wait for a place that the cluster could give them.
        cpus: CPU threads that its trials hold.
        gpus: GPUs that they hold.
    """

    sweep: str
    priority: int = 0
    waiting: bool = False
    cpus: float = 0.0
    gpus: float = 0.0

    def share(self, whole: Node) -> float:
        """The larger of its shares of the cluster's CPUs and GPUs."""
        return round(max(self.cpus / max(whole.cpus, 1e-9), self.gpus / max(whole.gpus, 1e-9)), 6)


def ahead(own: Claim, others: Iterable[Claim], whole: Node) -> Claim | None:
    """The sweep that `own` starts no new trial before; None where it may.

    That is one that waits and has a higher priority, or an equal one and holds less. Of any sweeps that wait the first in
    that order waits for nobody, so they never all hold back.

    Args:
        own: what the asking driver says.
        others: what the other drivers say.
        whole: what the cluster has in all.
    """
    before = [other for other in others if other.waiting and _before(other, own, whole)]
    return min(before, key=lambda other: (-other.priority, other.share(whole), other.sweep), default=None)


def _before(one: Claim, other: Claim, whole: Node) -> bool:
    return (-one.priority, one.share(whole)) < (-other.priority, other.share(whole))


class Useless:
    """Knows sweeps that take no place although everything behind them stands empty: nobody waits for these.

    Such a one needs what trials never hold: places of resident models, of other programs, or together on one node.
    """

    def __init__(self) -> None:
        self._since: dict[tuple[str, float, float], float] = {}

    def without(self, own: Claim, others: Mapping[str, Claim], whole: Node, now: float) -> list[Claim]:
        """The other claims but those that have been waiting in vain for `USELESS_SECONDS`, and hold what they held then.

        Args:
            own: what this driver says.
            others: what the others say, by key.
            whole: what the cluster has in all.
            now: seconds of a clock that never goes back.
        """
        marks = {key: (key, other.cpus, other.gpus) for key, other in others.items() if other.waiting}
        self._since = {mark: since for mark, since in self._since.items() if mark in marks.values()}
        kept = []
        for key, other in others.items():
            mark = marks.get(key)
            if mark is not None and now - self._since.get(mark, now) > USELESS_SECONDS:
                continue
            kept.append(other)
            behind = [claim for claim in (own, *others.values()) if _before(other, claim, whole)]
            if mark is not None and behind and not any(claim.cpus or claim.gpus for claim in behind):
                self._since.setdefault(mark, now)
            elif mark is not None:
                self._since.pop(mark, None)
        return kept


class Store(Protocol):
    """Small values by key that all drivers of a cluster see."""

    def put(self, key: bytes, value: bytes) -> None:
        """Write a value."""
        ...

    def all(self) -> dict[bytes, bytes]:
        """Every value there is."""
        ...

    def delete(self, key: bytes) -> None:
        """Remove a value; one that is not there is passed over."""
        ...


class RayStore:
    """The key-value store of the head that this process is connected to; without an answer calls raise `ray.exceptions.RayError`."""

    def __init__(self) -> None:
        from ray.experimental import internal_kv

        self._client: Any = internal_kv.internal_kv_get_gcs_client()

    def put(self, key: bytes, value: bytes) -> None:
        """See `Store`."""
        self._client.internal_kv_put(key, value, True, NAMESPACE, ANSWER_SECONDS)

    def all(self) -> dict[bytes, bytes]:
        """See `Store`."""
        keys = self._client.internal_kv_keys(PREFIX, NAMESPACE, ANSWER_SECONDS)
        return dict(self._client.internal_kv_multi_get(keys, NAMESPACE, ANSWER_SECONDS)) if keys else {}

    def delete(self, key: bytes) -> None:
        """See `Store`."""
        self._client.internal_kv_del(key, False, NAMESPACE, ANSWER_SECONDS)


class Board:
    """What the drivers of a cluster say of their sweeps, and this one's entry among them. No thread: `look` reads once.

    Args:
        store: where the entries are.
        claim: what this driver says at first.
    """

    def __init__(self, store: Store, claim: Claim) -> None:
        self.claim = claim
        self._store = store
        self._key = PREFIX + uuid.uuid4().hex.encode()
        self._count = 0
        self._heard: dict[bytes, tuple[bytes, float]] = {}
        self._useless = Useless()

    def look(self, whole: Node, now: float) -> Claim | None:
        """Write this driver's entry, read the others, remove those of dead drivers; who is ahead of this sweep.

        Args:
            whole: what the cluster has in all.
            now: seconds of a clock that never goes back.
        """
        self._count += 1
        self._store.put(self._key, json.dumps({"count": self._count, **asdict(self.claim)}).encode())
        values = self._store.all()
        values.pop(self._key, None)
        self._heard = {key: self._heard_at(key, value, now) for key, value in values.items()}
        others = {}
        for key, (value, heard) in self._heard.items():
            if now - heard > DEAD_SECONDS:
                self._store.delete(key)
            elif (claim := _read(value)) is not None:
                others[key.decode()] = claim
        return ahead(self.claim, self._useless.without(self.claim, others, whole, now), whole)

    def leave(self) -> None:
        """Remove this driver's entry."""
        self._store.delete(self._key)

    def _heard_at(self, key: bytes, value: bytes, now: float) -> tuple[bytes, float]:
        before = self._heard.get(key)
        return before if before is not None and before[0] == value else (value, now)


class Sharing:
    """Keeps a driver's entry and looks who is ahead, from a thread of its own: the questions hang where the head is gone.

    Args:
        claim: what the driver says at first.
        nodes: asks the cluster what its living nodes have.
        store: where the entries are.
        every: seconds between two looks.

    Attributes:
        placement: what one trial needs, once that is known; while no node has it, nobody else is held back for this sweep.
    """

    def __init__(
        self,
        claim: Claim,
        nodes: Callable[[], Sequence[Node]],
        store: Store | None = None,
        every: float = EVERY_SECONDS,
    ) -> None:
        self.placement: Placement | None = None
        self._told, self._nodes, self._every = claim, nodes, every
        self._board = Board(RayStore() if store is None else store, claim)
        self._first: Claim | None = None
        self._free = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sharing", daemon=True)
        self._thread.start()

    @property
    def first(self) -> Claim | None:
        """The sweep that goes first, while this one is to start no new trial."""
        return self._first

    def tell(self, waiting: bool, placed: int) -> None:
        """Say how this sweep stands; others hear it at the next look.

        Args:
            waiting: whether trials of it wait for a place.
            placed: workers of it that have one.
        """
        one = self.placement or Placement(1, 0.0, 0.0)
        cpus, gpus = placed * one.workers * one.cpus, placed * one.workers * one.gpus
        self._told = replace(self._told, waiting=waiting, cpus=cpus, gpus=gpus)

    def close(self) -> None:
        """Look no more, and wait a moment for the entry to be gone."""
        self._closed.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        import ray

        while not self._closed.is_set():
            try:
                self._look()
            except ray.exceptions.RayError:  # a head that is gone is told of by others; nobody is waited for meanwhile
                self._first = None
            self._closed.wait(self._every)
        try:
            self._board.leave()
        except ray.exceptions.RayError:
            return

    def _look(self) -> None:
        nodes, told = self._nodes(), self._told
        self._board.claim = replace(told, waiting=told.waiting and self._fits(nodes))
        whole = Node(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))
        found = self._board.look(whole, time.monotonic())
        self._free = 0 if found is not None else self._free + 1
        if found is not None or self._free >= LOOKS:
            self._first = found

    def _fits(self, nodes: Sequence[Node]) -> bool:
        one = self.placement
        if one is None:
            return True
        try:
            place(nodes, one.cpus, one.gpus, 1, one.workers)
        except ClusterError:
            return False
        return True


def _read(value: bytes) -> Claim | None:
    """An entry; None for one that another version wrote, and that can't be read."""
    try:
        record = json.loads(value)
        return Claim(
            str(record["sweep"]),
            int(record["priority"]),
            bool(record["waiting"]),
            float(record["cpus"]),
            float(record["gpus"]),
        )
    except (ValueError, KeyError, TypeError):
        return None
