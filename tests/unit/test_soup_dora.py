"""DoRA soups against dense arithmetic in float64, and in plain PEFT against its own merged weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_soup_peft import TOKENS, base

from pipelines.soups.dora import as_dora, dora_delta, summed_dora
from pipelines.soups.factors import Adapter, Factors
from pipelines.soups.lora import merge_adapters
from pipelines.stage import UserError

SHAPES = {"q": (12, 10), "v": (6, 10)}


def weight(layer: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(layer) + ord(layer))
    return torch.randn(SHAPES[layer], generator=generator, dtype=torch.float64)


def draw(seed: int, ranks: dict[str, int], scale: float, dora: bool) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    made = {}
    for layer, rank in ranks.items():
        out, wide = SHAPES[layer]
        down = torch.randn(rank, wide, generator=g, dtype=torch.float64)
        up = torch.randn(out, rank, generator=g, dtype=torch.float64)
        magnitude = torch.rand(out, generator=g, dtype=torch.float64) + 0.5 if dora else None
        made[layer] = Factors(down, up, scale, magnitude)
    return made


def dense(adapter: Adapter, layer: str) -> torch.Tensor:
    """The adapted weight by DoRA's formula."""
    plain = weight(layer)
    if layer not in adapter:
        return plain
    factors = adapter[layer]
    changed = plain + factors.scale * factors.up @ factors.down
    if factors.magnitude is None:
        return changed
    return factors.magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)


def merged(adapters: list[tuple[Adapter, float]], layer: str) -> Factors:
    """A layer of the soup as a DoRA adapter."""
    parts = [(adapter[layer], share) for adapter, share in adapters if layer in adapter]
    down, up, total = summed_dora(parts, weight(layer))
    up, magnitude = as_dora(down, up, total, weight(layer))
    return Factors(down, up, 1.0, magnitude)


MIXED = [
    (draw(0, {"q": 4, "v": 2}, 2.0, dora=True), 0.5),
    (draw(1, {"q": 2}, 16 / math.sqrt(2), dora=False), 0.4),
    (draw(2, {"v": 3}, 0.7, dora=True), -0.2),
]


def test_equals_dense_arithmetic_in_float64() -> None:
    for layer, rank in (("q", 6), ("v", 5)):
        made = merged(MIXED, layer)
        expected = weight(layer) + sum(share * (dense(adapter, layer) - weight(layer)) for adapter, share in MIXED)
        torch.testing.assert_close(dense({layer: made}, layer), expected, rtol=0, atol=1e-12)
        assert made.down.shape == (rank, 10)


def test_the_mean_is_the_stretched_base_and_the_stretched_products() -> None:
    """(1/n) Σ diag(cᵢ)(W + ΔWᵢ) = diag(mean c)·W + (1/n) Σ diag(cᵢ)·sᵢBᵢAᵢ."""
    three = [draw(seed, {"q": rank}, 0.5 * seed, dora=True)["q"] for seed, rank in ((1, 2), (2, 3), (3, 4))]
    stretched = [
        part.magnitude / (weight("q") + part.delta()).norm(dim=1) for part in three if part.magnitude is not None
    ]
    mean = torch.stack(stretched).mean(0)[:, None] * weight("q")
    mean += sum(own[:, None] * part.delta() for own, part in zip(stretched, three, strict=True)) / 3
    made = merged([({"q": part}, 1 / 3) for part in three], "q")
    torch.testing.assert_close(dense({"q": made}, "q"), mean, rtol=0, atol=1e-12)
    assert made.down.shape[0] == 9


def test_lora_alone_stays_what_it_was() -> None:
    made = merged([(MIXED[1][0], 1.0)], "q")
    torch.testing.assert_close(dense({"q": made}, "q"), dense(MIXED[1][0], "q"), rtol=0, atol=1e-12)


def test_the_whole_change_is_the_dense_one() -> None:
    change = dora_delta(MIXED[0][0]["q"], weight("q"))
    torch.testing.assert_close(change, dense(MIXED[0][0], "q") - weight("q"), rtol=0, atol=1e-13)


def test_weights_that_cancel_a_row_are_refused() -> None:
    factors = draw(5, {"q": 2}, 1.0, dora=True)["q"]
    norm = (weight("q") + factors.up @ factors.down).norm(dim=1)
    doubled = Factors(factors.down, factors.up, 1.0, 2 * norm)  # c = 2
    with pytest.raises(ValueError, match="cancel a row"):
        summed_dora([(doubled, -1.0)], weight("q"))


def peft_adapter(folder: Path, base_folder: Path, seed: int, **config: object) -> Path:
    torch.manual_seed(seed)
    model = get_peft_model(base(), LoraConfig(**config))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
        elif "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.peft_config["default"].base_model_name_or_path = str(base_folder)
    model.save_pretrained(str(folder))
    return folder


def test_plain_peft_loads_the_soup_and_answers_as_the_averaged_weights(tmp_path: Path) -> None:
    base().save_pretrained(tmp_path / "base")
    q, every = ["q_proj", "v_proj"], "all-linear"
    ingredients = [
        (peft_adapter(tmp_path / "a", tmp_path / "base", 1, r=4, lora_alpha=8, target_modules=q, use_dora=True), 0.5),
        (
            peft_adapter(
                tmp_path / "b", tmp_path / "base", 2, r=2, target_modules=every, use_dora=True, use_rslora=True
            ),
            0.3,
        ),
        (peft_adapter(tmp_path / "c", tmp_path / "base", 3, r=3, lora_alpha=5, target_modules=q), 0.2),
    ]
    made = merge_adapters(ingredients, tmp_path / "soup")
    assert made["rank"] == 9
    assert json.loads((tmp_path / "soup" / "adapter_config.json").read_text())["use_dora"]
    plain, total = base(), base()
    for folder, share in ingredients:
        merged = PeftModel.from_pretrained(base(), str(folder)).merge_and_unload()
        for name, parameter in total.named_parameters():
            parameter.data += share * (merged.get_parameter(name).data - plain.get_parameter(name).data)
    with torch.no_grad():
        expected = total(TOKENS).logits
        soup = PeftModel.from_pretrained(base(), str(tmp_path / "soup")).eval()(TOKENS).logits
        assert (expected - plain(TOKENS).logits).abs().max() > 0.05
    torch.testing.assert_close(soup, expected, rtol=0, atol=2e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    base().save_pretrained(tmp_path / "base")
    good = peft_adapter(tmp_path / "a", tmp_path / "base", 1, r=4, target_modules=["q_proj"], use_dora=True)
    path = good / "adapter_model.safetensors"
    whole = load_file(path)
    name = next(name for name in whole if "magnitude" in name)
    for wrong in (
        {key: value for key, value in whole.items() if key != name},
        {**whole, name: torch.ones(3)},
    ):
        save_file(wrong, path)
        with pytest.raises(UserError, match="no magnitude that fits"):
            merge_adapters([(good, 1.0)], tmp_path / "soup")
    save_file(whole, path)
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "gone")
    with pytest.raises(UserError, match=r"has no .*q_proj\.weight, which this merge has to read"):
        merge_adapters([(good, 1.0)], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
