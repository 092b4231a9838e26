import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from pipelines.memo import Call, Cost, LocalMemo, Memo, compute, open_memo

COST = Cost(1.5, 20, 0.25)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["local"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Callable[[], Memo]]:
    """Opens the same store, again and again: a second implementation is one more parameter and one more branch."""
    opened: list[LocalMemo] = []

    def local() -> Memo:
        opened.append(LocalMemo(tmp_path / ".memo", claim_seconds=30, clock=clock))
        return opened[-1]

    yield {"local": local}[request.param]
    for memo in opened:
        memo.close()


@pytest.fixture
def memo(open_store: Callable[[], Memo]) -> Memo:
    return open_store()


def states(memo: Memo, keys: Sequence[str], owner: str) -> list[str]:
    return [claim.state for claim in memo.claim(keys, owner)]


class TestContract:
    """What holds for every memo."""

    def test_a_key_is_computed_once(self, memo: Memo) -> None:
        assert states(memo, ["k"], "a") == ["yours"]
        assert states(memo, ["k"], "b") == ["wait"]
        memo.fulfil("k", "a", b"value", COST)
        for owner in ("a", "b"):
            [claim] = memo.claim(["k"], owner)
            assert (claim.state, claim.value, claim.cost) == ("hit", b"value", COST)

    def test_answers_come_in_order_and_keys_are_apart(self, memo: Memo) -> None:
        memo.claim(["x"], "a")
        memo.fulfil("x", "a", b"", Cost())
        memo.claim(["y"], "other")
        assert states(memo, ["z", "x", "y", "z"], "a") == ["yours", "hit", "wait", "yours"]
        assert memo.claim(["x"], "a")[0].value == b""

    def test_asking_for_nothing_is_answered_with_nothing(self, memo: Memo) -> None:
        assert memo.claim([], "a") == []

    def test_more_keys_than_one_query_takes(self, memo: Memo) -> None:
        keys = [f"k{i}" for i in range(1203)]
        assert set(states(memo, keys, "a")) == {"yours"}
        for key in keys[::2]:
            memo.fulfil(key, "a", key.encode(), Cost())
        claims = memo.claim(keys, "b")
        assert [c.value for c in claims] == [k.encode() if i % 2 == 0 else None for i, k in enumerate(keys)]
        assert {c.state for c in claims[1::2]} == {"wait"}

    def test_a_released_claim_is_anybodys(self, memo: Memo) -> None:
        memo.claim(["k"], "a")
        memo.release("k", "b")
        assert states(memo, ["k"], "b") == ["wait"]
        memo.release("k", "a")
        assert states(memo, ["k"], "b") == ["yours"]
        memo.release("never claimed", "a")

    def test_a_dead_owners_claim_expires(self, memo: Memo, clock: Clock) -> None:
        memo.claim(["k"], "dead")
        clock.now += 29
        assert states(memo, ["k"], "b") == ["wait"]
        clock.now += 2
        assert states(memo, ["k"], "b") == ["yours"]
        assert states(memo, ["k"], "dead") == ["wait"]

    def test_claiming_again_renews(self, memo: Memo, clock: Clock) -> None:
        memo.claim(["k"], "a")
        clock.now += 29
        assert states(memo, ["k"], "a") == ["yours"]
        clock.now += 29
        assert states(memo, ["k"], "b") == ["wait"]

    def test_the_first_value_stays(self, memo: Memo, clock: Clock) -> None:
        memo.claim(["k"], "slow")
        clock.now += 31
        memo.claim(["k"], "quick")
        memo.fulfil("k", "quick", b"first", Cost())
        memo.fulfil("k", "slow", b"second", Cost())
        assert memo.claim(["k"], "c")[0].value == b"first"

    def test_values_survive_reopening_and_claims_do_not_block(self, open_store: Callable[[], Memo]) -> None:
        first = open_store()
        first.claim(["k", "left"], "a")
        first.fulfil("k", "a", os.urandom(3_000_000), COST)
        value = first.claim(["k"], "a")[0].value
        first.close()  # type: ignore[attr-defined]
        second = open_store()
        assert second.claim(["k"], "b")[0].value == value
        assert states(second, ["left"], "b") == ["yours"]

    def test_statistics_count(self, memo: Memo) -> None:
        memo.claim(["a", "b", "a"], "x")
        memo.claim(["b"], "y")
        memo.fulfil("a", "x", b"12345", COST)
        memo.claim(["a", "a"], "y")
        memo.claim(["a"], "y")
        stats = memo.stats()
        assert (stats.hits, stats.misses, stats.waits, stats.corrupt) == (2, 2, 1, 0)
        assert (stats.entries, stats.bytes) == (1, 5)
        assert stats.saved == Cost(3.0, 40, 0.5)

    def test_threads_compute_each_key_once(self, memo: Memo) -> None:
        computed: list[str] = []

        def answer(calls: list[Call]) -> list[tuple[bytes, Cost]]:
            computed.extend(c.input for c in calls)
            time.sleep(0.002)
            return [(c.input.encode(), Cost()) for c in calls]

        results: dict[int, list[bytes]] = {}
        orders = [random.Random(i).sample(range(40), 40) for i in range(8)]

        def work(i: int) -> None:
            results[i] = compute(memo, [call(str(k)) for k in orders[i]], answer, f"t{i}", poll_seconds=0.001)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(computed, key=int) == [str(i) for i in range(40)]
        assert all(results[i] == [str(k).encode() for k in orders[i]] for i in range(8))


