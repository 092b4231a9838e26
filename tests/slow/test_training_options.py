"""The options of training that change what runs, each through the whole path on a tiny model: `submit`, real Ray, real files."""

from __future__ import annotations

import csv
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

PIPELINE: dict[str, Any] = {
    "type": "sft",
    "base_model": "./model",
    "datasets": {
        "train": {"path": "train.csv", "type": "prompt_completion", "streaming": True},
        "tune": {"path": "tune.jsonl", "type": "prompt_completion"},
        "on_bad_row": "skip",
    },
    "micro_batch_size": 2,
    "max_steps": 6,
    "sequence_len": 64,
    "eval_batch_size": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model; rows to tune on; and a CSV of which two rows are broken and one answer holds a line break."""
    here = tmp_path_factory.mktemp("options")
    save_model(here / "model")
    write_rows(here / "tune.jsonl", sums(8, first=500))
    with (here / "train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "completion"])
        for number, row in enumerate(sums(30)):
            table.writerow([row["prompt"], "" if number in (3, 17) else row["completion"] + "\nend" * (number == 5)])
    return here


def submitted(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """What `submit --json` prints for one trial of PIPELINE with changes."""
    sweep = {"name": name, "pipeline": {**PIPELINE, **changes}, "metric": "loss", "resources": {"gpus": 0}}
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
    made = json.loads(done.stdout)
    made["stderr"] = done.stderr
    return made


def checkpoint(folder: Path, name: str) -> Path:
    """The newest checkpoint of the one trial."""
    (found,) = (folder / "stockpot-runs" / name).glob("trials/*/seed-0/attempt-0/checkpoint-6")
    return found


def test_a_streamed_csv_is_packed_and_its_broken_rows_are_left_out(folder: Path) -> None:
    made = submitted(folder, "packed", sample_packing=True, micro_batch_size=1)
    trial = next(row for row in made["rows"] if row["kind"] == "trial")
    assert trial["state"] == "finished"
    assert "train: 2 of 30 rows are broken and were left out" in made["stderr"]
    assert "train.csv, line 5: " in made["stderr"]
    assert "train.csv, line 20: " in made["stderr"]  # the answer before it takes two lines
    loose = next(row for row in submitted(folder, "loose", micro_batch_size=1)["rows"] if row["kind"] == "trial")
    assert trial["cost"]["tokens"] > 2 * loose["cost"]["tokens"]


def test_dora_with_checkpointing_in_bf16_trains_magnitudes(folder: Path) -> None:
    submitted(folder, "dora", use_dora=True, gradient_checkpointing=True, precision="bf16", learning_rate=1e-2)
    weights = load_file(checkpoint(folder, "dora") / "adapter_model.safetensors")
    magnitudes = [name for name in weights if "lora_magnitude_vector" in name]
    assert len(magnitudes) == 14
    assert all(weights[name].dtype.is_floating_point for name in magnitudes)


def test_only_parameters_that_match_are_trained(folder: Path) -> None:
    pattern = r"model\.layers\.1\."
    submitted(folder, "frozen", adapter="none", unfrozen_parameters=[pattern], learning_rate=1e-2)
    before, after = (
        load_file(folder / "model" / "model.safetensors"),
        load_file(checkpoint(folder, "frozen") / "model.safetensors"),
    )
    moved = {name for name in after if not after[name].equal(before[name].to(after[name].dtype))}
    assert moved
    assert {name for name in moved if not name.startswith("model.layers.1.")} == set()
