"""A preference sweep through the real command: trials share what the reference makes of their rows, a soup, a final step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from tiny import save_model, write_rows

pytestmark = pytest.mark.slow

SWEEP = """
name: prefs
pipeline:
  type: dpo
  base_model: ./model
  datasets:
    train: {path: pairs.jsonl, type: preference}
    tune: {fraction: 0.2}
    select: {fraction: 0.2}
    test: {fraction: 0.2}
  lora_r: 4
  micro_batch_size: 4
  max_steps: 6
  sequence_len: 64
parameters:
  learning_rate: [0.002, 0.005]
  loss: {choose: {sigmoid: {}, ln_dpo: {}}}
method: grid
metric: reward_accuracy
evaluate: [{type: kl, max_new_tokens: 4, limit: 4, when: end}]
soup: {method: greedy, top: 2}
max_concurrent_trials: 1
"""


def stockpot(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", *words], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_four_trials_and_a_soup_share_one_reference(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    rows = [{"prompt": f"{i}+{i}=", "chosen": f"{2 * i}!", "rejected": f"{2 * i + 1}"} for i in range(120)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    stockpot(tmp_path, "submit", "sweep.yaml")
    board: dict[str, Any] = json.loads(stockpot(tmp_path, "show", "prefs", "--json"))
    trials = [row for row in board["rows"] if row["kind"] == "trial"]
    assert len(trials) == 4
    assert all(row["state"] == "finished" for row in trials)
    assert set(trials[0]["also"]) == {"tune/loss", "tune/reward_margin", "tune/kl", "tune/response_length"}
    tests = {final["role"]: final["scores"]["test/reward_accuracy"]["value"] for final in board["finals"]}
    assert tests["baseline"] == 0.5
    assert tests["winner"] > 0.8
    kinds = json.loads(stockpot(tmp_path, "memo", "stats", "--json"))["kinds"]
    answers = -(-2 * 120 // 64) + 4  # a chunk of 64 answers each, of four splits, each with a rest
    assert 4 <= kinds["reference_logprobs"]["entries"] <= answers
    assert kinds["reference_logprobs"]["hits"] >= 3 * 2  # three of four trials were given train and tune