def call(text: str, **changes: object) -> Call:
    settings: dict[str, object] = {
        "kind": "generate",
        "function": 1,
        "model": "m",
        "tokenizer": "t",
        "dtype": "float32",
        "input": text,
        "parameters": {"max_new_tokens": 8},
    }
    return Call(**(settings | changes))  # type: ignore[arg-type]


def test_the_key_depends_on_everything() -> None:
    changes: list[dict[str, object]] = [
        {},
        {"kind": "judge"},
        {"function": 2},
        {"model": "n"},
        {"tokenizer": "u"},
        {"dtype": "bfloat16"},
        {"input": ["x"]},
        {"parameters": {"max_new_tokens": 9}},
        {"seed": 0},
    ]
    assert len({call("x", **c).key for c in changes}) == len(changes)
    ordered, turned = {"a": 1, "b": [2]}, {"b": [2], "a": 1}
    assert call("x", parameters=ordered).key == call("x", parameters=turned).key
    with pytest.raises(ValueError, match="not JSON compliant"):
        call("x", parameters={"t": float("nan")}).key  # noqa: B018


class TestCompute:
    def test_computes_misses_in_one_batch_and_in_order(self, memo: Memo) -> None:
        batches: list[list[str]] = []

        def answer(calls: list[Call]) -> list[tuple[bytes, Cost]]:
            batches.append([c.input for c in calls])
            return [(c.input.upper().encode(), COST) for c in calls]

        assert compute(memo, [call(x) for x in "abca"], answer, "me") == [b"A", b"B", b"C", b"A"]
        assert compute(memo, [call(x) for x in "bdb"], answer, "me") == [b"B", b"D", b"B"]
        assert batches == [["a", "b", "c"], ["d"]]
        assert compute(memo, [], answer, "me") == []

    def test_an_error_gives_every_claim_back(self, memo: Memo) -> None:
        def fail(calls: list[Call]) -> list[tuple[bytes, Cost]]:
            raise SystemExit

        with pytest.raises(SystemExit):
            compute(memo, [call("a"), call("b")], fail, "me")
        assert states(memo, [call("a").key, call("b").key], "other") == ["yours", "yours"]

    def test_a_wrong_number_of_answers_is_an_error(self, memo: Memo) -> None:
        with pytest.raises(ValueError, match="got 1 for 2"):
            compute(memo, [call("a"), call("b")], lambda calls: [(b"", Cost())], "me")
        assert states(memo, [call("a").key], "other") == ["yours"]

    def test_takes_over_from_a_dead_owner(self, memo: Memo, clock: Clock) -> None:
        memo.claim([call("a").key], "dead")
        timer = threading.Timer(0.05, lambda: setattr(clock, "now", clock.now + 31))
        timer.start()
        values = compute(memo, [call("a")], lambda calls: [(b"v", Cost())] * len(calls), "me", poll_seconds=0.005)
        timer.join()
        assert values == [b"v"]

    def test_computes_its_own_before_it_waits(self, memo: Memo) -> None:
        """Two callers that hold what the other wants would wait for ever otherwise."""
        memo.claim([call("b").key], "other")

        def answer(calls: list[Call]) -> list[tuple[bytes, Cost]]:
            memo.fulfil(call("b").key, "other", b"theirs", Cost())
            return [(b"mine", Cost())] * len(calls)

        assert compute(memo, [call("a"), call("b")], answer, "me") == [b"mine", b"theirs"]


def fill(folder: Path, count: int = 40) -> dict[str, bytes]:
    values = {f"key-{i:03d}": bytes([i]) * (50 + 97 * i) for i in range(count)}
    with LocalMemo(folder) as memo:
        for key, value in values.items():
            memo.fulfil(key, "a", value, COST, "generate")
    return values


