"""A sparse soup through the real command: on Ray, leases of its phases take turns with calls that prune, merge and score."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from tiny import save_model, sums, write_rows

from pipelines.soups.masks import counted, recorded_mask

pytestmark = pytest.mark.slow

SWEEP = """
name: small
storage: runs
pipeline:
  type: sft
  base_model: ./model
  datasets:
    train: {path: train.jsonl, type: prompt_completion}
    tune: {fraction: 0.2}
    select: {fraction: 0.2}
    test: {fraction: 0.2}
  adapter: lora
  max_steps: 2
  sequence_len: 32
method: grid
metric: loss
soup: {method: sparse, sparsity: 0.75, phases: 2, barrier: false, retrain: {seeds: [0, 1]}}
max_concurrent_trials: 1
"""


def test_phases_run_on_ray_and_the_soup_is_judged(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", sums(80))
    (tmp_path / "small.yaml").write_text(SWEEP)
    command = [sys.executable, "-m", "sweeps.cli", "submit", "small.yaml", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    (soup,) = record["soups"]
    assert [one["run"] for one in soup["decisions"]][1:] == ["phase 1", "phase 2"]
    sparsity = soup["finished"]["made"]["sparsity"]
    mask = counted(Path(soup["folder"]))
    assert sparsity["before"] == sparsity["after"] == mask.sparsity == pytest.approx(0.75, abs=1e-4)
    assert mask == recorded_mask(Path(soup["folder"]))
    assert "2 verdicts" in done.stderr or "3 verdicts" in done.stderr
