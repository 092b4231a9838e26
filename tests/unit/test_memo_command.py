"""`stockpot memo`: what is stored by kind, what it saved, and pruning by age, size and kind while nobody uses it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.memo import Cost, Entry, LocalMemo
from pipelines.upkeep import Pruned, prune
from sweeps import cli

DAY = 86400.0


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Ten entries of 1,000 bytes, a day apart, of two kinds; the newest is an hour old."""
    with LocalMemo(tmp_path / ".memo") as memo:
        memo.fulfil([Entry(f"e{i}", bytes(1000), Cost(2.0, 10, 0.5), "embed") for i in range(0, 10, 2)], "me")
        memo.fulfil([Entry(f"e{i}", bytes(1000), Cost(60.0), "generate") for i in range(1, 10, 2)], "me")
        memo.claim(["e0", "e1", "e2", "gone"], "me")
        memo.claim(["e0"], "me")
    db = sqlite3.connect(tmp_path / ".memo" / "memo.sqlite")
    for i in range(10):
        db.execute("UPDATE entries SET created = ? WHERE key = ?", (time.time() - 3600 - i * DAY, f"e{i}"))
    db.commit()
    db.close()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], storage: Path, *words: str) -> tuple[int, str, str]:
    status = cli.main(["memo", *words, "--storage", str(storage)])
    said = capsys.readouterr()
    return status, said.out, said.err


def left(storage: Path) -> list[str]:
    with LocalMemo(storage / ".memo") as memo:
        claims = memo.claim([f"e{i}" for i in range(10)], "reader")
    return [f"e{i}" for i, claim in enumerate(claims) if claim.state == "hit"]


def test_stats_tell_what_lies_there_and_what_it_saved(capsys: Any, storage: Path) -> None:
    status, out, _ = run(capsys, storage, "stats")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[1][:2] == ["embed", "5"]
    assert lines[2][:2] == ["generate", "5"]
    _, out, _ = run(capsys, storage, "stats", "--json")
    kinds = json.loads(out)["kinds"]
    assert (kinds["embed"]["entries"], kinds["embed"]["bytes"], kinds["embed"]["hits"]) == (5, 5000, 3)
    assert kinds["embed"]["saved"] == {"seconds": 6.0, "tokens": 30, "price": 1.5}
    assert kinds["generate"]["cost"]["seconds"] == 300.0
    _, out, _ = run(capsys, storage, "stats", "--json", "--kind", "generate")
    assert list(json.loads(out)["kinds"]) == ["generate"]


def test_where_nothing_is_stored_stats_say_so_and_write_nothing(capsys: Any, tmp_path: Path) -> None:
    status, out, _ = run(capsys, tmp_path, "stats")
    assert (status, out.startswith("nothing is stored in")) == (0, True)
    assert prune(tmp_path / ".memo", older_than=0) == Pruned(0, 0, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "stay"),
    [
        (["--older-than", "3"], [0, 1, 2]),
        (["--older-than", "0"], []),
        (["--older-than", "99"], list(range(10))),
        (["--max-gb", "4e-6"], [0, 1, 2, 3]),
        (["--max-gb", "1"], list(range(10))),
        (["--kind", "embed"], [1, 3, 5, 7, 9]),
        (["--kind", "embed", "--kind", "generate"], []),
        (["--kind", "nothing"], list(range(10))),
        (["--kind", "embed", "--older-than", "3"], [0, 1, 2, 3, 5, 7, 9]),
        (["--kind", "embed", "--max-gb", "8e-6"], [0, 1, 2, 3, 4, 5, 7, 9]),
        (["--older-than", "7", "--max-gb", "9e-6"], [0, 1, 2, 3, 4, 5, 6]),
        (["--older-than", "7", "--max-gb", "2e-6"], [0, 1]),
    ],
)
def test_prune_takes_the_oldest_that_the_rules_name(
    capsys: Any, storage: Path, words: list[str], stay: list[int]
) -> None:
    status, out, _ = run(capsys, storage, "prune", *words, "--json")
    told = json.loads(out)
    assert status == 0
    assert left(storage) == [f"e{i}" for i in stay]
    assert (told["entries"], told["bytes"], told["left"]) == (
        10 - len(stay),
        1000 * (10 - len(stay)),
        1000 * len(stay),
    )


def test_pruning_gives_the_disk_back(storage: Path) -> None:
    file = storage / ".memo" / "memo.sqlite"
    with LocalMemo(storage / ".memo") as memo:
        memo.fulfil([Entry(f"big{i}", bytes(100_000), Cost(), "embed") for i in range(50)], "me")
    large = file.stat().st_size
    prune(storage / ".memo", kinds=["embed"])
    assert file.stat().st_size < large / 20


def test_prune_wants_to_be_told_what_may_go(capsys: Any, storage: Path) -> None:
    status, _, err = run(capsys, storage, "prune")
    assert (status, "--older-than DAYS" in err) == (2, True)
    assert len(left(storage)) == 10


HOLDER = """
import sys
from pipelines.memo import LocalMemo
memo = LocalMemo(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_prune_is_refused_while_a_sweep_uses_it_and_stats_are_not(capsys: Any, storage: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(storage / ".memo")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        status, _, err = run(capsys, storage, "prune", "--older-than", "0")
        assert (status, "is in use" in err) == (2, True)
        assert run(capsys, storage, "stats")[0] == 0
        holder.kill()
    assert len(left(storage)) == 10
    assert run(capsys, storage, "prune", "--older-than", "0")[0] == 0
    assert left(storage) == []


def test_a_memo_that_can_not_be_read_is_told(capsys: Any, storage: Path) -> None:
    (storage / ".memo" / "memo.sqlite").write_bytes(b"garbage" * 1000)
    status, _, err = run(capsys, storage, "prune", "--older-than", "0")
    assert (status, "can't be pruned" in err) == (2, True)
