"""Soups of every kind of adapter against dense arithmetic in float64 on a small network, in plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_nets import adapted, assert_same_answers, dense_soup, net, save_adapter, save_base
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, VeraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

from pipelines.soups.factors import FAMILIES, Surroundings
from pipelines.soups.lora import merge_adapters
from pipelines.stage import UserError

KINDS: dict[str, Any] = {
    "lora": lambda: LoraConfig(r=3, lora_alpha=5, target_modules=["a", "b"]),
    "rslora": lambda: LoraConfig(r=4, lora_alpha=6, target_modules=["b"], use_rslora=True),
    "lora_bias": lambda: LoraConfig(r=2, lora_alpha=3, target_modules=["a", "b"], lora_bias=True),
    "patterns": lambda: LoraConfig(r=2, target_modules=["a", "b"], rank_pattern={"a": 5}, alpha_pattern={"b": 7}),
    "dora": lambda: LoraConfig(r=2, lora_alpha=4, target_modules=["a", "b"], use_dora=True),
    "bias_all": lambda: LoraConfig(r=2, target_modules=["a"], bias="all"),
    "bias_lora_only": lambda: LoraConfig(r=2, target_modules=["b"], bias="lora_only"),
    "head": lambda: LoraConfig(r=2, target_modules=["a"], modules_to_save=["score"]),
    "loha": lambda: LoHaConfig(r=2, alpha=3, target_modules=["a", "b"]),
    "lokr": lambda: LoKrConfig(r=1, alpha=2, target_modules=["a", "b"], decompose_both=True),
    "lokr_whole": lambda: LoKrConfig(r=8, alpha=2, target_modules=["a"]),
    "vera": lambda: VeraConfig(r=5, target_modules=["a", "b"]),
}
MIXTURES = [
    ["lora"],
    ["lora", "rslora", "patterns"],
    ["lora_bias", "rslora"],
    ["dora", "dora", "lora"],
    ["bias_all", "bias_all"],
    ["bias_all", "bias_lora_only", "lora"],
    ["head", "head"],
    ["head", "lora", "bias_lora_only"],
    ["head", "dora", "bias_all"],
    ["loha", "loha"],
    ["lokr", "lokr_whole"],
    ["vera", "vera"],
    ["loha", "lokr", "vera", "lora", "dora"],
]


@pytest.mark.parametrize("kinds", MIXTURES, ids="+".join)
@pytest.mark.parametrize("even", [True, False])
def test_soup_equals_dense_arithmetic(tmp_path: Path, kinds: list[str], even: bool) -> None:
    base = save_base(tmp_path / "base")
    weights = [1 / len(kinds)] * len(kinds) if even else [0.7, 0.5, -0.3, 0.2, 0.1][: len(kinds)]
    ingredients = [
        (save_adapter(tmp_path / f"{at}", base, at + 1, KINDS[kind]()), weight)
        for at, (kind, weight) in enumerate(zip(kinds, weights, strict=True))
    ]
    made = merge_adapters(ingredients, tmp_path / "soup")
    assert made["residual"] == 0.0
    assert_same_answers(tmp_path / "soup", dense_soup(ingredients))


@pytest.mark.parametrize("kind", KINDS)
def test_one_is_itself_and_four_equal_ones_are_it_too(tmp_path: Path, kind: str) -> None:
    base = save_base(tmp_path / "base")
    one = save_adapter(tmp_path / "one", base, 3, KINDS[kind]())
    for count in (1, 4):
        merge_adapters([(one, 1 / count)] * count, tmp_path / "soup")
        assert_same_answers(tmp_path / "soup", dense_soup([(one, 1.0)]))


@pytest.mark.parametrize("kinds", [["lora", "head"], ["dora", "bias_all"], ["loha", "vera"]], ids="+".join)
def test_scale_moves_toward_the_base(tmp_path: Path, kinds: list[str]) -> None:
    base = save_base(tmp_path / "base")
    ingredients = [(save_adapter(tmp_path / kind, base, at, KINDS[kind]()), 0.5) for at, kind in enumerate(kinds)]
    merge_adapters(ingredients, tmp_path / "soup", scale=0.4)
    assert_same_answers(tmp_path / "soup", dense_soup(ingredients, scale=0.4))


@pytest.mark.parametrize("kind", ["lora", "rslora", "patterns", "loha", "lokr", "lokr_whole", "vera"])
def test_factors_are_pefts_own_delta_weight_in_float64(kind: str) -> None:
    torch.manual_seed(1)
    model = get_peft_model(net(), KINDS[kind]())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) if name else parameter
    config = model.peft_config["default"].to_dict()
    tensors = get_peft_model_state_dict(model)
    shared = {name.removeprefix("base_model."): t for name, t in tensors.items() if name.startswith("base_model.vera_")}
    checked = 0
    for layer, width in (("a", 12), ("b", 8)):
        own = f"base_model.model.{layer}."
        parts = {name.removeprefix(own): tensor.double() for name, tensor in tensors.items() if name.startswith(own)}
        if not parts:
            continue
        around = Surroundings({name: tensor.double() for name, tensor in shared.items()}, lambda _, width=width: width)
        made = FAMILIES[config["peft_type"]](config, layer, parts, around)
        theirs = getattr(model.base_model.model, layer).get_delta_weight("default").double()
        torch.testing.assert_close(made.delta(), theirs, rtol=0, atol=1e-12 if theirs.dtype == torch.float64 else 1e-6)
        assert made.down.shape[0] <= min(made.shape)
        checked += 1
    assert checked


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.9, -0.2]])
def test_ia3_is_averaged_in_its_own_form(tmp_path: Path, weights: list[float]) -> None:
    base = save_base(tmp_path / "base")
    configs = [
        IA3Config(target_modules=["a", "b"], feedforward_modules=["b"]),
        IA3Config(target_modules=["a"], feedforward_modules=[]),
    ]
    folders = [save_adapter(tmp_path / f"{at}", base, at, config) for at, config in enumerate(configs)]
    ingredients = list(zip(folders, weights, strict=True))
    made = merge_adapters(ingredients, tmp_path / "soup")
    assert made["rank"] == 0
    assert json.loads((tmp_path / "soup" / "adapter_config.json").read_text())["peft_type"] == "IA3"
    assert_same_answers(tmp_path / "soup", dense_soup(ingredients))


def test_ia3_on_rows_here_and_columns_there_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    a = save_adapter(tmp_path / "x", base, 1, IA3Config(target_modules=["b"], feedforward_modules=["b"]))
    b = save_adapter(tmp_path / "y", base, 2, IA3Config(target_modules=["b"], feedforward_modules=[]))
    with pytest.raises(UserError, match="feedforward_modules differ"):
        merge_adapters([(a, 0.5), (b, 0.5)], tmp_path / "soup")


def test_vera_without_its_projection_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    bare = save_adapter(tmp_path / "x", base, 1, VeraConfig(r=4, target_modules=["a"], save_projection=False))
    with pytest.raises(UserError, match="save it with save_projection: true"):
        merge_adapters([(bare, 1.0)], tmp_path / "soup")


def test_the_base_counts_by_content_and_not_by_name(tmp_path: Path) -> None:
    first, second = save_base(tmp_path / "one"), save_base(tmp_path / "two")
    a = save_adapter(tmp_path / "a", first, 1, KINDS["lora"]())
    b = save_adapter(tmp_path / "b", second, 2, KINDS["lora"]())
    merge_adapters([(a, 0.5), (b, 0.5)], tmp_path / "soup")
    (second / "config.json").write_text('{"other": 1}')
    with pytest.raises(UserError, match="do not have one base model") as caught:
        merge_adapters([(a, 0.5), (b, 0.5)], tmp_path / "soup2")
    assert str(a) in str(caught.value)
    assert str(b) in str(caught.value)


def heads(tmp_path: Path, head_seeds: tuple[int, int], recorded: bool) -> list[tuple[Path, float]]:
    base = save_base(tmp_path / "base", head=False)
    return [
        (save_adapter(tmp_path / f"{at}", base, at, KINDS["head"](), seed, recorded), 0.5)
        for at, seed in enumerate(head_seeds)
    ]


def test_heads_that_the_base_lacks_are_averaged_if_they_began_alike(tmp_path: Path) -> None:
    ingredients = heads(tmp_path, (0, 0), recorded=True)
    merge_adapters(ingredients, tmp_path / "soup")
    assert_same_answers(tmp_path / "soup", dense_soup(ingredients))
    assert (tmp_path / "soup" / "heads.json").read_text() == (tmp_path / "0" / "heads.json").read_text()


@pytest.mark.parametrize(
    ("seeds", "recorded", "words"),
    [((0, 1), True, r"score\.weight began differently in"), ((0, 0), False, r"does not say in heads\.json")],
)
def test_heads_that_began_apart_are_refused(tmp_path: Path, seeds: tuple[int, int], recorded: bool, words: str) -> None:
    ingredients = heads(tmp_path, seeds, recorded)
    with pytest.raises(UserError, match=words) as caught:
        merge_adapters(ingredients, tmp_path / "soup")
    assert str(ingredients[0][0]) in str(caught.value)


def test_a_head_can_not_be_moved_toward_a_base_that_lacks_it(tmp_path: Path) -> None:
    ingredients = heads(tmp_path, (0, 0), recorded=True)
    with pytest.raises(UserError, match=r"has no score\."):
        merge_adapters(ingredients, tmp_path / "soup", scale=0.5)


def test_pissa_saved_as_lora_is_averaged(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    torch.manual_seed(4)
    model = get_peft_model(net().float(), LoraConfig(r=3, target_modules=["a"], init_lora_weights="pissa"))
    start = tmp_path / "start"
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(str(start))
    model.peft_config["default"].init_lora_weights = "pissa"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    trained = {name: tensor.clone() for name, tensor in model.base_model.model.named_parameters()}
    model.save_pretrained(str(tmp_path / "raw"))
    model.save_pretrained(str(tmp_path / "plain"), path_initial_model_for_weight_conversion=str(start))
    path = tmp_path / "plain" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)}))
    with pytest.raises(UserError, match="path_initial_model_for_weight_conversion"):
        merge_adapters([(tmp_path / "raw", 1.0)], tmp_path / "soup")
    merge_adapters([(tmp_path / "plain", 1.0)], tmp_path / "soup")
    expected = net()
    scale = model.base_model.model.a.scaling["default"]
    product = trained["a.lora_B.default.weight"] @ trained["a.lora_A.default.weight"]
    expected.a.weight.data = (trained["a.base_layer.weight"] + scale * product).detach().double()
    assert_same_answers(tmp_path / "soup", expected)


def test_files_hold_float32_and_rank_stays_below_the_matrix(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    kinds = ["loha", "lokr", "vera", "lora"] * 2
    ingredients = [(save_adapter(tmp_path / f"{at}", base, at, KINDS[k]()), 1 / 8) for at, k in enumerate(kinds)]
    made = merge_adapters(ingredients, tmp_path / "soup")
    tensors = load_file(str(tmp_path / "soup" / "adapter_model.safetensors"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert made["rank"] == 8
    assert adapted(tmp_path / "soup") is not None
