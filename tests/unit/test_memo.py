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

from pipelines import computing
from pipelines.computing import Settled, compute, settle
from pipelines.memo import Call, Cost, Entry, LocalMemo, Memo, Unanswered, open_memo

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


def put(memo: Memo, key: str, owner: str, value: bytes, cost: Cost, kind: str = "") -> None:
    memo.fulfil([Entry(key, value, cost, kind)], owner)


def states(memo: Memo, keys: Sequence[str], owner: str) -> list[str]:
    return [claim.state for claim in memo.claim(keys, owner)]


class TestContract:
    """What holds for every memo."""

    def test_a_key_is_computed_once(self, memo: Memo) -> None:
        assert states(memo, ["k"], "a") == ["yours"]
        assert states(memo, ["k"], "b") == ["wait"]
        put(memo, "k", "a", b"value", COST)
        for owner in ("a", "b"):
            [claim] = memo.claim(["k"], owner)
            assert (claim.state, claim.value, claim.cost) == ("hit", b"value", COST)

    def test_answers_come_in_order_and_keys_are_apart(self, memo: Memo) -> None:
        memo.claim(["x"], "a")
        put(memo, "x", "a", b"", Cost())
        memo.claim(["y"], "other")
        assert states(memo, ["z", "x", "y", "z"], "a") == ["yours", "hit", "wait", "yours"]
        assert memo.claim(["x"], "a")[0].value == b""

    def test_asking_for_nothing_is_answered_with_nothing(self, memo: Memo) -> None:
        assert memo.claim([], "a") == []

    def test_more_keys_than_one_query_takes(self, memo: Memo) -> None:
        keys = [f"k{i}" for i in range(1203)]
        assert set(states(memo, keys, "a")) == {"yours"}
        for key in keys[::2]:
            put(memo, key, "a", key.encode(), Cost())
        claims = memo.claim(keys, "b")
        assert [c.value for c in claims] == [k.encode() if i % 2 == 0 else None for i, k in enumerate(keys)]
        assert {c.state for c in claims[1::2]} == {"wait"}

    def test_a_released_claim_is_anybodys(self, memo: Memo) -> None:
        memo.claim(["k"], "a")
        memo.release(["k"], "b")
        assert states(memo, ["k"], "b") == ["wait"]
        memo.release(["k"], "a")
        assert states(memo, ["k"], "b") == ["yours"]
        memo.release(["never claimed"], "a")

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
        put(memo, "k", "quick", b"first", Cost())
        put(memo, "k", "slow", b"second", Cost())
        assert memo.claim(["k"], "c")[0].value == b"first"
        assert memo.stats().repeated == 1

    def test_values_survive_reopening_and_claims_do_not_block(self, open_store: Callable[[], Memo]) -> None:
        first = open_store()
        first.claim(["k", "left"], "a")
        put(first, "k", "a", os.urandom(3_000_000), COST)
        value = first.claim(["k"], "a")[0].value
        first.close()  # type: ignore[attr-defined]
        second = open_store()
        assert second.claim(["k"], "b")[0].value == value
        assert states(second, ["left"], "b") == ["yours"]

    def test_no_more_is_claimed_than_wanted(self, memo: Memo) -> None:
        keys = list("abcd")
        claims = [claim.state for claim in memo.claim([*keys, "a"], "me", most=2)]
        assert claims == ["yours", "yours", "later", "later", "yours"]
        assert states(memo, keys, "other") == ["wait", "wait", "yours", "yours"]
        assert [claim.state for claim in memo.claim(keys, "me", most=3)] == ["yours", "yours", "wait", "wait"]

    def test_renewing_keeps_ones_own_claims_alone(self, memo: Memo, clock: Clock) -> None:
        memo.claim(["k"], "a")
        clock.now += 29
        memo.renew(["k", "never claimed"], "a")
        clock.now += 20
        memo.renew(["k"], "b")
        clock.now += 9
        assert states(memo, ["k", "never claimed"], "b") == ["wait", "yours"]
        clock.now += 2
        assert states(memo, ["k"], "b") == ["yours"]

    def test_many_are_stored_at_once(self, memo: Memo) -> None:
        memo.claim(["a", "b"], "me")
        memo.fulfil([Entry("a", b"1", COST), Entry("b", b"2", COST)], "me")
        assert [claim.value for claim in memo.claim(["a", "b"], "other")] == [b"1", b"2"]

    def test_statistics_count(self, memo: Memo) -> None:
        memo.claim(["a", "b", "a"], "x")
        memo.claim(["b"], "y")
        put(memo, "a", "x", b"12345", COST)
        memo.claim(["a", "a"], "y")
        memo.claim(["a"], "y")
        stats = memo.stats()
        assert (stats.hits, stats.misses, stats.waits, stats.corrupt, stats.repeated) == (2, 2, 1, 0, 0)
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

    def test_what_others_computed_has_its_cost_and_is_not_fresh(self, memo: Memo) -> None:
        put(memo, call("a").key, "other", b"theirs", Cost(2.0, 7, 0.5))
        mine = Cost(1.0, 3, 0.25)
        assert settle(memo, [call("b"), call("a")], lambda calls: [(b"mine", mine)], "me") == [
            Settled(b"mine", mine, fresh=True),
            Settled(b"theirs", Cost(2.0, 7, 0.5), fresh=False),
        ]

    def test_what_has_no_answer_is_told_and_not_stored(self, memo: Memo) -> None:
        gone = Unanswered("it is down")
        asked = [call("a"), call("b")]
        found = settle(memo, asked, lambda calls: [(gone, Cost(1.0)), (b"b", COST)], "me")
        assert [one.value for one in found] == [gone, b"b"]
        assert memo.stats().entries == 1
        assert states(memo, [one.key for one in asked], "other") == ["yours", "hit"]

    def test_thousands_go_in_growing_batches_of_a_few_seconds(self, memo: Memo) -> None:
        sizes: list[int] = []

        def answer(calls: list[Call]) -> list[tuple[bytes, Cost]]:
            sizes.append(len(calls))
            return [(c.input.encode(), Cost(0.005)) for c in calls]

        calls = [call(str(i)) for i in range(7000)]
        assert compute(memo, calls, answer, "me") == [c.input.encode() for c in calls]
        assert sizes[:4] == [8, 32, 128, 512]
        assert sum(sizes) == 7000
        assert max(sizes) <= 2048

    def test_slow_calls_go_in_small_batches(self, memo: Memo) -> None:
        sizes: list[int] = []

        def answer(calls: list[Call]) -> list[tuple[bytes, Cost]]:
            sizes.append(len(calls))
            time.sleep(0.02)
            return [(c.input.encode(), Cost(2.0)) for c in calls]

        def batches(seconds: float) -> list[int]:
            sizes.clear()
            patch.setattr(computing, "BATCH_SECONDS", seconds)
            compute(memo, [call(f"{seconds} {i}") for i in range(40)], answer, "me")
            return list(sizes)

        with pytest.MonkeyPatch.context() as patch:
            assert batches(0.01) == [8, 8, 8, 8, 8]
            assert batches(100.0) == [8, 32]

    def test_two_callers_share_the_work(self, memo: Memo) -> None:
        computed: dict[str, list[str]] = {"x": [], "y": []}
        both = threading.Barrier(2)

        def work(name: str) -> None:
            def answer(calls: list[Call]) -> list[tuple[bytes, Cost]]:
                if not computed[name]:
                    both.wait(10)
                computed[name] += [c.input for c in calls]
                return [(c.input.encode(), Cost(1.0)) for c in calls]

            compute(memo, [call(str(i)) for i in range(96)], answer, name)

        threads = [threading.Thread(target=work, args=(name,)) for name in computed]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(computed["x"] + computed["y"], key=int) == [str(i) for i in range(96)]
        assert min(map(len, computed.values())) >= computing.FIRST

    def test_a_slow_owner_keeps_its_claims(self, memo: Memo, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(computing, "RENEW_SECONDS", 0.01)
        seen: list[str] = []

        def answer(calls: list[Call]) -> list[tuple[bytes, Cost]]:
            for _ in range(3):
                clock.now += 20
                time.sleep(0.1)
                seen.extend(states(memo, [c.key for c in calls], "other"))
            return [(b"v", Cost())] * len(calls)

        assert compute(memo, [call("a")], answer, "me") == [b"v"]
        assert seen == ["wait"] * 3

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
            put(memo, call("b").key, "other", b"theirs", Cost())
            return [(b"mine", Cost())] * len(calls)

        assert compute(memo, [call("a"), call("b")], answer, "me") == [b"mine", b"theirs"]


def fill(folder: Path, count: int = 40) -> dict[str, bytes]:
    values = {f"key-{i:03d}": bytes([i]) * (50 + 97 * i) for i in range(count)}
    with LocalMemo(folder) as memo:
        for key, value in values.items():
            put(memo, key, "a", value, COST, "generate")
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
        put(memo, "key-007", "b", values["key-007"], COST)
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
                put(memo, key, "b", value, COST)
        for key, value in values.items():
            [claim] = memo.claim([key], "b")
            if claim.state != "hit":  # the page was found broken while it was written: what is left works
                put(memo, key, "b", value, COST)
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
        first._db._set_aside(error)
        put(first, "new", "a", b"new", COST)
        second._db.close()
        second._db._reopen(error)
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
        put(memo, "k", "a", b"v", COST)
        assert "readonly" in caplog.text
        assert states(memo, ["k"], "b") == ["yours"]


def test_kinds_are_counted_and_the_counters_stay(tmp_path: Path) -> None:
    with LocalMemo(tmp_path) as memo:
        put(memo, "a", "me", b"123", Cost(1.0, 10, 0.5), "embed")
        put(memo, "b", "me", b"4567", Cost(2.0, 20, 0.0), "embed")
        put(memo, "c", "me", b"8", Cost(4.0), "generate")
        put(memo, "c", "other", b"9", Cost(4.0), "generate")
        memo.claim(["a", "b", "c", "d"], "me")
        memo.claim(["a"], "me")
    with LocalMemo(tmp_path) as memo:
        memo.claim(["a"], "me")
        found = memo.kinds()
    embed, generate = found["embed"], found["generate"]
    assert (embed.entries, embed.bytes, embed.cost) == (2, 7, Cost(3.0, 30, 0.5))
    assert (embed.hits, embed.saved, embed.repeated) == (4, Cost(5.0, 50, 1.5), 0)
    assert (generate.entries, generate.hits, generate.saved, generate.repeated) == (1, 1, Cost(4.0), 1)
    assert embed.oldest > 1e9


def test_two_processes_share_entries(tmp_path: Path) -> None:
    with LocalMemo(tmp_path) as here, LocalMemo(tmp_path) as there:
        put(here, "k", "a", b"v", COST)
        assert there.claim(["k"], "b")[0].value == b"v"


WRITER = """
import sys
from pipelines.memo import Cost, Entry, LocalMemo
memo = LocalMemo(sys.argv[1])
for i in range(100000):
    memo.fulfil([Entry(f"k{i}", str(i).encode() * 400, Cost(1.0))], "w")
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
