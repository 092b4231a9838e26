"""`stockpot cluster up`: two nodes with a token, a sweep on them, nobody let in without it, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import killing
import pytest

pytestmark = pytest.mark.slow

FILE = """\
name: two
pipeline: {type: custom, import_path: "toy_pipeline:Toy", total: 4, metrics: {loss: minimize}, kwargs: {x: 0}}
parameters: {kwargs.x: [0, 1, 2, 4]}
method: grid
metric: loss
resources: {cpus: 1, gpus: 0}
"""
SECONDS = 600


def stockpot(folder: Path, *words: str, home: str = "home") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [killing.STOCKPOT, *words],
        cwd=folder,
        env=environment(folder, home),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def environment(folder: Path, home: str = "home") -> dict[str, str]:
    (folder / home).mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return {**kept, "HOME": str(folder / home)}


def test_two_nodes_run_a_sweep_and_let_nobody_else_in(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), tmp_path)
    (tmp_path / "two.yaml").write_text(FILE)
    log = tmp_path / "up.log"
    with log.open("wb") as out:
        raised = subprocess.Popen(
            [killing.STOCKPOT, "cluster", "up", "--nodes", "2", "--cpus", "1"],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=out,
            stderr=out,
        )
    try:
        until = time.monotonic() + SECONDS
        while "Ctrl-C ends it" not in log.read_text():
            assert raised.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        address = re.findall(r"--address (\S+)", log.read_text())[0]
        below = killing.below(raised.pid)
        found = stockpot(tmp_path, "cluster", "doctor", "--address", address, "--storage", str(tmp_path), "--json")
        assert found.returncode == 0, found.stdout + found.stderr
        states = {one["about"]: one["state"] for one in json.loads(found.stdout)}
        assert states.pop("gpus") in ("ok", "warning")
        assert set(states.values()) == {"ok"}
        done = stockpot(tmp_path, "submit", "two.yaml", "--address", address, "--json")
        assert done.returncode == 0, done.stderr
        assert "2 trials at a time" in done.stderr
        stranger = stockpot(tmp_path, "submit", "two.yaml", "--address", address, "--set", "name=no", home="nobody")
        assert stranger.returncode == 2
        assert len(stranger.stderr.strip().splitlines()) == 1, stranger.stderr
        assert not (tmp_path / "stockpot-runs" / "no").exists()
        raised.send_signal(signal.SIGINT)
        assert raised.wait(SECONDS) == 0
        assert killing.await_gone(below) == []
    finally:
        raised.kill()
        raised.wait()


def test_nodes_end_with_whoever_raised_them(tmp_path: Path) -> None:
    with (tmp_path / "up.log").open("wb") as out:
        raised = subprocess.Popen(
            [killing.STOCKPOT, "cluster", "up", "--cpus", "1"],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=out,
            stderr=out,
        )
    until = time.monotonic() + SECONDS
    while "Ctrl-C ends it" not in (tmp_path / "up.log").read_text() and time.monotonic() < until:
        time.sleep(0.2)
    below = killing.below(raised.pid)
    raised.kill()
    raised.wait()
    assert below
    assert killing.await_gone(below) == []
