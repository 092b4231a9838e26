"""Answers to calls: from the memo where they are, computed once where they are not, and never by two callers at once."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from pipelines.memo import Call, Cost, Entry, Memo, Unanswered

WINDOW = 2048
"""Keys that the memo is asked for at once."""
FIRST = 8
"""Calls of the first batch; the next ones are as large as fit into `BATCH_SECONDS`."""
BATCH_SECONDS = 5.0
"""What is computed is stored, and others get their turn, about so often."""
GROWTH = 4
RENEW_SECONDS = 20.0
"""A caller that is still computing says so, so that its claims don't go to others."""
LONGEST_POLL_SECONDS = 0.25

Missing = Callable[[list[Call]], Sequence[tuple[bytes | Unanswered, Cost]]]
"""Computes calls: one (value, cost) a call, in order."""


@dataclass(frozen=True)
class Settled:
    """One call's answer.

    Attributes:
        value: the answer, or why there is none.
        cost: of computing it, whenever that was.
        fresh: whether this caller has computed it now; of equal calls the first one alone.
    """

    value: bytes | Unanswered
    cost: Cost
    fresh: bool


@dataclass(frozen=True)
class Requests:
    """How an endpoint is asked, each of whose answers is stored as it comes: it may have been paid for.

    Attributes:
        size: calls of one request.
        at_once: requests in flight.
    """

    size: int = 1
    at_once: int = 1


def settle(
    memo: Memo,
    calls: Sequence[Call],
    compute_missing: Missing,
    owner: str,
    *,
    requests: Requests | None = None,
    poll_seconds: float = 0.01,
) -> list[Settled]:
    """Answers to the calls in order, computing in batches what nobody has and waiting for what others compute.

    What is claimed is computed before anything is waited for, so that two callers never wait for each other; a claim
    whose owner died expires and is computed here. Few keys are claimed at a time: several callers that ask the same
    share the work, and what was computed stays when this process dies.

    Args:
        memo: the store.
        calls: what is asked; equal ones are computed once.
        compute_missing: computes a batch; `Unanswered` calls are not stored.
        owner: unique among those that run at the same time (worker and thread).
        requests: several threads call `compute_missing` with so much each; None computes a batch in one call.
        poll_seconds: first pause between questions while others compute.

    Raises:
        ValueError: if `compute_missing` answers with another number of values than it was asked for.
    """
    with contextlib.nullcontext() if requests is None else ThreadPoolExecutor(requests.at_once, "calls") as pool:
        return _settle(memo, calls, _Computing(memo, compute_missing, owner, requests, pool), poll_seconds)


def _settle(memo: Memo, calls: Sequence[Call], computing: _Computing, poll_seconds: float) -> list[Settled]:
    """See `settle`."""
    keys = [call.key for call in calls]
    waiting = dict(zip(keys, calls, strict=True))
    settled: dict[str, Settled] = {}
    size, idle, pause = FIRST, 0, poll_seconds
    while waiting:
        asked = list(itertools.islice(waiting, WINDOW))
        claims = dict(zip(asked, memo.claim(asked, computing.owner, size), strict=True))
        for key, claim in claims.items():
            if claim.value is not None:
                settled[key] = Settled(claim.value, claim.cost or Cost(), fresh=False)
        mine = {key: waiting[key] for key in asked if claims[key].state == "yours"}
        if mine:
            began = time.monotonic()
            computed = computing.computed(mine)
            settled.update(computed)
            size = _next_size(len(mine), time.monotonic() - began, computed.values())
        got = [key for key in asked if key in settled]
        for key in asked:  # what others compute goes to the back of the queue
            call = waiting.pop(key) if key in settled or claims[key].state == "wait" else None
            if call is not None and key not in settled:
                waiting[key] = call
        idle = 0 if got else idle + len(asked)
        if waiting and idle >= len(waiting):
            time.sleep(pause)
            idle, pause = 0, min(pause * 1.5, LONGEST_POLL_SECONDS)
        elif got:
            pause = poll_seconds
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    return [
        settled[key] if first[key] == place else replace(settled[key], fresh=False) for place, key in enumerate(keys)
    ]


def compute(
    memo: Memo,
    calls: Sequence[Call],
    compute_missing: Callable[[list[Call]], Sequence[tuple[bytes, Cost]]],
    owner: str,
    *,
    poll_seconds: float = 0.01,
) -> list[bytes]:
    """The values of `settle`, where every call has one."""
    found = settle(memo, calls, compute_missing, owner, poll_seconds=poll_seconds)
    return [one.value for one in found if isinstance(one.value, bytes)]


def _next_size(count: int, seconds: float, computed: Collection[Settled]) -> int:
    """Calls of the next batch, from what this one took, waiting for other callers left out where models tell."""
    told = sum(one.cost.seconds for one in computed)
    took = min(seconds, told) if told else seconds
    fitting = count * BATCH_SECONDS / max(took, 1e-6)
    return int(max(FIRST, min(fitting, count * GROWTH, WINDOW)))


@dataclass(frozen=True)
class _Computing:
    """Who computes what was claimed, and how; `pool` asks an endpoint, None computes a batch in this thread."""

    memo: Memo
    missing: Missing
    owner: str
    requests: Requests | None
    pool: ThreadPoolExecutor | None

    def computed(self, calls: Mapping[str, Call]) -> dict[str, Settled]:
        """Compute and store what was claimed; claims that got no value, for whatever reason, are given back."""
        keys, found, failed = list(calls), dict[str, Settled](), threading.Event()

        def one(part: Sequence[str]) -> None:
            if failed.is_set():  # a thread is here before the others are told; what failed is raised by its own call
                return
            try:
                found.update(self._stored({key: calls[key] for key in part}))
            except BaseException:
                failed.set()
                raise

        try:
            with _renewing(self.memo, keys, self.owner):
                if self.requests is None or self.pool is None:
                    one(keys)
                else:
                    size = self.requests.size
                    parts = [keys[start : start + size] for start in range(0, len(keys), size)]
                    _all_or_what_was_on_its_way([self.pool.submit(one, part) for part in parts])
            return found
        finally:
            open_claims = [key for key in keys if key not in found or isinstance(found[key].value, Unanswered)]
            if open_claims:
                self.memo.release(open_claims, self.owner)

    def _stored(self, calls: Mapping[str, Call]) -> dict[str, Settled]:
        """Answers to all calls of one batch, the values among them stored."""
        answers = self.missing(list(calls.values()))
        if len(answers) != len(calls):
            raise ValueError(f"compute_missing must answer every call, but got {len(answers)} for {len(calls)}")
        found = {key: Settled(value, cost, fresh=True) for key, (value, cost) in zip(calls, answers, strict=True)}
        entries = [
            Entry(key, one.value, one.cost, calls[key].kind)
            for key, one in found.items()
            if isinstance(one.value, bytes)
        ]
        if entries:
            self.memo.fulfil(entries, self.owner)
        return found


def _all_or_what_was_on_its_way(asked: Sequence[Future[None]]) -> None:
    """Wait for requests; where one fails, those that have not begun are left, and its error is raised after the others end."""
    wait(asked, return_when=FIRST_EXCEPTION)
    begun = [one for one in asked if not one.cancel()]
    wait(begun)
    for one in begun:
        one.result()


@contextlib.contextmanager
def _renewing(memo: Memo, keys: Sequence[str], owner: str) -> Iterator[None]:
    """Renew claims now and then while they are computed."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEW_SECONDS):
            memo.renew(keys, owner)

    thread = threading.Thread(target=renew, name="renew-claims", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
