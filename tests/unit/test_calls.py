"""How stages ask models: once each, with what it cost, and with a place for what has no answer."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipelines import calls, computing
from pipelines.calls import Answers, Calls, Identity, NoAnswer, Role
from pipelines.memo import Cost, LocalMemo, Unanswered

SPEC = {"kind": "known", "name": "m"}


class Known:
    """A kind that is never loaded here: the fake host answers for it."""

    role: ClassVar[Role] = "embedder"
    remote: ClassVar[bool] = False

    @staticmethod
    def identify(spec: Mapping[str, Any]) -> Identity:
        return Identity(1, str(spec["name"]), versions={"lib": str(spec.get("lib", "1"))})


class Elsewhere(Known):
    """An endpoint."""

    remote: ClassVar[bool] = True


class FakeHost:
    """Answers with capitals; `!` has no answer, and `?` fails the batch."""

    def __init__(self) -> None:
        self.asked: list[list[Any]] = []

    def ask(self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        self.asked.append(list(items))
        if "?" in items:
            raise ValueError("no such thing")
        return [
            (Unanswered(f"gave up on {item}") if "!" in item else str(item).upper().encode(), Cost(2.0, len(item), 0.5))
            for item in items
        ]


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(calls.MODELS, "known", f"{__name__}:Known")
    monkeypatch.setitem(calls.MODELS, "elsewhere", f"{__name__}:Elsewhere")


@pytest.fixture
def memo(tmp_path: Path) -> Iterator[LocalMemo]:
    with LocalMemo(tmp_path) as opened:
        yield opened


def test_what_the_memo_has_is_not_asked_again_and_its_cost_is_known(memo: LocalMemo) -> None:
    host = FakeHost()
    first = Calls(host, memo, "first")
    assert first.ask("embed", SPEC, "embed", ["a", "bb"]) == [b"A", b"BB"]
    second = Calls(host, memo, "second")
    assert second.ask("embed", SPEC, "embed", ["bb", "ccc", "a"]) == [b"BB", b"CCC", b"A"]
    assert host.asked == [["a", "bb"], ["ccc"]]
    one, two = first.usage["embed"], second.usage["embed"]
    assert (one.calls, one.computed, one.spent, one.fresh) == (2, 2, Cost(4.0, 3, 1.0), Cost(4.0, 3, 1.0))
    assert (two.calls, two.computed, two.spent, two.fresh) == (3, 1, Cost(6.0, 6, 1.5), Cost(2.0, 3, 0.5))


def test_usage_adds_up_by_stage(memo: LocalMemo) -> None:
    asked = Calls(FakeHost(), memo, "me")
    for items in (["a"], ["b", "a"]):
        asked.ask("embed", SPEC, "embed", items)
    asked.ask("rerank", SPEC, "scores", ["a"])
    assert (asked.usage["embed"].calls, asked.usage["embed"].computed) == (3, 2)
    assert (asked.usage["rerank"].calls, asked.usage["rerank"].computed) == (1, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {**SPEC, "name": "n"}},
        {"spec": {**SPEC, "lib": "2"}},
        {"method": "scores"},
        {"parameters": {"k": 2}},
    ],
)
def test_another_model_method_parameter_or_version_is_another_question(memo: LocalMemo, change: dict[str, Any]) -> None:
    host = FakeHost()
    base: dict[str, Any] = {"spec": SPEC, "method": "embed", "parameters": {"k": 1}}
    for settings in (base, {**base, **change}, base):
        Calls(host, memo, "me").ask(
            "embed", settings["spec"], settings["method"], ["a"], parameters=settings["parameters"]
        )
    assert len(host.asked) == 2


def test_the_role_of_a_model_changes_no_answer(memo: LocalMemo) -> None:
    host = FakeHost()
    for spec in (SPEC, {**SPEC, "role": "judge"}):
        Calls(host, memo, "me").ask("judge", spec, "embed", ["a"])
    assert len(host.asked) == 1


def test_without_a_memo_everything_is_asked_anew_in_one_batch() -> None:
    host = FakeHost()
    asked = Calls(host, None, "probe")
    items = [str(i) for i in range(50)]
    for _ in range(2):
        assert asked.ask("embed", SPEC, "embed", items) == [item.encode() for item in items]
    assert host.asked == [items, items]
    assert (asked.usage["embed"].computed, asked.usage["embed"].fresh.seconds) == (100, 200.0)


@pytest.mark.parametrize("stored", [True, False])
def test_what_has_no_answer_is_none_counted_and_asked_again_by_the_next(memo: LocalMemo, stored: bool) -> None:
    host = FakeHost()
    asked = Calls(host, memo if stored else None, "me")
    assert asked.ask_each("judge", SPEC, "embed", ["a", "b!", "c"]) == [b"A", None, b"C"]
    used = asked.usage["judge"]
    assert (used.calls, used.unanswered, used.reasons) == (3, 1, ("gave up on b!",))
    assert asked.ask_each("judge", SPEC, "embed", ["b!"]) == [None]
    assert host.asked[-1] == ["b!"]
    assert memo.stats().entries == (2 if stored else 0)


def test_where_every_answer_is_needed_a_missing_one_is_an_error_with_its_reason(memo: LocalMemo) -> None:
    with pytest.raises(NoAnswer, match="1 of 2 calls of embed have no answer: gave up on b!"):
        Calls(FakeHost(), memo, "me").ask("embed", SPEC, "embed", ["a", "b!"])


def test_a_failing_batch_gives_its_claims_back(memo: LocalMemo) -> None:
    with pytest.raises(ValueError, match="no such thing"):
        Calls(FakeHost(), memo, "me").ask("embed", SPEC, "embed", ["a", "?"])
    assert Calls(FakeHost(), memo, "other").ask("embed", SPEC, "embed", ["a"]) == [b"A"]


def test_each_answer_of_an_endpoint_is_stored_as_it_comes(memo: LocalMemo) -> None:
    """A kill in the middle loses what was on its way alone: a request's neighbours do not wait for it to be stored."""
    stored: list[int] = []

    class Counting(FakeHost):
        def ask(
            self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]
        ) -> Answers:
            stored.append(memo.stats().entries)
            return super().ask(spec, method, items, parameters)

    host = Counting()
    way = Calls(host, memo, "me")
    spec = {"kind": "elsewhere", "name": "m", "concurrency": 1, "batch_size": 2}
    assert way.ask("generate", spec, "generate", list("abcde")) == [b"A", b"B", b"C", b"D", b"E"]
    assert host.asked == [["a", "b"], ["c", "d"], ["e"]]
    assert stored == [0, 2, 4]


