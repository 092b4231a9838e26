"""Plain PEFT loads the soup, and its logits are those of the averaged ΔW, on a tiny random Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.finetune.adapters import attach, detach
from pipelines.soups.lora import merge_adapters

TOKENS = torch.tensor([[5, 9, 23, 7, 1, 30]])


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config).eval()


def adapter(folder: Path, seed: int, **config: object) -> Path:
    """A random adapter with both factors away from zero, saved by PEFT."""
    torch.manual_seed(seed)
    model = get_peft_model(base(), LoraConfig(**config))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(str(folder))
    return folder


def logits(folder: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(base(), str(folder)).eval()
    with torch.no_grad():
        return model(TOKENS).logits


def dense_logits(ingredients: list[tuple[Path, float]]) -> torch.Tensor:
    """The base with Σ w ΔW added weight by weight, ΔW as PEFT itself merges each adapter."""
    plain, total = base(), base()
    for folder, weight in ingredients:
        merged = PeftModel.from_pretrained(base(), str(folder)).merge_and_unload()
        for name, parameter in total.named_parameters():
            parameter.data += weight * (merged.get_parameter(name).data - plain.get_parameter(name).data)
    with torch.no_grad():
        return total(TOKENS).logits


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "plain": adapter(root / "plain", 1, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
        "rslora": adapter(root / "rslora", 2, r=2, lora_alpha=5, target_modules=["q_proj", "up_proj"], use_rslora=True),
        "patterns": adapter(
            root / "patterns",
            3,
            r=3,
            lora_alpha=3,
            target_modules="all-linear",
            rank_pattern={r"layers\.0\.self_attn\.q_proj": 6, "down_proj": 1},
            alpha_pattern={r"layers\.0\.self_attn\.q_proj": 9},
        ),
    }


def test_mixed_soup_equals_dense_arithmetic(adapters: dict[str, Path], tmp_path: Path) -> None:
    ingredients = [(adapters["plain"], 0.5), (adapters["rslora"], 0.8), (adapters["patterns"], -0.3)]
    merge_adapters(ingredients, tmp_path / "soup")
    expected = dense_logits(ingredients)
    torch.testing.assert_close(logits(tmp_path / "soup"), expected, rtol=0, atol=2e-5)
    with torch.no_grad():
        assert (expected - base()(TOKENS).logits).abs().max() > 0.05


@pytest.mark.parametrize("name", ["plain", "rslora", "patterns"])
@pytest.mark.parametrize("count", [1, 4])
def test_equal_ingredients_are_the_ingredient(adapters: dict[str, Path], tmp_path: Path, name: str, count: int) -> None:
    merge_adapters([(adapters[name], 1 / count)] * count, tmp_path / "soup")
    torch.testing.assert_close(logits(tmp_path / "soup"), logits(adapters[name]), rtol=0, atol=1e-5)


def test_peft_cat_differs_on_rslora(adapters: dict[str, Path], tmp_path: Path) -> None:
    """The reason for an own merge: PEFT 0.21's `cat` keeps rsLoRA's scaling with the summed rank.

    If this fails after an upgrade of PEFT, its defect was mended; ours stays right either way.
    """
    pair = [(adapters["rslora"], 0.5), (adapters["rslora"], 0.5)]
    model = PeftModel.from_pretrained(base(), str(pair[0][0]), adapter_name="a")
    model.load_adapter(str(pair[1][0]), adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "cat", combination_type="cat")
    model.set_adapter("cat")
    with torch.no_grad():
        theirs = model.eval()(TOKENS).logits
    exact = dense_logits(pair)
    merge_adapters(pair, tmp_path / "soup")
    ours = logits(tmp_path / "soup")
    assert (theirs - exact).abs().max() > 100 * (ours - exact).abs().max()


@pytest.mark.parametrize(
    "settings", [{"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}]
)
def test_an_evaluated_adapter_leaves_nothing_in_the_base(tmp_path: Path, settings: dict[str, object]) -> None:
    """The base stays in memory between tasks: trained biases and heads must not stay in it."""
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        attention_bias=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **settings))  # type: ignore[arg-type]
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += 0.5
    trained.save_pretrained(str(tmp_path / "adapter"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        plain = model(TOKENS).logits
        adapted = attach(model, tmp_path / "adapter")
        assert (adapted(TOKENS).logits - plain).abs().max() > 0.001
        model = detach(adapted)
        torch.testing.assert_close(model(TOKENS).logits, plain, rtol=0, atol=0)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
