"""RegMean from nothing but checkpoints: Gram matrices are gathered once, used by full models and adapters alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from soup_machine import NAME, SHAPE, Killed, Stage
from transformers import AutoModelForCausalLM

from pipelines.config import parse_pipeline
from pipelines.finetune.data import encode
from pipelines.soups import gathering, merge
from pipelines.soups.gathering import gather
from pipelines.soups.grams import GRAMS
from pipelines.soups.methods.regmean import regmean
from pipelines.splits import load_splits
from pipelines.stage import UserError
from pipelines.weights import NOT_WEIGHTS, content_hash
from sweeps.soup import make_soup
from sweeps.soup_spec import parse_soup

REGMEAN = {"type": "regmean", "off_diagonal": 0.9}
LAYER = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gathering")
    tiny.save_model(folder / "base")
    tiny.write_rows(folder / "rows.jsonl", tiny.sums(24))
    for number, targets in enumerate((["q_proj"], ["q_proj", "down_proj"])):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM"))
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(value, std=0.3)
        adapted.save_pretrained(str(folder / f"lora-{number}"))
        adapted.merge_and_unload().save_pretrained(folder / f"full-{number}")
        tiny.tokenizer().save_pretrained(folder / f"full-{number}")
    return folder


def payload(root: Path, kind: str, number: int) -> dict[str, Any]:
    data = {"train": {"path": str(root / "rows.jsonl"), "type": "prompt_completion"}, "select": {"fraction": 0.5}}
    config = parse_pipeline({"type": "sft", "base_model": str(root / "base"), "datasets": data, "max_steps": 1})
    folders = [str(root / f"{kind}-{n}") for n in range(2)]
    return {"config": config.model_dump(mode="json"), "folder": folders[number], "folders": folders, "cache": None}


def inputs(root: Path, number: int, layer: str) -> torch.Tensor:
    """(tokens, in): what a linear layer of a run's model sees on the run's train rows, row by row and unpadded."""
    model = AutoModelForCausalLM.from_pretrained(root / f"full-{number}", dtype=torch.float32)
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(layer.removesuffix(".weight"))
    hook.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach().flatten(0, -2)))
    config: Any = parse_pipeline(payload(root, "full", number)["config"])
    with torch.no_grad():
        for row in load_splits(config.datasets, 0).train:
            model(input_ids=torch.tensor([encode(row, tiny.tokenizer(), config.sequence_len).ids]))
    return torch.cat(seen)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_is_gathered_are_the_inputs_on_train_and_regmean_merges_by_them(
    root: Path, tmp_path: Path, kind: str
) -> None:
    tokens = [gather(payload(root, kind, number))["tokens"] for number in range(2)]
    rows = [inputs(root, number, LAYER) for number in range(2)]
    assert tokens == [len(one) for one in rows]
    grams = [load_file(root / f"{kind}-{number}" / GRAMS) for number in range(2)]
    for stored, own in zip(grams, rows, strict=True):
        torch.testing.assert_close(stored[LAYER], own.T @ own / len(own), rtol=1e-3, atol=1e-5)
    adapted = {f"model.layers.{n}.{part}.weight" for n in range(2) for part in ("self_attn.q_proj", "mlp.down_proj")}
    assert adapted == set(grams[0]) if kind == "lora" else adapted < set(grams[0])
    assert [gather(payload(root, kind, number))["tokens"] for number in range(2)] == [0, 0], "they are there"

    ingredients = [[str(root / f"{kind}-{number}"), 0.5] for number in range(2)]
    made = merge({"ingredients": ingredients, "out": str(tmp_path / "soup"), "method": REGMEAN, "energy": 1.0})
    assert made["kind"] == ("adapter" if kind == "lora" else "full")
    weights = [load_file(root / f"full-{number}" / "model.safetensors")[LAYER] for number in range(2)]
    expected = regmean(weights, [0.5, 0.5], grams=[one[LAYER] for one in grams])
    found = AutoModelForCausalLM.from_pretrained(root / "base" if kind == "lora" else tmp_path / "soup")
    if kind == "lora":
        found = PeftModel.from_pretrained(found, str(tmp_path / "soup")).merge_and_unload()
    torch.testing.assert_close(found.get_parameter(LAYER).data, expected, rtol=1e-4, atol=1e-5)
    assert (expected - (weights[0] + weights[1]) / 2).abs().max() > 0.01, "the average would not do"


def test_adapters_without_grams_are_refused_and_not_averaged(root: Path, tmp_path: Path) -> None:
    folders = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / str(number) / name).write_bytes((root / f"lora-{number}" / name).read_bytes())
        folders.append([str(tmp_path / str(number)), 0.5])
    with pytest.raises(UserError, match=f"regmean needs {GRAMS} beside every ingredient, but .*0 has none"):
        merge({"ingredients": folders, "out": str(tmp_path / "soup"), "method": REGMEAN})


def test_grams_are_no_weights(tmp_path: Path) -> None:
    assert GRAMS in NOT_WEIGHTS
    save_file({"a": torch.ones(2)}, str(tmp_path / "model.safetensors"))
    before = content_hash(tmp_path)
    save_file({"a": torch.ones(2, 2)}, str(tmp_path / GRAMS))
    assert content_hash(tmp_path) == before


def test_a_pipeline_of_ones_own_is_asked_for_its_grams(tmp_path: Path) -> None:
    config = {"type": "custom", "import_path": "mine:Mine", "total": 3}
    asked = {"config": config, "folder": str(tmp_path), "folders": [str(tmp_path)], "cache": None}
    with pytest.raises(UserError, match=f"has no {GRAMS}, and regmean gathers it for pipeline type sft, not custom"):
        gather(asked)


@pytest.mark.parametrize("after", [0, 4, 6, 8])
def test_a_soup_gathers_once_for_each_run_and_a_resumed_one_not_again(tmp_path: Path, after: int) -> None:
    """Every run's matrices are gathered before the first merge, by its own configuration, and are kept beside it."""
    stage = Stage(tmp_path, [0.5, 0.3, 0.9])
    plain, gathered = stage.backend.do, []

    def do(function: str, asked: Mapping[str, Any]) -> Any:
        if function != "pipelines.soups.gathering:gather":
            return plain(function, asked)
        path = Path(asked["folder"]) / GRAMS
        if path.is_file():
            return {"tokens": 0}
        assert gathering.adapted_weights([Path(one) for one in asked["folders"]]) == {"layer.weight"}
        run = asked["folder"].partition("/trials/")[2].partition("/attempt")[0]
        assert asked["config"]["learning_rate"] == pytest.approx(1e-4 * (int(run[:4]) + 1))
        gathered.append(run)
        inside = torch.eye(SHAPE[1]) * (1 + int(run[:4]))
        save_file({f"{NAME.removeprefix('base_model.model.')}.weight": inside}, str(path))
        return {"tokens": 7}

    stage.backend.do = do  # type: ignore[method-assign]
    config = parse_soup({"method": "regmean", "top": 3, "barrier": False})
    stage.kill("call", after)
    with pytest.raises(Killed):
        make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, config, stage.said.append)
    soup = make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, config, stage.said.append)
    assert soup is not None
    assert soup.finished is not None
    assert sorted(gathered) == sorted(stage.runs)
    assert len(soup.finished["ingredients"]) == 3
    record = json.loads((stage.paths.root / soup.finished["folder"] / "soup.json").read_text())
    assert record["merge"]["method"]["type"] == "regmean"
    again = make_soup(stage.loaded, stage.ledger, stage.paths, stage.backend, config, stage.said.append)
    assert again == soup
    assert sum("over 7 tokens of train" in line for line in stage.said) <= 3
