"""Workers for calls on Ray: warm from call to call, as many at once as there are slots, replaced after a failure.

A lost node may leave fewer places than slots: a worker that waits for a place gets that of one which has nothing to do. A
call that failed is not made again here: `sweeps.scoring.call` decides that, as for trials.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import ray

from sweeps.failures import classify
from sweeps.loop import CallFailed, Pending

PLACE_SECONDS = 5.0
"""A process with a place is there by then."""
ROOM_SECONDS = 15.0
"""How long a worker may take to come before a free one makes room for it; on a busy machine some start slowly."""
NEWS_SECONDS = 0.2
"""How long a worker may take to say how far its call is; else the next look gets it."""


@dataclass(frozen=True)
class CallActor:
    """A process for calls.

    Attributes:
        actor: `sweeps.worker.CallWorker`.
        group: the placement group that it has to itself, with room for the workers that it trains with; None without any.
        ready: done once the process has its place and is there.
        since: when it was asked for (`time.monotonic`).
    """

    actor: Any
    group: Any = None
    ready: Any = None
    since: float = field(default_factory=time.monotonic)

    @property
    def placed(self) -> bool:
        """Whether it is there."""
        return self.ready is None or bool(ray.wait([self.ready], timeout=0)[0])

    def end(self) -> None:
        """End the process, and those that it started."""
        ray.kill(self.actor)
        if self.group is not None:
            ray.util.remove_placement_group(self.group)


class Caller:
    """A worker for calls.

    Attributes:
        process: its own.
        number: from 0; a worker that takes an ended one's place has its number.
        future: its present call, or its last one.
        claimed: whether somebody waits for that call's result.
        since: when it was asked for, or room was last made for it (`time.monotonic`).
    """

    def __init__(self, process: CallActor, number: int) -> None:
        self.process, self.number = process, number
        self.future: Any = None
        self.claimed = False
        self.since = process.since
        self._asked: Any = None
        self._heard = 0

    def begin(self, function: str, payload: Mapping[str, Any]) -> None:
        """Start a call, whose result somebody waits for."""
        self.future, self.claimed = self.process.actor.call.remote(function, payload), True
        self._asked, self._heard = None, 0

    @property
    def idle(self) -> bool:
        """Whether it is at no call."""
        return self.future is None or bool(ray.wait([self.future], timeout=0)[0])

    @property
    def free(self) -> bool:
        """Whether it can take a call."""
        return not self.claimed and self.idle

    def news(self) -> list[str]:
        """Texts of its call since the last look; nothing while the answer is on its way, which a lost node never sends."""
        if self._asked is None:
            self._asked = self.process.actor.poll.remote(self._heard)
        if not ray.wait([self._asked], timeout=NEWS_SECONDS)[0]:
            return []
        texts: list[str] = ray.get(self._asked)
        self._asked, self._heard = None, self._heard + len(texts)
        return texts

    def failed(self) -> bool:
        """Whether its last call, which is done, failed: its process is not used again."""
        if self.future is None:
            return False
        try:
            return ray.get(self.future)[1] is not None
        except ray.exceptions.RayError:
            return True


class Callers:
    """The workers of one backend.

    Args:
        make: a process with the number of a worker.
        most: workers at once at most.
        check: called while a worker or a result is waited for; what it raises ends the wait.
        attached: stands around what asks Ray, and knows its errors that are no call's.
    """

    def __init__(
        self,
        make: Callable[[int], CallActor],
        most: Callable[[], int],
        check: Callable[[], None],
        attached: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._make, self._most, self.check, self.attached = make, most, check, attached
        self._all: list[Caller] = []

    def start(self, function: str, payload: Mapping[str, Any]) -> Pending:
        """Begin a call on a free worker, on a new one while there are fewer than `most`, else on the first that gets free.

        Raises:
            RuntimeError: when every worker has a call whose result is still to be asked for.
        """
        return Call(self, function, dict(payload))

    def begin(self, function: str, payload: Mapping[str, Any]) -> Caller:
        """A worker that is at a call now; raises as `start`, and CallFailed where the payload can't be handed over."""
        with self.attached():
            caller = self._free()
            try:
                caller.begin(function, payload)
            except ray.exceptions.RayError as error:  # a large one goes through the object store, which may be full
                raise CallFailed(classify(error)) from error
            return caller

    def make_room(self, caller: Caller) -> None:
        """End a worker that is at no call, where this one has waited for a place: one more each `ROOM_SECONDS`."""
        if caller.process.placed or time.monotonic() - caller.since < ROOM_SECONDS:
            return
        idle = next((other for other in self._all if other is not caller and other.idle), None)
        if idle is not None:
            caller.since = time.monotonic()
            self.end(idle)

    def end(self, caller: Caller) -> None:
        """End a worker's process."""
        if caller in self._all:
            self._all.remove(caller)
            if ray.is_initialized():
                caller.process.end()

    @property
    def placed(self) -> int:
        """Workers that are there."""
        return sum(caller.process.placed for caller in self._all)

    @property
    def waits(self) -> bool:
        """Whether one has been asked for so long ago that it must be waiting for a place."""
        since = time.monotonic() - PLACE_SECONDS
        return any(caller.process.since < since and not caller.process.placed for caller in self._all)

    def close(self) -> None:
        """End all of them."""
        for caller in list(self._all):
            self.end(caller)

    def _free(self) -> Caller:
        while True:
            for caller in list(self._all):
                if not caller.free:
                    continue
                if not caller.failed():
                    return caller
                self.end(caller)
            if len(self._all) < self._most():
                taken = {caller.number for caller in self._all}
                number = next(n for n in range(len(taken) + 1) if n not in taken)
                self._all.append(Caller(self._make(number), number))
                return self._all[-1]
            forgotten = [caller for caller in self._all if not caller.claimed]
            if not forgotten:
                raise RuntimeError(f"at most {self._most()} calls run at once; ask for a result first")
            self.check()
            ray.wait([caller.future for caller in forgotten], num_returns=1, timeout=0.5)
            for caller in forgotten:
                if not caller.process.placed:  # it has begun nothing, and nobody wants what it would do
                    self.end(caller)


class Call:
    """A call on a worker; implements `sweeps.loop.Pending`."""

    def __init__(self, callers: Callers, function: str, payload: Mapping[str, Any]) -> None:
        self._callers = callers
        self._caller = callers.begin(function, payload)

    def result(self, on_progress: Callable[[str], None] | None = None) -> Any:
        """See `Pending`; after a failure the worker is ended, and the next call gets a fresh one."""
        try:
            with self._callers.attached():
                answer, failure = self._await(on_progress)
        except ray.exceptions.RayError as error:
            answer, failure = None, classify(error)
        self._caller.claimed = False
        if failure is not None:
            self._callers.end(self._caller)
            raise CallFailed(failure)
        return answer

    def forget(self) -> None:
        """See `Pending`."""
        self._caller.claimed = False

    def _await(self, on_progress: Callable[[str], None] | None) -> Any:
        caller = self._caller
        while not ray.wait([caller.future], timeout=0.5)[0]:
            self._callers.check()
            self._callers.make_room(caller)
            if on_progress and caller.process.placed:
                for text in caller.news():
                    on_progress(text)
        return ray.get(caller.future)
