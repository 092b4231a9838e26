"""Recipes fill in what a sweep file does not say, in every trial, and can be swept or be the baseline."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_files import SFT, load, problems

from pipelines.config import SFTConfig
from pipelines.finetune.recipes import KEYS, RECIPES, recipe_values
from sweeps import cli
from sweeps.describe import describe
from sweeps.load import from_record

BARE = SFT.replace("  learning_rate: 2.0e-4\n", "")


def written(recipe: str, more: str = "") -> str:
    return BARE.replace("  max_steps: 27\n", f"  max_steps: 27\n  recipe: {recipe}\n{more}")


def test_the_recipes_are_the_paper_s() -> None:
    assert recipe_values("tulu", 4) == {
        "adapter": "none", "optimizer": "adamw", "learning_rate": 2e-5, "lr_scheduler": "linear", "warmup_ratio": 0.03,
        "weight_decay": 0.0, "gradient_accumulation_steps": 32,
    }  # fmt: skip
    lab = recipe_values("lab", 16)
    assert (lab["gradient_accumulation_steps"], lab["lr_scheduler"], lab["warmup_ratio"]) == (240, "constant", 0.0)
    assert recipe_values("tulu", 4, workers=8)["gradient_accumulation_steps"] == 4
    assert all(recipe_values(name).keys() == KEYS for name in RECIPES)
    assert SFTConfig.model_fields.keys() >= KEYS


def test_what_the_file_says_wins(tmp_path: Path) -> None:
    loaded = load(tmp_path, written("tulu", "  warmup_ratio: 0.1\n") + "parameters: {micro_batch_size: [2, 8]}\n")
    configs = [loaded.resolve(loaded.space.replay(choices)) for choices in loaded.space.grid()]
    assert [config["gradient_accumulation_steps"] for config in configs] == [64, 16]
    assert {config["warmup_ratio"] for config in configs} == {0.1}
    assert {config["learning_rate"] for config in configs} == {2e-5}
    assert {config["adapter"] for config in configs} == {"none"}
    again = from_record(loaded.record())
    assert [again.resolve(again.space.replay(choices)) for choices in again.space.grid()] == configs


def test_a_recipe_s_rows_are_shared_by_the_workers_of_a_trial(tmp_path: Path) -> None:
    text = written("tulu") + "resources: {workers: 4, gpus: 0, cpus: 1}\nparameters: {micro_batch_size: [2, 8]}\n"
    loaded = load(tmp_path, text)
    for known in (loaded, from_record(loaded.record())):
        configs = [known.resolve(known.space.replay(choices)) for choices in known.space.grid()]
        assert [config["gradient_accumulation_steps"] for config in configs] == [16, 4]
    one = load(tmp_path, SFT + "resources: {workers: 4}\nparameters: {lora_r: [2, 4]}\nbaseline: tulu\n")
    baseline = one.resolve_baseline()
    assert baseline is not None
    assert baseline["gradient_accumulation_steps"] == 128 // (2 * 4)
    told = describe(load(tmp_path, written("lab") + "resources: {gpus: 2}\n"))["recipe"]
    assert told["filled"]["gradient_accumulation_steps"] == 960
    wrong = problems(tmp_path, written("tulu") + "resources: {workers: 0}\n")
    assert set(wrong) == {"resources.workers"}


def test_recipes_are_an_axis(tmp_path: Path) -> None:
    loaded = load(tmp_path, BARE + "parameters: {recipe: [lab, tulu], learning_rate: [1.0e-6]}\n")
    configs = [loaded.resolve(loaded.space.replay(choices)) for choices in loaded.space.grid()]
    assert [c["lr_scheduler"] for c in configs] == ["constant", "linear"]
    assert [c["gradient_accumulation_steps"] for c in configs] == [1920, 64]
    assert {c["learning_rate"] for c in configs} == {1e-6}
    assert describe(loaded)["recipe"] is None


def test_check_says_what_was_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load(tmp_path, written("lab", "  adapter: lora\n") + "parameters: {learning_rate: [1.0e-6, 1.0e-5]}\n")
    told = describe(loaded)["recipe"]
    assert told == {
        "name": "lab",
        "filled": {
            "gradient_accumulation_steps": 1920, "lr_scheduler": "constant", "optimizer": "adamw", "warmup_ratio": 0.0,
            "weight_decay": 0.0,
        },
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(written("lab") + "parameters: {learning_rate: [1.0e-6, 1.0e-5]}\n")
    assert cli.main(["check", str(tmp_path / "sweep.yaml")]) == 0
    assert (
        "recipe   lab fills in adapter none, gradient_accumulation_steps 1920, lr_scheduler constant"
        in capsys.readouterr().out
    )


def test_a_recipe_may_be_the_baseline(tmp_path: Path) -> None:
    loaded = load(tmp_path, SFT + "parameters: {lora_r: [2, 4]}\nbaseline: tulu\n")
    config = loaded.resolve_baseline()
    assert config is not None
    assert {key: config[key] for key in KEYS} == recipe_values("tulu")
    assert loaded.spec.named_baseline == "tulu"


def test_lists_stay_lists_beside_a_recipe(tmp_path: Path) -> None:
    loaded = load(tmp_path, written("tulu", "  adapter: lora\n  lora_target_modules: [q_proj, v_proj]\n"))
    assert loaded.resolve({})["lora_target_modules"] == ["q_proj", "v_proj"]
