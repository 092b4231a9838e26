"""Whole merges of files: equal to mergekit's command to the bit, and loaded by plain transformers, sharded or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipelines.soups.arithmetic import merge_models, plan_models
from pipelines.soups.streaming import merge_whole

pytestmark = pytest.mark.slow


def test_files_are_equal_to_the_bit(tmp_path: Path) -> None:
    """The average of bfloat16 files by both commands."""
    torch.manual_seed(0)
    shapes = {"model.embed_tokens.weight": (32, 8), "model.norm.weight": (8,), "lm_head.weight": (32, 8)}
    for part, out in (("q", 8), ("k", 8), ("v", 8), ("o", 8)):
        shapes[f"model.layers.0.self_attn.{part}_proj.weight"] = (out, 8)
    shapes |= {f"model.layers.0.mlp.{part}_proj.weight": (16, 8) for part in ("gate", "up")}
    shapes |= {"model.layers.0.mlp.down_proj.weight": (8, 16), "model.layers.0.input_layernorm.weight": (8,)}
    shapes["model.layers.0.post_attention_layernorm.weight"] = (8,)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32,
        "tie_word_embeddings": False,
    }  # fmt: skip
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
        tensors = {name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
    merge_models([(folder, 0.25) for folder in folders], tmp_path / "ours")
    models = [{"model": str(folder), "parameters": {"weight": 0.25}} for folder in folders]
    (tmp_path / "merge.yml").write_text(json.dumps({"merge_method": "linear", "dtype": "bfloat16", "models": models}))
    command = [
        str(Path(sys.executable).with_name("mergekit-yaml")),
        str(tmp_path / "merge.yml"),
        str(tmp_path / "theirs"),
    ]
    done = subprocess.run(
        [*command, "--no-copy-tokenizer"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ours = load_file(str(tmp_path / "ours" / "model.safetensors"))
    found = {
        name: tensor
        for path in (tmp_path / "theirs").glob("*.safetensors")
        for name, tensor in load_file(str(path)).items()
    }
    assert set(ours) == set(found) == set(shapes)
    assert all(torch.equal(ours[name].view(torch.int16), found[name].view(torch.int16)) for name in shapes)

    pairs = [(folder, 0.25) for folder in folders]
    merge_whole(plan_models(pairs, tmp_path / "sharded", shard_bytes=600))
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    for folder in (tmp_path / "ours", tmp_path / "sharded"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        assert all(torch.equal(model.state_dict()[name], ours[name]) for name in shapes)
