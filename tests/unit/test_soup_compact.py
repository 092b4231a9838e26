"""Compaction against a dense SVD in float64, and soups made smaller or by methods that are not linear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_nets import adapted, assert_same_answers, dense_soup, net, save_adapter, save_base
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from pipelines.soups import merge, method_function
from pipelines.soups.compact import compact, factorise, rank_of
from pipelines.soups.config import parse_method
from pipelines.soups.lora import ENERGY, merge_adapters


def pair(out: int, wide: int, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, wide, generator=generator, dtype=torch.float64)
    return down, torch.randn(out, rank, generator=generator, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(1, 20), st.integers(1, 20), st.integers(0, 9))
def test_is_the_best_of_its_rank(out: int, wide: int, summed: int, rank: int, seed: int) -> None:
    down, up = pair(out, wide, summed, seed)
    delta = up @ down
    u, singular, vh = torch.linalg.svd(delta, full_matrices=False)
    best = (u[:, :rank] * singular[:rank]) @ vh[:rank]
    for kept in (compact(down, up, rank), factorise(delta, rank)):
        torch.testing.assert_close(kept.up @ kept.down, best, rtol=0, atol=1e-9)
        assert kept.down.shape[0] <= min(rank, out, wide)
        error = float((delta - kept.up @ kept.down).norm() / delta.norm())
        assert kept.residual == pytest.approx(error, abs=1e-7)


def test_energy_takes_as_few_ranks_as_hold_it() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)  # squares 16, 4, 1, 1
    for energy, ranks in ((0.5, 1), (16 / 22, 1), (0.8, 2), (20 / 22, 2), (0.92, 3), (1.0, 4)):
        assert rank_of(values.square(), 22.0, None, energy) == ranks
    assert rank_of(values.square(), 22.0, 2, 1.0) == 2
    assert rank_of(torch.zeros(3, dtype=torch.float64), 0.0, None, 1.0) == 1


def test_energy_one_drops_only_what_is_not_there() -> None:
    down, up = pair(30, 20, 4, 1)
    kept = compact(torch.cat([down, down]), torch.cat([up, 0.5 * up], dim=1), energy=1.0)
    assert kept.down.shape[0] == 4
    torch.testing.assert_close(kept.up @ kept.down, 1.5 * up @ down, rtol=0, atol=1e-11)


def test_nothing_stays_nothing() -> None:
    down, up = pair(6, 5, 3, 1)
    for kept in (compact(down, 0 * up, 2), factorise(0 * (up @ down), 2)):
        assert kept.residual == 0.0
        assert not kept.up.isnan().any()
        assert float((kept.up @ kept.down).abs().max()) == 0.0


def lora(rank: int, **more: Any) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["a", "b"], **more)


@pytest.mark.parametrize("dora", [False, True])
def test_a_smaller_soup_says_what_it_lost(tmp_path: Path, dora: bool) -> None:
    base = save_base(tmp_path / "base")
    ingredients = [(save_adapter(tmp_path / str(at), base, at, lora(3, use_dora=dora)), 0.5) for at in range(2)]
    whole = merge_adapters(ingredients, tmp_path / "whole")
    small = merge_adapters(ingredients, tmp_path / "small", rank=2)
    assert (whole["rank"], whole["residual"], whole["residuals"]) == (6, 0.0, {})
    assert small["rank"] == 2
    assert set(small["residuals"]) == {"a", "b"}
    expected, soup = dense_soup(ingredients).state_dict(), adapted(tmp_path / "small").merge_and_unload().state_dict()
    plain = net().state_dict()
    lost = {name: float((expected[f"{name}.weight"] - soup[f"{name}.weight"]).norm()) for name in "ab"}
    if not dora:
        for name in "ab":
            changed = float((expected[f"{name}.weight"] - plain[f"{name}.weight"]).norm())
            assert small["residuals"][name] == pytest.approx(lost[name] / changed, rel=1e-4)
    assert sum(lost.values()) > 0.01
    held = merge_adapters(ingredients, tmp_path / "held", energy=1.0)
    assert held["residual"] < 1e-7
    assert_same_answers(tmp_path / "held", dense_soup(ingredients))


def test_energy_may_give_layers_different_ranks(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    ingredients = [(save_adapter(tmp_path / str(at), base, at, lora(4)), 0.5) for at in range(2)]
    made = merge_adapters(ingredients, tmp_path / "soup", energy=0.8)
    assert 0 < made["residual"] <= 0.2**0.5
    assert all(value <= 0.2**0.5 + 1e-9 for value in made["residuals"].values())
    config = json.loads((tmp_path / "soup" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert adapted(tmp_path / "soup") is not None


METHODS = [
    {"type": "task_arithmetic", "scaling": 1.4},
    {"type": "slerp"},
    {"type": "ties", "density": 0.5},
    {"type": "dare", "density": 0.6, "elect": "sum"},
    {"type": "della", "density": 0.6},
    {"type": "model_stock", "per": "row"},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["type"])
@pytest.mark.parametrize("dora", [False, True])
def test_methods_see_dense_changes(tmp_path: Path, method: dict[str, Any], dora: bool) -> None:
    base = save_base(tmp_path / "base")
    configs = [lora(3, use_dora=dora), lora(2, use_rslora=True), lora(4)]
    made = [save_adapter(tmp_path / str(at), base, at, config) for at, config in enumerate(configs)]
    payload = {"ingredients": [[str(folder), 1 / 3] for folder in made], "out": str(tmp_path / "soup"), "energy": 1.0}
    result = merge({**payload, "method": method, "seed": 5, "scale": 0.8})
    plain, expected = net().state_dict(), net()
    function = method_function(parse_method(method))
    for name in ("a", "b"):
        key = f"{name}.weight"
        changes = [adapted(folder).merge_and_unload().state_dict()[key] - plain[key] for folder in made]
        change = function(changes, [1 / 3] * 3, None, name=key, seed=5)
        expected.get_parameter(key).data = plain[key] + 0.8 * change
    assert result["residual"] < 1e-6
    assert_same_answers(tmp_path / "soup", expected)


def test_a_method_that_is_not_linear_keeps_most_of_its_energy_by_default(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    made = [(save_adapter(tmp_path / str(at), base, at, lora(3)), 0.5) for at in range(2)]
    ties = parse_method({"type": "ties", "density": 0.3})
    result = merge_adapters(made, tmp_path / "soup", method=ties)
    assert 0 < result["residual"] <= (1 - ENERGY) ** 0.5 + 1e-9
    capped = merge_adapters(made, tmp_path / "soup", method=ties, rank=2)
    assert capped["rank"] == 2
    assert capped["residual"] > result["residual"]
