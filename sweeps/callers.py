"""Workers for calls on Ray: warm from call to call, as many at once as there are slots, replaced after a failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from sweeps.failures import INFRASTRUCTURE, classify
from sweeps.loop import CallFailed, Pending

PLACE_SECONDS = 5.0
"""A process with a place is there by then."""


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
    """

    def __init__(self, process: CallActor, number: int) -> None:
        self.process, self.number = process, number
        self.future: Any = None
        self.claimed = False

    @property
    def free(self) -> bool:
        """Whether it can take a call."""
        return not self.claimed and (self.future is None or bool(ray.wait([self.future], timeout=0)[0]))

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
        restarts: how often a call whose worker was lost is made again.
        check: called while a result is waited for; what it raises ends the wait.
        say: told of calls that are made again.
    """

    def __init__(
        self,
        make: Callable[[int], CallActor],
        most: Callable[[], int],
        restarts: int,
        check: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._make, self._most = make, most
        self.restarts, self.check, self.say = restarts, check, say
        self._all: list[Caller] = []

    def start(self, function: str, payload: Mapping[str, Any]) -> Pending:
        """Begin a call on a free worker, on a new one while there are fewer than `most`, else on the first that gets free.

        Raises:
            RuntimeError: when every worker has a call whose result is still to be asked for.
        """
        return Call(self, function, dict(payload))

    def begin(self, function: str, payload: Mapping[str, Any]) -> Caller:
        """A worker that is at a call now; raises as `start`."""
        caller = self._free()
        caller.future, caller.claimed = caller.process.actor.call.remote(function, payload), True
        return caller

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
            forgotten = [caller.future for caller in self._all if not caller.claimed]
            if not forgotten:
                raise RuntimeError(f"at most {self._most()} calls run at once; ask for a result first")
            ray.wait(forgotten, num_returns=1)


class Call:
    """A call on a worker; implements `sweeps.loop.Pending`."""

    def __init__(self, callers: Callers, function: str, payload: Mapping[str, Any]) -> None:
        self._callers, self._function, self._payload = callers, function, payload
        self._caller = callers.begin(function, payload)
        self._left = callers.restarts

    def result(self, on_progress: Callable[[str], None] | None = None) -> Any:
        """See `Pending`; after a failure the worker is ended, and the next call gets a fresh one."""
        while True:
            try:
                answer, failure = self._await(on_progress)
            except ray.exceptions.RayError as error:
                answer, failure = None, classify(error)
            self._caller.claimed = False
            if failure is None:
                return answer
            self._callers.end(self._caller)
            if failure.kind not in INFRASTRUCTURE or not self._left:
                raise CallFailed(failure)
            self._left -= 1
            self._callers.say(
                f"{self._function.partition(':')[2]} lost its worker, and begins again: {failure.message}"
            )
            self._caller = self._callers.begin(self._function, self._payload)

    def forget(self) -> None:
        """See `Pending`."""
        self._caller.claimed = False

    def _await(self, on_progress: Callable[[str], None] | None) -> Any:
        future, seen = self._caller.future, 0
        while not ray.wait([future], timeout=0.5)[0]:
            self._callers.check()
            if on_progress:
                for text in ray.get(self._caller.process.actor.poll.remote(seen)):
                    seen += 1
                    on_progress(text)
        return ray.get(future)
