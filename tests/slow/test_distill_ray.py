"""From a sweep to the ensemble of its best as a teacher, to students of some of its layers, to their soup: the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from tiny import save_model, sums, write_rows

pytestmark = pytest.mark.slow

SWEEP: dict[str, Any] = {
    "metric": "loss",
    "method": "grid",
    "resources": {"gpus": 0},
    "max_concurrent_trials": 1,
}
PIPELINE: dict[str, Any] = {
    "base_model": "./model",
    "datasets": {
        "train": {"path": "train.jsonl", "type": "prompt_completion"},
        **{split: {"path": f"{split}.jsonl", "type": "prompt_completion"} for split in ("tune", "select", "test")},
    },
    "micro_batch_size": 4,
    "max_steps": 12,
    "sequence_len": 64,
}


def submit(folder: Path, name: str, pipeline: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What `submit --json` prints."""
    sweep = {"name": name, "pipeline": PIPELINE | pipeline, **SWEEP, **more}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(sweep))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("stockpot")), "submit", f"{name}.yaml", "--json"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def test_an_ensemble_teaches_cuts_and_the_cuts_make_a_soup(tmp_path: Path) -> None:
    save_model(tmp_path / "model", layers=3)
    for at, split in enumerate(("train", "tune", "select", "test")):
        write_rows(tmp_path / f"{split}.jsonl", sums(24, first=200 * at))
    submit(
        tmp_path,
        "teachers",
        {"type": "sft", "adapter": "lora"},
        parameters={"learning_rate": [0.003, 0.01]},
        keep={"best": 2},
    )
    made = submit(
        tmp_path,
        "students",
        {"type": "distill", "keep_layers": 2, "teacher": "sweep://teachers/top-2", "learning_rate": 0.003},
        parameters={"loss": {"choose": {"kl": {"temperature": [1.0, 3.0]}, "jsd": {}}}},
        baseline={"loss": {"type": "none"}},
        soup={"method": "task_arithmetic", "top": 2},
    )
    trials = [row for row in made["rows"] if row["kind"] == "trial"]
    assert [row["state"] for row in trials] == ["finished"] * 3
    root = tmp_path / "stockpot-runs" / "students"
    whole = load_file(tmp_path / "model" / "model.safetensors")
    checkpoints = sorted(root.glob("trials/*/seed-0/attempt-0/checkpoint-12"))
    assert checkpoints
    layers = {name for name in whole if not name.startswith("model.layers.2.")}
    for checkpoint in checkpoints:
        assert json.loads((checkpoint / "config.json").read_text())["num_hidden_layers"] == 2
        assert set(load_file(checkpoint / "model.safetensors")) == layers
    (soup,) = root.glob("soups/*/model.safetensors")
    mixed = load_file(soup)
    assert set(mixed) == layers
    name = "model.layers.1.mlp.up_proj.weight"  # of the whole model's last layer, which the base of the soup must be
    own, other = whole[name.replace(".1.", ".2.")], whole[name]
    assert (mixed[name] - own).norm() < (mixed[name] - other).norm()
    verdicts = json.dumps(made)
    assert "baseline" in verdicts
