"""A sweep with two metrics through the real command: Ray, halving, a kill, the front in every table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import killing
import pytest

from sweeps.commands.look import read_snapshot
from sweeps.paths import SweepPaths

pytestmark = pytest.mark.slow

SWEEP = """
name: pair
storage: runs
pipeline:
  type: custom
  import_path: toy_pipeline:Toy
  total: 9
  metrics: {loss: minimize}
  kwargs: {step_seconds: 0.05}
parameters:
  kwargs.x: {min: 0.0, max: 1.0}
method: {type: nsga2, seed: 1, population_size: 4}
metric: [loss, {name: train/seen, goal: minimize}]
budget: {trials: 10}
early_terminate: {type: asha, min: 3, eta: 3, finalists: 3}
max_concurrent_trials: 1
"""


def stockpot(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", *words], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def sweep_in(folder: Path) -> Path:
    folder.mkdir()
    (folder / "pair.yaml").write_text(SWEEP)
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), folder)
    return folder


def killed_on_the_way(folder: Path) -> dict[str, Any]:
    """Submit, and kill the driver once three trials have a result; how far it was."""
    paths = SweepPaths(folder / "runs" / "pair")
    driver = subprocess.Popen(
        [sys.executable, "-m", "sweeps.cli", "submit", "pair.yaml"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 150
        while time.monotonic() < until and driver.poll() is None:
            time.sleep(0.2)
            if killing.last_seq(paths) and (shot := read_snapshot(paths))["trials"]["tried"] >= 3:
                return shot
        raise AssertionError("the sweep did not come to three trials")
    finally:
        driver.kill()
        driver.wait()


def test_two_metrics_end_to_end_and_the_same_after_a_kill(tmp_path: Path) -> None:
    calm, killed = sweep_in(tmp_path / "calm"), sweep_in(tmp_path / "killed")
    stockpot(calm, "submit", "pair.yaml")
    assert killed_on_the_way(killed)["front"] >= 1
    stockpot(killed, "resume", "pair", "--storage", "runs")
    boards = [json.loads(stockpot(folder, "show", "pair", "--storage", "runs", "--json")) for folder in (calm, killed)]
    kept = ("name", "rank", "front", "possible", "rung", "scores", "state")
    rows = [[{key: row[key] for key in kept} for row in board["rows"]] for board in boards]
    assert rows[0] == rows[1]
    assert boards[0]["front"] == boards[1]["front"]
    board = boards[0]
    assert len(board["rows"]) == 10
    top = [row for row in board["rows"] if row["rung"] == 9]
    assert set(board["front"]["members"]) == {row["name"] for row in top if row["front"] == 1}
    losses = [row["scores"]["tune/loss"]["value"] for row in top if row["front"] == 1]
    seen = [row["scores"]["train/seen"]["value"] for row in top if row["front"] == 1]
    assert losses == sorted(losses)
    assert seen == sorted(seen, reverse=True)
    assert [final["role"] for final in board["finals"]] == (
        [f"front-{k + 1}" for k in range(len(losses))] if len(losses) > 1 else ["winner"]
    )
    text = stockpot(calm, "show", "pair", "--storage", "runs")
    assert "hypervolume" in text
    assert "front 1 = at its rung no trial is as good" in text
    assert "train/seen (lower is better), telemetry" in stockpot(calm, "compare", "pair", "--storage", "runs")