def test_an_endpoint_has_so_many_requests_in_flight_and_no_more(memo: LocalMemo) -> None:
    flying, most, met = [0], [0], threading.Barrier(3, timeout=10)
    counting = threading.Lock()

    class Slow(FakeHost):
        def ask(
            self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]
        ) -> Answers:
            with counting:
                flying[0] += 1
                most[0] = max(most[0], flying[0])
            met.wait()
            with counting:
                flying[0] -= 1
            return super().ask(spec, method, items, parameters)

    way = Calls(Slow(), memo, "me")
    spec = {"kind": "elsewhere", "name": "m", "concurrency": 3}
    assert len(way.ask("generate", spec, "generate", list("abcdef"))) == 6
    assert most[0] == 3


def test_what_an_endpoint_answered_is_kept_where_a_neighbour_failed(memo: LocalMemo) -> None:
    spec = {"kind": "elsewhere", "name": "m", "concurrency": 1}
    with pytest.raises(ValueError, match="no such thing"):
        Calls(FakeHost(), memo, "me").ask("generate", spec, "generate", ["a", "?", "b"])
    host = FakeHost()
    assert Calls(host, memo, "other").ask("generate", spec, "generate", ["a", "b"]) == [b"A", b"B"]
    assert ["a"] not in host.asked


def test_once_the_memo_is_gone_nothing_more_is_paid_for(memo: LocalMemo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed driver takes it along; its workers live on for a moment."""
    met, host, awaited = threading.Barrier(4, timeout=10), FakeHost(), computing.wait

    def gone(entries: object, owner: str) -> None:
        met.wait()
        raise ConnectionError("the memo is gone")

    def late(*asked: Any, **how: Any) -> Any:
        found = awaited(*asked, **how)
        time.sleep(0.1)
        return found

    monkeypatch.setattr(memo, "fulfil", gone)
    monkeypatch.setattr(computing, "wait", late)
    spec = {"kind": "elsewhere", "name": "m", "concurrency": 4}
    with pytest.raises(ConnectionError):
        Calls(host, memo, "me").ask("generate", spec, "generate", list("abcdefghijklmnopqrstuvwxyz"))
    assert len(host.asked) == 4, "what was on its way"


def test_a_failure_waits_for_what_is_on_its_way_before_it_gives_claims_back(memo: LocalMemo) -> None:
    """Else another caller would pay for the same answer meanwhile."""
    failed, spec = threading.Event(), {"kind": "elsewhere", "name": "m", "concurrency": 2}

    class Slow(FakeHost):
        def ask(
            self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]
        ) -> Answers:
            if items == ["?"]:
                failed.set()
            elif items == ["slow"]:
                failed.wait(10)
                time.sleep(0.05)
            return super().ask(spec, method, items, parameters)

    with pytest.raises(ValueError, match="no such thing"):
        Calls(Slow(), memo, "me").ask("generate", spec, "generate", ["slow", "?", "c", "d", "e"])
    host = FakeHost()
    assert Calls(host, memo, "other").ask("generate", spec, "generate", ["slow"]) == [b"SLOW"]
    assert host.asked == []


def test_lists_asked_by_many_threads_are_computed_once(memo: LocalMemo) -> None:
    host = FakeHost()
    items = [f"text {i}" for i in range(300)]
    found: list[list[bytes]] = []
    threads = [
        threading.Thread(
            target=lambda i=i: found.append(Calls(host, memo, f"t{i}").ask("embed", SPEC, "embed", items))  # type: ignore[misc]
        )
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [[item.upper().encode() for item in items]] * 6
    assert sorted(item for batch in host.asked for item in batch) == sorted(items)
    assert memo.stats().repeated == 0


WORKER = """
import sys, time
from pipelines import calls, computing
from pipelines.calls import Calls
from pipelines.memo import Cost, LocalMemo
sys.path.insert(0, {tests!r})
import test_calls
calls.MODELS["known"] = "test_calls:Known"
with LocalMemo(sys.argv[1]) as memo:
    asked = Calls(test_calls.FakeHost(), memo, "w")
    asked.ask("embed", test_calls.SPEC, "embed", ["x", "y"])
    print(asked.usage["embed"].computed, "torch" in sys.modules)
"""


def test_another_process_finds_what_one_has_stored_and_loads_no_torch(tmp_path: Path) -> None:
    program = WORKER.format(tests=str(Path(__file__).parent))
    said = [
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert [text.split() for text in said] == [["2", "False"], ["0", "False"]]
