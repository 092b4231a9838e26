"""Workers for calls where places are few: none waits for ever. A small machine stands in for Ray."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps import callers
from sweeps.callers import CallActor, Callers
from sweeps.loop import CallFailed


class SmallRay:
    """Places on nodes, and actors that wait for one: a call is done as soon as its actor has a place, `busy` ones never.

    An actor answers only once it has a place, as on Ray; the clock goes on with every wait.
    """

    exceptions = SimpleNamespace(RayError=OSError)

    def __init__(self, places: int) -> None:
        self.places = places
        self.waiting: list[Actor] = []
        self.placed: list[Actor] = []
        self.now = 0.0

    def is_initialized(self) -> bool:
        return True

    def actor(self, number: int) -> CallActor:
        self.waiting.append(Actor(self))
        return CallActor(self.waiting[-1], ready=self.waiting[-1].ready.remote(), since=self.now)

    def kill(self, actor: Actor) -> None:
        for actors in (self.waiting, self.placed):
            if actor in actors:
                actors.remove(actor)

    def wait(self, futures: Sequence[Future], num_returns: int = 1, timeout: float | None = None) -> tuple[Any, Any]:
        self.now += timeout or 0.0
        assert self.now < 1000, "waits for ever"
        while self.waiting and len(self.placed) < self.places:
            self.placed.append(self.waiting.pop(0))
        done = [future for future in futures if future.done]
        return done, [future for future in futures if not future.done]

    def get(self, future: Future) -> Any:
        assert future.done
        if isinstance(future.answer, Exception):
            raise future.answer
        return future.answer


class Future:
    """What an actor will answer; an answer once given stays."""

    def __init__(self, actor: Actor, answer: Any) -> None:
        self.actor, self.answer, self._done = actor, answer, False

    @property
    def done(self) -> bool:
        self._done = self._done or (self.actor in self.actor.ray.placed and self.answer != "busy")
        return self._done


class Actor:
    """A process; `call` is answered with the function's name, `busy` never, `lost` with Ray's error."""

    def __init__(self, ray: SmallRay) -> None:
        self.ray = ray
        self.ready = SimpleNamespace(remote=lambda: Future(self, True))
        self.poll = SimpleNamespace(remote=lambda since: Future(self, ["on the way"][since:]))
        answers = {"busy": "busy", "lost": OSError("gone")}
        self.call = SimpleNamespace(
            remote=lambda function, payload: Future(self, answers.get(function, (function, None)))
        )


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> SmallRay:
    small = SmallRay(2)
    monkeypatch.setattr(callers, "ray", small)
    monkeypatch.setattr(callers, "time", SimpleNamespace(monotonic=lambda: small.now))
    return small


def test_a_call_gets_the_place_of_one_that_is_done_after_a_node_was_lost(ray: SmallRay) -> None:
    pool = Callers(ray.actor, lambda: 3, lambda: None)
    calls = [pool.start(name, {}) for name in "abc"]
    assert calls[2].result() == "c"
    assert calls[0].result() == "a", "its worker was ended, and its answer was there"


def test_a_call_that_waits_for_a_place_is_checked(ray: SmallRay) -> None:
    ray.places = 0

    def check() -> None:
        if ray.now > 100:
            raise KeyError("lost")

    said: list[str] = []
    pool = Callers(ray.actor, lambda: 3, check)
    with pytest.raises(KeyError):
        pool.start("a", {}).result(said.append)
    assert said == []


def test_a_forgotten_call_without_a_place_makes_room(ray: SmallRay) -> None:
    pool = Callers(ray.actor, lambda: 3, lambda: None)
    for _ in range(3):
        pool.start("busy", {}).forget()
    call = pool.start("a", {})
    ray.places = 3
    assert call.result() == "a"


def test_a_worker_at_work_is_left_alone(ray: SmallRay) -> None:
    def check() -> None:
        if ray.now > 100:
            raise KeyError("lost")

    pool = Callers(ray.actor, lambda: 3, check)
    for _ in range(2):
        pool.start("busy", {})
    with pytest.raises(KeyError):
        pool.start("a", {}).result()
    assert len(ray.placed) == 2


def test_what_a_call_says_is_told_once_and_a_lost_worker_is_not_asked_again(ray: SmallRay) -> None:
    heard: list[str] = []
    pool = Callers(ray.actor, lambda: 1, lambda: None if ray.now < 50 else _gone())
    with pytest.raises(KeyError):
        pool.start("busy", {}).result(heard.append)
    assert heard == ["on the way"]
    ray.now = 0.0
    pool.close()
    with pytest.raises(CallFailed):
        pool.start("lost", {}).result()
    assert ray.placed == []


def _gone() -> None:
    raise KeyError("lost")
