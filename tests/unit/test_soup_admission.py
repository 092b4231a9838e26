"""Who may be averaged at all: each run is held against the best sound one, and the odd one is named."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from soup_machine import write_adapter

from pipelines.soups.admission import problems


def test_a_broken_run_and_one_of_another_base_are_named_and_the_others_pass(tmp_path: Path) -> None:
    folders = {}
    for number, run in enumerate(("broken", "a", "b", "other")):
        folders[run] = str(tmp_path / run / "checkpoint-1")
        write_adapter(Path(folders[run]), number, 0.1)
    path = Path(folders["broken"]) / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, path)
    settings = Path(folders["other"]) / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "base_model_name_or_path": "org/another"}))
    found = problems({"folders": folders, "base": "org/model", "cache": str(tmp_path / "cache")})
    assert set(found) == {"broken", "other"}
    assert "holds NaN or infinite numbers" in found["broken"]
    assert "org/another" in found["other"]
    sound = {run: folders[run] for run in ("a", "b")}
    assert problems({"folders": sound, "base": "org/model", "cache": None}) == {}
