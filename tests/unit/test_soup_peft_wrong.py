"""Where PEFT's `add_weighted_adapter` is wrong or refuses, ours equals dense arithmetic.

Each test first shows what the installed PEFT does. One that fails there after an upgrade says that PEFT was mended; ours
stays right either way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_nets import INPUTS, adapted, assert_same_answers, dense_soup, net, save_adapter, save_base
from peft import LoHaConfig, LoraConfig, PeftModel

from pipelines.soups.lora import merge_adapters


def peft_soup(folders: list[Path], weights: list[float], kind: str, **more: Any) -> PeftModel:
    model = PeftModel.from_pretrained(net(), str(folders[0]), adapter_name="0")
    for at, folder in enumerate(folders[1:], start=1):
        model.load_adapter(str(folder), adapter_name=str(at))
    model.add_weighted_adapter([str(at) for at in range(len(folders))], weights, "soup", combination_type=kind, **more)
    model.set_adapter("soup")
    return model.eval()


def change(model: Any) -> dict[str, torch.Tensor]:
    """What a merged model changed in its two layers, weights and biases."""
    merged, plain = model.state_dict(), net().state_dict()
    return {name: merged[name] - plain[name] for name in plain if not name.startswith("score")}


def off(model: Any, truth: Any) -> float:
    """‖got - exact‖ / ‖exact‖ over all changes."""
    got, exact = change(model), change(truth)
    error = sum(float((got[name] - exact[name]).square().sum()) for name in exact)
    return float((error / sum(float(exact[name].square().sum()) for name in exact)) ** 0.5)


def folders(tmp_path: Path, count: int = 2, same: bool = False, **config: Any) -> list[Path]:
    base = save_base(tmp_path / "base")
    settings = {"r": 3, "lora_alpha": 6, "target_modules": ["a", "b"], **config}
    return [
        save_adapter(tmp_path / str(at), base, 1 if same else at + 1, LoraConfig(**settings)) for at in range(count)
    ]


def assert_ours_is_right(tmp_path: Path, made: list[Path]) -> Any:
    ingredients = [(folder, 1 / len(made)) for folder in made]
    merge_adapters(ingredients, tmp_path / "soup")
    truth = dense_soup(ingredients)
    assert_same_answers(tmp_path / "soup", truth)
    assert off(adapted(tmp_path / "soup").merge_and_unload(), truth) < 1e-6
    return truth


def test_linear_has_cross_terms(tmp_path: Path) -> None:
    made = folders(tmp_path, 3)
    theirs = peft_soup(made, [1 / 3] * 3, "linear").merge_and_unload()
    truth = assert_ours_is_right(tmp_path, made)
    assert off(theirs, truth) > 0.5


def test_linear_multiplies_equal_adapters_by_their_number(tmp_path: Path) -> None:
    made = folders(tmp_path, 3, same=True)
    theirs = peft_soup(made, [1 / 3] * 3, "linear").merge_and_unload()
    truth = assert_ours_is_right(tmp_path, made)
    for name, exact in change(truth).items():
        torch.testing.assert_close(change(theirs)[name], 3 * exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "more"), [("cat", {}), ("svd", {"svd_rank": 6})])
def test_rslora_is_scaled_by_the_root_of_the_new_rank(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    made = folders(tmp_path, 2, use_rslora=True)
    theirs = peft_soup(made, [0.5, 0.5], kind, **more).merge_and_unload()
    truth = assert_ours_is_right(tmp_path, made)
    assert off(theirs, truth) > 1.0


@pytest.mark.parametrize("kind", ["cat", "linear"])
def test_a_bias_on_b_is_lost(tmp_path: Path, kind: str) -> None:
    made = folders(tmp_path, 2, lora_bias=True)
    theirs = change(peft_soup(made, [0.5, 0.5], kind).merge_and_unload())
    truth = assert_ours_is_right(tmp_path, made)
    for layer in "ab":
        exact = change(truth)[f"{layer}.bias"]
        assert (theirs[f"{layer}.bias"] - exact).norm() > 0.3 * exact.norm()


def test_magnitudes_of_dora_are_not_merged(tmp_path: Path) -> None:
    made = folders(tmp_path, 2, use_dora=True)
    theirs = peft_soup(made, [0.5, 0.5], "cat").merge_and_unload()
    truth = assert_ours_is_right(tmp_path, made)
    assert off(theirs, truth) > 0.1


def test_heads_are_refused(tmp_path: Path) -> None:
    made = folders(tmp_path, 2, modules_to_save=["score"])
    with pytest.raises(ValueError, match="modules_to_save"):
        peft_soup(made, [0.5, 0.5], "cat")
    merge_adapters([(folder, 0.5) for folder in made], tmp_path / "soup")
    assert_same_answers(tmp_path / "soup", dense_soup([(folder, 0.5) for folder in made]))


def test_other_kinds_have_no_merge_at_all(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    made = [save_adapter(tmp_path / str(at), base, at, LoHaConfig(r=2, target_modules=["a"])) for at in range(2)]
    with pytest.raises(AttributeError, match="add_weighted_adapter"):
        peft_soup(made, [0.5, 0.5], "cat")
    merge_adapters([(folder, 0.5) for folder in made], tmp_path / "soup")
    with torch.no_grad():
        truth = dense_soup([(folder, 0.5) for folder in made])(INPUTS)
        torch.testing.assert_close(adapted(tmp_path / "soup")(INPUTS), truth, rtol=0, atol=2e-6)
