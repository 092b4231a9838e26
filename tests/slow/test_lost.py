"""A node that is lost for good, then the head: the sweep goes on with what is left, ends typed, and goes on on a new cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import killing
import pytest

from cluster.nodes import LocalNodes
from cluster.processes import below
from cluster.token import make_token
from sweeps.load import load_file
from sweeps.paths import SweepPaths

pytestmark = pytest.mark.slow

FILE = """\
name: lost
storage: ./runs
pipeline:
  type: custom
  import_path: toy_pipeline:Toy
  total: 4
  metrics: {loss: minimize}
  kwargs: {x: 0.5, step_seconds: 0.5}
parameters: {kwargs.x: [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}
method: grid
metric: loss
resources: {cpus: 1, gpus: 0}
max_concurrent_trials: 2
early_terminate: {type: asha, min: 1, eta: 2, finalists: 8}
"""
SECONDS = 300.0


def await_true(what: Callable[[], bool], driver: subprocess.Popen[bytes], out: Path) -> None:
    until = time.monotonic() + SECONDS
    while not what():
        assert driver.poll() is None, out.read_text()[-3000:]
        assert time.monotonic() < until, out.read_text()[-3000:]
        time.sleep(0.1)


def count(paths: SweepPaths, kind: str) -> int:
    return sum(event.kind == kind for event in killing.read(paths))


def drive(file: Path, out: Path, home: Path, *words: str) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with out.open("ab") as log:
        return subprocess.Popen(
            [killing.STOCKPOT, *words], cwd=file.parent, env={**kept, "HOME": str(home)}, stdout=log, stderr=log
        )


def test_a_node_and_then_the_head_are_lost(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), tmp_path)
    file, out, home = tmp_path / "lost.yaml", tmp_path / "out", tmp_path / "home"
    file.write_text(FILE)
    paths = load_file(file).paths
    token = make_token(home / ".stockpot" / "ray-token")
    nodes, later = LocalNodes(token, cpus=1), LocalNodes(token, cpus=1)
    try:
        nodes.start(2)
        driver = drive(file, out, home, "submit", file.name, "--address", nodes.address)
        await_true(lambda: count(paths, "reported") >= 2, driver, out)
        lost = nodes._nodes[1].process
        gone = [lost.pid, *(process.pid for process in below(lost.pid))]
        for pid in gone:
            os.kill(pid, signal.SIGKILL)
        lost.wait()
        await_true(lambda: count(paths, "failed") >= 1, driver, out)
        at = count(paths, "reported")
        await_true(lambda: count(paths, "reported") >= at + 3, driver, out)
        head = nodes._nodes[0].process
        (heart,) = [
            pid for pid in killing.below(head.pid) if b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(heart, signal.SIGKILL)
        assert driver.wait(SECONDS) == 130, out.read_text()[-3000:]
        assert "has not answered for" in out.read_text()
        later.start(1)
        again = drive(file, out, home, "resume", str(paths.root), "--address", later.address)
        assert again.wait(SECONDS) == 0, out.read_text()[-3000:]
    finally:
        nodes.close()
        later.close()
    events = killing.read(paths)
    assert {event.body["kind"] for event in events if event.kind == "failed"} == {"node"}
    ends = [(event.body["run"], event.body["state"]) for event in events if event.kind == "run_ended"]
    assert sorted(state for _, state in ends) == ["finished"] * 8
    assert set(Counter((e.body["run"], e.body["resource"]) for e in events if e.kind == "reported").values()) == {1}
