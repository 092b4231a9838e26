"""The LoRA merge against dense arithmetic in float64, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluators.base import Report
from pipelines.finetune.checkpoint import content_hash, write_complete
from pipelines.soups import merge
from pipelines.soups.factors import Adapter, Factors, merge_factors, scaling
from pipelines.soups.lora import merge_adapters
from pipelines.stage import UserError

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
SHAPES = {Q: (12, 10), V: (6, 10)}


def dense(adapter: Adapter, layer: str) -> torch.Tensor:
    """ΔW in float64, zero where the adapter has no such layer."""
    if layer not in adapter:
        return torch.zeros(SHAPES[layer], dtype=torch.float64)
    factors = adapter[layer]
    return factors.scale * factors.up.double() @ factors.down.double()


def draw(seed: int, ranks: dict[str, int], scales: dict[str, float]) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: Factors(
            torch.randn(rank, SHAPES[layer][1], generator=generator, dtype=torch.float64),
            torch.randn(SHAPES[layer][0], rank, generator=generator, dtype=torch.float64),
            scales[layer],
        )
        for layer, rank in ranks.items()
    }


MIXED = [
    (draw(0, {Q: 4, V: 2}, {Q: 2.0, V: 0.5}), 0.5),
    (draw(1, {Q: 2}, {Q: 16 / math.sqrt(2)}), 0.75),
    (draw(2, {Q: 3, V: 3}, {Q: 1.0, V: 7 / 3}), -0.25),
]


def test_equals_dense_arithmetic_in_float64() -> None:
    merged = merge_factors(MIXED)
    for layer in SHAPES:
        down, up = merged[layer]
        expected = sum(weight * dense(adapter, layer) for adapter, weight in MIXED)
        torch.testing.assert_close(up @ down, expected, rtol=0, atol=1e-13)
    assert merged[Q][0].shape == (9, 10)
    assert merged[V][0].shape == (5, 10)


def test_averaging_the_factors_apart_is_another_matrix() -> None:
    pair = [(draw(seed, {Q: 4}, {Q: 2.0}), 0.5) for seed in (0, 1)]
    down, up = merge_factors(pair)[Q]
    apart = 2.0 * sum(w * a[Q].up for a, w in pair) @ sum(w * a[Q].down for a, w in pair)
    exact = sum(w * dense(a, Q) for a, w in pair)
    torch.testing.assert_close(up @ down, exact, rtol=0, atol=1e-13)
    assert (apart - exact).norm() > 0.3 * exact.norm()


def test_scaling_reads_patterns_as_peft_does() -> None:
    config = {
        "r": 8,
        "lora_alpha": 16,
        "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {r"^model\.layers\.0\..*v_proj$": 3},
    }
    assert scaling(config, Q) == (4, 4.0)
    assert scaling(config, V) == (8, 3 / 8)
    assert scaling({**config, "use_rslora": True}, Q) == (4, 8.0)
    assert scaling(config, "model.layers.0.my_q_proj") == (8, 2.0)


def write(
    folder: Path, seed: int, rank: int = 4, alpha: float = 8, layers: tuple[str, ...] = (Q, V), **config: Any
) -> Path:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        out, into = SHAPES[layer]
        tensors[f"base_model.model.{layer}.lora_A.weight"] = torch.randn(rank, into, generator=generator)
        tensors[f"base_model.model.{layer}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    body = {
        "peft_type": "LORA",
        "base_model_name_or_path": "base",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": ["q_proj", "v_proj"],
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(body))
    return folder


def delta(folder: Path, layer: str) -> torch.Tensor:
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(str(folder / "adapter_model.safetensors"))
    _, scale = scaling(config, layer)
    up, down = (tensors[f"base_model.model.{layer}.lora_{factor}.weight"].double() for factor in "BA")
    return scale * up @ down


def test_folders_in_folder_out(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 0, rank=4)
    b = write(tmp_path / "b", 1, rank=2, alpha=5, layers=(Q,), use_rslora=True)
    result = merge({"ingredients": [[str(a), 0.25], [str(b), 0.75]], "out": str(tmp_path / "soup")})
    soup = tmp_path / "soup"
    torch.testing.assert_close(delta(soup, Q), 0.25 * delta(a, Q) + 0.75 * delta(b, Q), rtol=0, atol=1e-5)
    torch.testing.assert_close(delta(soup, V), 0.25 * delta(a, V), rtol=0, atol=1e-6)
    config = json.loads((soup / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (6, 6, False)
    assert list(config["rank_pattern"].values()) == list(config["alpha_pattern"].values()) == [4]
    assert config["base_model_name_or_path"] == "base"
    assert result["kind"] == "adapter"
    assert result["rank"] == 6
    assert result["bytes"] == sum(path.stat().st_size for path in soup.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "soup"}
    assert {tensor.dtype for tensor in load_file(str(soup / "adapter_model.safetensors")).values()} == {torch.float32}


def test_merge_is_repeatable_and_replaces(tmp_path: Path) -> None:
    a, b, out = write(tmp_path / "a", 0), write(tmp_path / "b", 1), tmp_path / "soup"
    first = merge_adapters([(a, 0.5), (b, 0.5)], out)
    assert merge_adapters([(a, 0.4), (b, 0.6)], out)["hash"] != first["hash"]
    assert merge_adapters([(a, 0.5), (b, 0.5)], out) == first
    write_complete(out, Report(1))
    assert content_hash(out) == first["hash"]


def test_bfloat16_ingredients_are_summed_in_float32(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 0)
    path = str(a / "adapter_model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    merge_adapters([(a, 1 / 3)] * 3, tmp_path / "soup")
    torch.testing.assert_close(delta(tmp_path / "soup", Q), delta(a, Q), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "no magnitude that fits"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"base_model_name_or_path": "other.gguf"}, "base_model_name_or_path"),
        ({"peft_type": "ADALORA"}, "a ADALORA adapter; LORA, VERA"),
        ({"peft_type": "LOHA"}, "nothing that a LOHA adapter"),
        ({"peft_type": "IA3"}, "IA3 multiplies"),
        ({"use_dora": True, "lora_bias": True}, "DoRA and a bias on B"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"rank_pattern": {"q_proj": 3}}, "rank 3"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ],
)
def test_refuses_by_name(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    a, b = write(tmp_path / "a", 0), write(tmp_path / "b", 1, **config)
    with pytest.raises(UserError, match=words) as caught:
        merge_adapters([(a, 0.5), (b, 0.5)], tmp_path / "soup")
    assert str(b) in str(caught.value) or set(config) & {"peft_type", "lora_bias"}
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "soup").exists()


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", torch.ones(4, 7), "lora_embedding_A"),
        (f"base_model.model.{Q}.lora_magnitude_vector", torch.ones(4), "lora_magnitude_vector"),
        ("base_model.model.conv.lora_A.weight", torch.ones(4, 3, 2, 2), "of a convolution"),
        ("base_model.model.lm_head.weight", torch.ones(4, 3), "nothing that a LORA"),
        (f"base_model.model.{Q}.lora_A.weight", torch.full((4, 10), torch.nan), "NaN"),
        (f"base_model.model.{Q}.lora_A.weight", torch.ones(4, 11), "not the same base model"),
        (f"base_model.model.{Q}.lora_A.weight", torch.ones(3, 10), "says rank 4"),
    ],
)
def test_refuses_tensors_by_name(tmp_path: Path, name: str, tensor: torch.Tensor, words: str) -> None:
    a, b = write(tmp_path / "a", 0), write(tmp_path / "b", 1)
    path = str(b / "adapter_model.safetensors")
    save_file({**load_file(path), name: tensor}, path)
    with pytest.raises(UserError, match=words):
        merge_adapters([(a, 0.5), (b, 0.5)], tmp_path / "soup")


def test_refuses_missing_files_and_weights(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 0), write(tmp_path / "b", 1)
    (b / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"b has no adapter_model\.safetensors"):
        merge_adapters([(a, 0.5), (b, 0.5)], tmp_path / "soup")
    with pytest.raises(UserError, match=r"none has no adapter_config\.json"):
        merge_adapters([(a, 0.5), (tmp_path / "none", 0.5)], tmp_path / "soup")
    with pytest.raises(UserError, match=r"weight of .* is nan"):
        merge_adapters([(a, math.nan)], tmp_path / "soup")
    with pytest.raises(UserError, match="at least one"):
        merge_adapters([], tmp_path / "soup")
