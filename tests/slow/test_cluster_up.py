"""`stockpot cluster up`: two nodes with a token, a sweep on them, nobody let in without it, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import killing
import pytest
from searching import holding, told

from sweeps.paths import SweepPaths
from sweeps.secret_values import MASK

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
TOLD = """\
name: told
pipeline:
  type: custom
  import_path: "toy_pipeline:Toy"
  total: 4
  metrics: {loss: minimize}
  kwargs: {x: 0, reveal: WORD, reveal_at: 1}
parameters: {kwargs.x: [0, 1, 2]}
method: grid
metric: loss
resources: {cpus: 1, gpus: 0}
env: {WORD: "${PLANTED}"}
"""
PLANTED = "planted-6b80e2-word"
"""A secret that the nodes have, and whoever submits has not."""


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
    (tmp_path / "told.yaml").write_text(TOLD)
    log = tmp_path / "up.log"
    with log.open("wb") as out:
        raised = subprocess.Popen(
            [killing.STOCKPOT, "cluster", "up", "--nodes", "2", "--cpus", "1"],
            cwd=tmp_path,
            env={**environment(tmp_path), "PLANTED": PLANTED},
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
        a_secret_of_the_nodes_is_used_and_told_nowhere(tmp_path, address, sessions_of(below))
        raised.send_signal(signal.SIGINT)
        assert raised.wait(SECONDS) == 0
        assert killing.await_gone(below) == []
    finally:
        raised.kill()
        raised.wait()


def sessions_of(pids: Sequence[int]) -> list[Path]:
    """Ray's folders of the nodes that processes belong to."""
    words = [word for pid in pids for word in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
    return sorted({Path(word.partition("=")[2]) for word in words if word.startswith("--temp-dir=")})


def a_secret_of_the_nodes_is_used_and_told_nowhere(folder: Path, address: str, sessions: list[Path]) -> None:
    lacks = stockpot(folder, "submit", "told.yaml", "--address", address, "--set", "env.MORE=${NOT_THERE}")
    assert lacks.returncode == 2, lacks.stderr
    host = address.rpartition(":")[0]
    mend = "export it there and start the node again"
    (said,) = [line for line in lacks.stderr.splitlines() if line.startswith("stockpot: ")]
    assert said == f"stockpot: node {host}: NOT_THERE is not in the environment its Ray was started in; {mend}"
    assert not (folder / "stockpot-runs" / "told").exists()
    done = stockpot(folder, "submit", "told.yaml", "--address", address, "--json")
    assert done.returncode == 0, done.stderr
    paths = SweepPaths(folder / "stockpot-runs" / "told")
    events = killing.read(paths)
    lengths = [e.body["telemetry"]["train/reveal_length"] for e in events if e.kind == "reported"]
    assert set(lengths) == {float(len(PLANTED))}, "trials have it"
    (failed,) = [e.body for e in events if e.kind == "run_ended" and e.body["state"] == "failed"]
    assert f"the server says: no Bearer {MASK}" in failed["reason"]
    assert f"KeyError: '{MASK}'" in told(paths), "the traceback is there"
    assert (paths.root / "report.html").is_file()
    shown = [stockpot(folder, *words) for words in (["show", "told", "--json"], ["status", "told"], ["logs", "told"])]
    assert f"no Bearer {MASK}" in shown[2].stdout, "the trial's log has the traceback"
    for said in (told(paths), *(text for one in (lacks, done, *shown) for text in (one.stdout, one.stderr))):
        assert PLANTED not in said
    assert len(sessions) == 2
    assert holding("raylet", sessions), "these are Ray's own logs"
    assert holding(PLANTED, [folder, *sessions]) == []


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
