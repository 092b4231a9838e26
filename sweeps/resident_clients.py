"""What trials hold of the memo and of resident models on Ray: names that find the actors, so that they pickle anywhere.

An actor that dies is started again by Ray, and what was asked of it is asked again: the memo's calls may be repeated
without harm, and what a model had not answered was never stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.calls import Answers, kind_of, role_of
from pipelines.memo import Claim, Cost, Entry, MemoStats, Unanswered
from pipelines.stage import OutOfMemory, UserError
from sweeps.failures import Failure

NAMESPACE = "stockpot"
DEATHS = 3
"""A request whose host died so often under it is given up: it may be what kills it."""
RESTART_SECONDS = 180.0
"""How long a host may take to come back."""


class HostFailed(RuntimeError):
    """A resident model failed; the message says how, the host's log has the traceback."""


@dataclass(frozen=True)
class Actors:
    """Names of the actors of one driver.

    Attributes:
        memo: the memo's.
        shared: of the process that every other role and all endpoints share.
        roles: role -> its process, where it has one of its own.
    """

    memo: str
    shared: str
    roles: Mapping[str, str]

    def of(self, spec: Mapping[str, Any]) -> str:
        """The actor that answers a model spec."""
        if kind_of(spec).remote:
            return self.shared
        return self.roles.get(role_of(spec), self.shared)


class RayMemo:
    """The memo of the driver's machine; implements `pipelines.memo.Memo`.

    Args:
        actors: of the driver.
        caller: the lease, so that the driver knows it from a stalled one.
    """

    def __init__(self, actors: Actors, caller: str) -> None:
        self._actor = find(actors.memo)
        self._caller = caller

    def claim(self, keys: Sequence[str], owner: str, most: int | None = None) -> list[Claim]:
        """See `Memo`."""
        return [_claim(row) for row in self._ask("claim", list(keys), owner, most)]

    def renew(self, keys: Sequence[str], owner: str) -> None:
        """See `Memo`."""
        self._ask("renew", list(keys), owner)

    def fulfil(self, entries: Sequence[Entry], owner: str) -> None:
        """See `Memo`."""
        self._ask("fulfil", [(e.key, e.value, astuple(e.cost), e.kind) for e in entries], owner)

    def release(self, keys: Sequence[str], owner: str) -> None:
        """See `Memo`."""
        self._ask("release", list(keys), owner)

    def stats(self) -> MemoStats:
        """See `Memo`."""
        found: MemoStats = self._ask("stats")
        return found

    def _ask(self, method: str, *values: Any) -> Any:
        return again(lambda: self._actor.serve.remote(self._caller, method, *values), self._actor)


class RayHosts:
    """Resident models of the cluster; implements `pipelines.calls.Host`."""

    def __init__(self, actors: Actors) -> None:
        self._actors = actors
        self._found: dict[str, Any] = {}

    def ask(self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """See `Host`.

        Raises:
            UserError: where the model can't be found or loaded, or an endpoint's key or address is wrong.
            OutOfMemory: where a batch does not fit.
            HostFailed: for whatever else went wrong in the host.
        """
        name = self._actors.of(spec)
        if name not in self._found:
            self._found[name] = find(name)
        actor = self._found[name]
        answers, failure = again(lambda: actor.ask.remote(dict(spec), method, list(items), dict(parameters)), actor)
        if failure is not None:
            raise error_of(failure)
        return [_answer(row) for row in answers]


def _claim(row: tuple[Any, ...]) -> Claim:
    state, value, cost = row
    return Claim(state, value, None if cost is None else Cost(*cost))


def _answer(row: tuple[Any, ...]) -> tuple[bytes | Unanswered, Cost]:
    value, cost = row
    return (value if isinstance(value, bytes) else Unanswered(value)), Cost(*cost)


def claim_row(claim: Claim) -> tuple[Any, ...]:
    """A claim on the wire, as plain values: Ray takes ten times as long over thousands of objects."""
    return claim.state, claim.value, None if claim.cost is None else astuple(claim.cost)


def answer_row(answer: tuple[bytes | Unanswered, Cost]) -> tuple[Any, ...]:
    """An answer on the wire; a text is the reason why there is none."""
    value, cost = answer
    return (value.reason if isinstance(value, Unanswered) else value), astuple(cost)


def astuple(cost: Cost) -> tuple[float, int, float]:
    """A cost as plain values."""
    return cost.seconds, cost.tokens, cost.price


def error_of(failure: Failure) -> Exception:
    """A host's failure as the exception that has its kind on this side."""
    kinds: dict[str, type[Exception]] = {"user": UserError, "oom": OutOfMemory}
    return kinds.get(failure.kind, HostFailed)(failure.message)


def find(name: str) -> Any:
    """An actor by its name."""
    import ray

    return ray.get_actor(name, namespace=NAMESPACE)


def again(ask: Callable[[], Any], actor: Any) -> Any:
    """The answer to a request, asked again when the actor died under it and is back.

    Raises:
        ray.exceptions.RayActorError: when it does not come back, or died under the request each time.
    """
    import ray

    for death in range(1, DEATHS + 1):
        try:
            return ray.get(ask())
        except ray.exceptions.RayActorError:
            if death == DEATHS or not _came_back(actor):
                raise
    raise AssertionError("the loop returns or raises")


def _came_back(actor: Any) -> bool:
    import ray

    until = time.monotonic() + RESTART_SECONDS
    while time.monotonic() < until:
        try:
            ray.get(actor.ready.remote(), timeout=RESTART_SECONDS)
            return True
        except ray.exceptions.GetTimeoutError:
            return False
        except ray.exceptions.RayActorError:
            time.sleep(0.25)
    return False


def open_memo_client(actors: Actors, caller: str) -> RayMemo:
    """For `Services.memo`, by `functools.partial`."""
    return RayMemo(actors, caller)


def open_hosts_client(actors: Actors) -> RayHosts:
    """For `Services.hosts`, by `functools.partial`."""
    return RayHosts(actors)
