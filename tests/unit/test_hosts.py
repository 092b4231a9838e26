"""Resident models of one process: loaded once, batched, one at a time, and a failing batch fails its callers alone."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

import pytest

from pipelines import calls, hosts
from pipelines.calls import Identity, Role, make_calls, role_of
from pipelines.hosts import LocalHost
from pipelines.memo import Cost
from pipelines.stage import Devices, Services, UserError

LOADED: list[str] = []
GONE: list[str] = []
BATCHES: list[tuple[str, list[Any]]] = []
INSIDE: list[int] = [0, 0]
_lock = threading.Lock()


class Echo:
    """A model that answers with its item, slowly where told to, and fails where an item says so."""

    role: ClassVar[Role] = "embedder"
    remote: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self._name = name

    @staticmethod
    def identify(spec: Mapping[str, Any]) -> Identity:
        return Identity(1, str(spec["name"]))

    @classmethod
    def load(cls, spec: Mapping[str, Any], devices: Devices, services: Services) -> Echo:
        LOADED.append(spec["name"])
        if spec.get("broken"):
            raise UserError("there is no such model")
        return cls(spec["name"])

    def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> list[tuple[bytes, Cost]]:
        with _lock:
            INSIDE[0] += 1
            INSIDE[1] = max(INSIDE)
            BATCHES.append((self._name, list(items)))
        time.sleep(parameters.get("seconds", 0.0))
        with _lock:
            INSIDE[0] -= 1
        if any(item == "bad" for item in items):
            raise ValueError("a bad item")
        if method == "short":
            return []
        return [(f"{self._name}:{item}".encode(), Cost(1.0)) for item in items]

    def __del__(self) -> None:
        GONE.append(self._name)


class Far(Echo):
    """An endpoint."""

    remote: ClassVar[bool] = True
    role: ClassVar[Role] = "generator"


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(calls.MODELS, "echo", f"{__name__}:Echo")
    monkeypatch.setitem(calls.MODELS, "far", f"{__name__}:Far")
    gc.collect()  # errors of the test before hold their models
    for seen in (LOADED, GONE, BATCHES):
        seen.clear()
    INSIDE[:] = [0, 0]


@pytest.fixture
def host() -> Iterator[LocalHost]:
    made = LocalHost(kept=2, gather_seconds=0.05)
    yield made
    made.close()


def echo(name: str = "a", **more: Any) -> dict[str, Any]:
    return {"kind": "echo", "name": name, **more}


def values(answers: Sequence[tuple[bytes, Cost]]) -> list[str]:
    return [value.decode() for value, _ in answers]


def test_a_model_is_loaded_when_first_asked_and_once(host: LocalHost) -> None:
    assert host.loaded() == 0
    assert values(host.ask(echo(), "embed", ["x", "y"], {})) == ["a:x", "a:y"]
    assert values(host.ask(echo(role="judge"), "embed", ["z"], {})) == ["a:z"]
    assert (LOADED, host.loaded()) == (["a"], 1)


def test_callers_within_milliseconds_share_a_batch(host: LocalHost) -> None:
    asked = [host.submit(echo(), "embed", [i, i], {}) for i in range(5)]
    other = host.submit(echo(), "embed", ["o"], {"seconds": 0.01})
    assert [values(f.result(10)) for f in asked] == [[f"a:{i}"] * 2 for i in range(5)]
    assert values(other.result(10)) == ["a:o"]
    assert BATCHES == [("a", [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]), ("a", ["o"])]


def test_a_shared_batch_has_a_bound_and_one_callers_items_stay_together(
    host: LocalHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "BATCH_ITEMS", 4)
    asked = [host.submit(echo(), "embed", list(range(n)), {}) for n in (3, 9, 1, 2)]
    assert [len(f.result(10)) for f in asked] == [3, 9, 1, 2]
    assert [len(items) for _, items in BATCHES] == [4, 9, 2]


def test_models_of_this_process_compute_one_at_a_time(host: LocalHost) -> None:
    asked = [host.submit(echo(name), "embed", [i], {"seconds": 0.02}) for i in range(4) for name in ("a", "b")]
    for future in asked:
        future.result(10)
    assert INSIDE[1] == 1


def test_endpoints_are_asked_at_once(host: LocalHost) -> None:
    barrier = threading.Barrier(3, timeout=10)

    class Meeting(Far):
        def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> list[tuple[bytes, Cost]]:
            barrier.wait()
            return super().answer(method, items, parameters)

    sys.modules[__name__].Meeting = Meeting  # type: ignore[attr-defined]
    calls.MODELS["far"] = f"{__name__}:Meeting"
    spec = {"kind": "far", "name": "f"}
    asked = [host.submit(spec, "generate", [i], {}) for i in range(3)]
    assert [values(f.result(10)) for f in asked] == [["f:0"], ["f:1"], ["f:2"]]
    assert (LOADED, host.loaded()) == (["f"], 0)


def test_a_failing_batch_fails_only_its_caller(host: LocalHost) -> None:
    asked = [host.submit(echo(), "embed", [item], {}) for item in ("x", "bad", "y")]
    assert values(asked[0].result(10)) == ["a:x"]
    assert values(asked[2].result(10)) == ["a:y"]
    with pytest.raises(ValueError, match="a bad item"):
        asked[1].result(10)
    assert values(host.ask(echo(), "embed", ["z"], {})) == ["a:z"]
    assert LOADED == ["a"]


def test_a_model_that_answers_too_little_is_an_error(host: LocalHost) -> None:
    with pytest.raises(ValueError, match="got 0 for 2"):
        host.ask(echo(), "short", ["x", "y"], {})


def test_a_model_that_can_not_be_loaded_fails_its_callers_and_is_tried_again(host: LocalHost) -> None:
    asked: list[Future[Any]] = [host.submit(echo(broken=True), "embed", [i], {}) for i in range(2)]
    for future in asked:
        with pytest.raises(UserError, match="no such model"):
            future.result(10)
    with pytest.raises(UserError, match="no such model"):
        host.ask(echo(broken=True), "embed", ["x"], {})
    assert host.loaded() == 0
    assert values(host.ask(echo(), "embed", ["x"], {})) == ["a:x"]


def test_the_model_asked_longest_ago_makes_room(host: LocalHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "LINGER_SECONDS", 0.02)
    for name in ("a", "b", "a", "c"):
        host.ask(echo(name), "embed", ["x"], {})
        assert host.loaded() <= 2
    assert GONE == ["b"]
    host.ask(echo("a"), "embed", ["x"], {})
    assert LOADED == ["a", "b", "c"]
    host.ask(echo("b"), "embed", ["x"], {})
    assert (LOADED, GONE) == (["a", "b", "c", "b"], ["b", "c"])


def test_a_model_that_is_asked_without_a_pause_does_not_keep_an_idle_one_from_making_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosts, "LINGER_SECONDS", 0.0)
    host = LocalHost(kept=2, gather_seconds=0.0)
    over = threading.Event()

    def keep_asking() -> None:
        waiting: list[Future[Any]] = []
        while not over.is_set():
            waiting = [*waiting[-2:], host.submit(echo("busy"), "embed", ["x"], {"seconds": 0.002})]
            waiting[0].result(10)

    thread = threading.Thread(target=keep_asking)
    thread.start()
    for i in range(20):
        assert values(host.ask(echo(f"m{i}"), "embed", ["x"], {})) == [f"m{i}:x"]
    over.set()
    thread.join(10)
    host.close()


def test_more_models_than_room_asked_by_many_threads_all_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "LINGER_SECONDS", 0.005)
    host = LocalHost(kept=1, gather_seconds=0.0)
    results: dict[tuple[str, int], list[str]] = {}

    def work(name: str, i: int) -> None:
        results[name, i] = values(host.ask(echo(name), "embed", [i], {}))

    threads = [threading.Thread(target=work, args=(name, i)) for i in range(5) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {(name, i): [f"{name}:{i}"] for i in range(5) for name in "abc"}
    assert INSIDE[1] == 1
    host.close()


def test_a_closed_host_refuses_and_leaves_no_thread(host: LocalHost) -> None:
    before = set(threading.enumerate())
    host.ask(echo(), "embed", ["x"], {})
    host.submit({"kind": "far", "name": "f"}, "generate", ["x"], {}).result(10)
    host.close()
    with pytest.raises(RuntimeError, match="closed"):
        host.ask(echo(), "embed", ["x"], {})
    assert not set(threading.enumerate()) - before
    assert GONE == ["a"]


def test_torch_is_held_to_the_devices_threads(host: LocalHost, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []

    class Torch:
        set_num_threads = staticmethod(said.append)

    monkeypatch.setitem(sys.modules, "torch", Torch)
    made = LocalHost(Devices(cpus=3.5), gather_seconds=0.0)
    made.ask(echo(), "embed", ["x"], {})
    made.close()
    assert said == [3, 3]


def test_role_is_the_kinds_or_the_specs_own() -> None:
    assert role_of(echo()) == "embedder"
    assert role_of({"kind": "far", "name": "f"}) == "generator"
    assert role_of({"kind": "far", "name": "f", "role": "judge"}) == "judge"


def test_calls_without_hosts_use_this_processs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_HERE", {})
    for _ in range(2):
        made = make_calls(Services(), "me")
        assert made.ask("embed", echo(), "embed", ["x"]) == [b"a:x"]
        assert made.usage["embed"].computed == 1
    assert LOADED == ["a"]
    for host in hosts._HERE.values():
        host.close()