@pytest.mark.parametrize(
    "damage",
    [
        "value = x'00'",
        "value = 'text'",
        "value = (SELECT value FROM entries WHERE key = 'key-008')",
        "value = x'', checksum = x''",
        "checksum = x'00'",
        "checksum = 7",
        "seconds = 9",
        "tokens = 'many'",
        "tokens = 21",
        "price = x'ff'",
        "value = CAST(x'ff' AS TEXT)",
    ],
)
def test_a_damaged_entry_is_a_miss_with_a_warning_and_replaced(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = fill(tmp_path)
    db = sqlite3.connect(tmp_path / "memo.sqlite")
    assert db.execute(f"UPDATE entries SET {damage} WHERE key = 'key-007'").rowcount == 1
    db.commit()
    db.close()
    with LocalMemo(tmp_path) as memo:
        assert states(memo, ["key-006", "key-007", "key-008"], "b") == ["hit", "yours", "hit"]
        assert "key-007" in caplog.text
        assert memo.stats().corrupt == 1
        memo.fulfil("key-007", "b", values["key-007"], COST)
        assert memo.claim(["key-007"], "c")[0].value == values["key-007"]
        assert memo.stats().entries == len(values)


@pytest.mark.parametrize("seed", [*range(100), 971])
def test_no_damaged_byte_gives_a_wrong_value_or_an_error(seed: int, tmp_path: Path) -> None:
    values = fill(tmp_path)
    path = tmp_path / "memo.sqlite"
    rng = random.Random(seed)
    body = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 5, 50, 500])):
        at = rng.randrange(100 if seed % 4 == 0 else len(body))
        body[at] = rng.randrange(256)
    if seed % 5 == 0:
        del body[rng.randrange(len(body)) :]
    path.write_bytes(body)
    with LocalMemo(tmp_path) as memo:
        claims = memo.claim(list(values), "b")
        for (key, value), claim in zip(values.items(), claims, strict=True):
            if claim.state == "hit":
                assert claim.value == value
                assert claim.cost == COST
            else:
                assert claim.state == "yours"
                memo.fulfil(key, "b", value, COST)
        for key, value in values.items():
            [claim] = memo.claim([key], "b")
            if claim.state != "hit":  # the page was found broken while it was written: what is left works
                memo.fulfil(key, "b", value, COST)
                [claim] = memo.claim([key], "b")
            assert claim.value == value


def test_what_is_no_database_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "memo.sqlite").write_bytes(b"garbage" * 1000)
    with LocalMemo(tmp_path) as memo:
        assert states(memo, ["k"], "a") == ["yours"]
        assert memo.stats().corrupt == 1
    [kept] = tmp_path.glob("memo.sqlite.corrupt-*")
    assert kept.read_bytes().startswith(b"garbage")
    assert kept.name in caplog.text


def test_a_second_process_keeps_what_the_first_has_mended(tmp_path: Path) -> None:
    values = fill(tmp_path)
    first, second = LocalMemo(tmp_path), LocalMemo(tmp_path)
    try:
        error = sqlite3.DatabaseError("database disk image is malformed")
        first._db.close()
        first._set_aside(error)
        first.fulfil("new", "a", b"new", COST)
        second._db.close()
        second._reopen(error)
        assert second.claim(["new"], "b")[0].value == b"new"
        assert states(second, list(values)[:2], "b") == ["yours", "yours"]
    finally:
        first.close()
        second.close()


def test_a_closed_memo_says_so_and_leaves_its_file(tmp_path: Path) -> None:
    memo = LocalMemo(tmp_path)
    memo.close()
    with pytest.raises(sqlite3.ProgrammingError):
        memo.claim(["k"], "a")
    assert [p.name for p in tmp_path.iterdir()] == ["memo.sqlite"]


def test_a_store_that_can_not_be_written_costs_an_answer_not_the_trial(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalMemo(tmp_path) as memo:
        memo.claim(["k"], "a")
        memo._db.execute("PRAGMA query_only = ON")
        memo.fulfil("k", "a", b"v", COST)
        assert "readonly" in caplog.text
        assert states(memo, ["k"], "b") == ["yours"]


def test_two_processes_share_entries(tmp_path: Path) -> None:
    with LocalMemo(tmp_path) as here, LocalMemo(tmp_path) as there:
        here.fulfil("k", "a", b"v", COST)
        assert there.claim(["k"], "b")[0].value == b"v"


WRITER = """
import sys
from pipelines.memo import Cost, LocalMemo
memo = LocalMemo(sys.argv[1])
for i in range(100000):
    memo.fulfil(f"k{i}", "w", str(i).encode() * 400, Cost(1.0))
    print(i, flush=True)
"""


def test_what_fulfil_returned_from_survives_kill_9(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 150:
            break
    process.send_signal(signal.SIGKILL)
    said = 150 + sum(1 for line in process.stdout if line.endswith("\n"))
    process.wait()
    with LocalMemo(tmp_path) as memo:
        claims = memo.claim([f"k{i}" for i in range(said + 1)], "b")
        assert [c.value for c in claims] == [str(i).encode() * 400 for i in range(said + 1)]
        assert memo.stats().corrupt == 0


def test_open_memo_pickles_as_a_callable(tmp_path: Path) -> None:
    import pickle

    opener = pickle.loads(pickle.dumps(partial(open_memo, tmp_path / "deep" / ".memo")))
    with opener() as memo:
        assert states(memo, ["k"], "a") == ["yours"]
