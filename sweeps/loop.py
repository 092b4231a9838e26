"""The seam between the loop and what executes its leases: `Loop` is what a backend sees, `Backend` what a driver sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from cluster.meters import Number
from evaluators.base import Report
from sweeps.failures import Failure
from sweeps.trial import Lease

Answer = Literal["continue", "stop"]


class Loop(Protocol):
    """What a backend sees of the engine. All calls come from the backend's one driving thread."""

    def ask(self) -> Lease | None:
        """The next lease, now that a slot is free: a retry, then a promotion, then a new trial. None: nothing for now."""
        ...

    def report(self, lease: str, report: Report) -> Answer:
        """A report of a running lease. Report and decision are one transaction, written before this returns."""
        ...

    def moved(self, lease: str, at: int | None) -> None:
        """A running lease gave a sign of life between two reports, and has come to this resource, where it said so.

        It is no stalled one. Nothing is written.
        """
        ...

    def ended(self, lease: str) -> None:
        """The lease ended as it was told to. Without a `stop` answered before, it is a failure of kind `unknown`."""
        ...

    def failed(self, lease: str, failure: Failure) -> None:
        """The lease ended with a failure; the engine may hand out a retry at a later `ask`."""
        ...

    @property
    def over(self) -> bool:
        """True when nothing runs and nothing can be asked any more."""
        ...

    @property
    def stopping(self) -> bool:
        """True once a stop was requested (Ctrl-C, `stockpot stop`, budget): running leases end at their next report."""
        ...

    def held_back(self, by: str | None, priority: int = 0) -> None:
        """Another sweep of the cluster goes first, with its priority; "": places are taken; None: no more. For people alone."""
        ...

    def unplaced(self, leases: Sequence[str]) -> None:
        """The running leases that wait for a place, so that no slot is busy with them. For people alone."""
        ...

    def stalled(self) -> list[str]:
        """Running leases without a report or a sign of life for `stall_after`: kill them and tell `failed` of a `stall`."""
        ...

    def tick(self) -> None:
        """Called a few times a second: polls the stop request, watches the budget, ships ledger segments."""
        ...

    def request_stop(self, by: str, grace: float = math.inf) -> None:
        """Ask the sweep to stop (`ctrl-c`): nothing new starts, running leases have `grace` seconds to their next report."""
        ...

    @property
    def overdue(self) -> bool:
        """True once that grace is over: end what still runs and tell `failed` of a lost `node`, which then counts as interrupted."""
        ...


class Pending(Protocol):
    """A call that was started."""

    def result(self, on_progress: Callable[[str], None] | None = None) -> Any:
        """Wait for it. Raises `CallFailed` with a typed failure."""
        ...

    def forget(self) -> None:
        """Nobody wants its result any more; the worker is free when it is done."""
        ...


class Backend(Protocol):
    """Executes leases and calls. `RayBackend` (sweeps/backend.py) and `SimulatedBackend` (sweeps/simulate.py)."""

    @property
    def slots(self) -> int:
        """Leases that run at once."""
        ...

    def run(self, loop: Loop) -> None:
        """Drive the loop until it is over. Ctrl-C raises KeyboardInterrupt after running leases have ended."""
        ...

    def call(self, function: str, payload: Mapping[str, Any], on_progress: Callable[[str], None] | None = None) -> Any:
        """Run `module:function(payload)` on a worker with a trial's resources and return its result.

        The worker stays warm between calls. Raises `CallFailed` with a typed failure.
        """
        ...

    def start(self, function: str, payload: Mapping[str, Any]) -> Pending:
        """Begin a call; up to `slots` of them run at once, each on a worker of its own, and more wait for a free one."""
        ...

    def export(self, numbers: Sequence[Number]) -> None:
        """Let the cluster's monitoring have some numbers; called twice a second at most."""
        ...

    def close(self) -> None:
        """Free everything it started."""
        ...


class Later:
    """A `Pending` for backends without workers: the call is made when its result is asked for, and never if it is not.

    Args:
        call: makes the call.
    """

    def __init__(self, call: Callable[[Callable[[str], None] | None], Any]) -> None:
        self._call = call

    def result(self, on_progress: Callable[[str], None] | None = None) -> Any:
        """Make the call."""
        return self._call(on_progress)

    def forget(self) -> None:
        """Nothing was begun."""


class CallFailed(RuntimeError):
    """A `Backend.call` failed; carries the typed failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
