"""Pruning a model folder, and retraining it with its zeros held: all weights, or an adapter (W + s·B·A) ⊙ M."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from sft_runs import STOP, TOTAL, config, make_place, run, same, weights
from transformers import AutoModelForCausalLM

from pipelines.config import DataFile, RetrainPrunedConfig, parse_pipeline
from pipelines.finetune.masked import ADAPTER
from pipelines.finetune.model import load_folder
from pipelines.finetune.prune import prune
from pipelines.finetune.rows import encode_train
from pipelines.finetune.sft import SFTPipeline
from pipelines.lm import pad
from pipelines.soups import merge
from pipelines.soups.grams import gather_grams
from pipelines.soups.masks import counted, mask_hash, prunable, recorded_mask
from pipelines.splits import read_rows
from pipelines.stage import EvaluationJob, ModelSource, UserError
from sweeps.cli import main

SPARSITY = 0.6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, rows, and the model pruned."""
    place = make_place(tmp_path_factory.mktemp("pruned"))
    made = prune({"model": str(place / "model"), "out": str(place / "pruned"), "settings": {}, "sparsity": SPARSITY})
    assert made["hash"] == mask_hash(place / "pruned") == counted(place / "pruned").hash
    assert (made["before"], made["sparsity"]) == (0.0, pytest.approx(SPARSITY, abs=1e-4))
    return place


def pruned(place: Path, **changed: Any) -> dict[str, Any]:
    settings = config(place, **{"lora_dropout": 0.0, "adapter": "none", **changed})
    return {**settings, "type": "retrain_pruned", "base_model": changed.get("base_model", str(place / "pruned"))}


def zeros(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight == 0 for name, weight in weights(folder).items() if prunable(name) and weight.dim() == 2}


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_retraining_keeps_every_zero_and_trains_the_rest(place: Path, tmp_path: Path, adapter: str) -> None:
    settings = pruned(place, adapter=adapter)
    first, last = run(settings, tmp_path, (1, TOTAL))
    folder = tmp_path / f"checkpoint-{TOTAL}"
    before, after = weights(place / "pruned"), weights(folder)
    assert recorded_mask(folder) == counted(folder) == counted(place / "pruned")
    for name, zero in zeros(place / "pruned").items():
        assert torch.equal(after[name] == 0, zero)
        assert not torch.equal(after[name], before[name])
    assert last.scores[0].value < first.scores[0].value
    job = EvaluationJob(settings, ModelSource(str(folder)), "tune", ({"type": "loss"},))
    assert SFTPipeline().evaluate(job)[0].value == pytest.approx(last.scores[0].value, rel=1e-5)


def test_gradients_of_pruned_weights_do_not_count(place: Path, tmp_path: Path) -> None:
    """Nor in the norm that gradients are clipped to."""
    settings = pruned(place, max_grad_norm=0.01, max_steps=2, warmup_ratio=0.0, lr_scheduler="constant")
    held = run(settings, tmp_path / "held", (2,))[-1].telemetry["train/grad_norm"]
    dense = run({**settings, "type": "sft"}, tmp_path / "dense", (2,))[-1].telemetry["train/grad_norm"]
    assert held < dense


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_stopped_retraining_goes_on_to_the_same_bits(place: Path, tmp_path: Path, adapter: str) -> None:
    settings, pipeline = pruned(place, adapter=adapter), SFTPipeline()
    run(settings, tmp_path / "whole", (STOP, TOTAL), pipeline)
    run(settings, tmp_path / "parts", (STOP, TOTAL), pipeline, stop=STOP)
    start = {"start": str(tmp_path / "parts" / f"checkpoint-{STOP}"), "start_resource": STOP}
    run(settings, tmp_path / "parts", (TOTAL,), SFTPipeline(), **start)
    whole, parts = tmp_path / "whole" / f"checkpoint-{TOTAL}", tmp_path / "parts" / f"checkpoint-{TOTAL}"
    assert same(whole, parts)


def test_an_adapters_checkpoint_is_the_masked_sum(place: Path, tmp_path: Path) -> None:
    run(pruned(place, adapter="lora", lora_target_modules=("q_proj", "down_proj")), tmp_path)
    folder = tmp_path / f"checkpoint-{TOTAL}"
    base, merged = weights(place / "pruned"), weights(folder)
    factors = load_file(folder / ADAPTER / "adapter_model.safetensors")
    moved = 0
    for name, weight in base.items():
        a = factors.get(f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight")
        if a is None:
            assert torch.equal(merged[name], weight)
            continue
        b = factors[f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight"]
        torch.testing.assert_close(merged[name], (weight + 2.0 * b @ a) * (weight != 0))
        moved += not torch.equal(merged[name], weight)
    assert moved == 4
    AutoModelForCausalLM.from_pretrained(folder)


def test_a_soup_of_retrainings_is_as_sparse_as_they_are(place: Path, tmp_path: Path) -> None:
    folders = []
    for decay in (0.0, 0.1):
        run(pruned(place, weight_decay=decay, max_steps=3), tmp_path / str(decay), (3,))
        folders.append(str(tmp_path / str(decay) / "checkpoint-3"))
    made = merge({"ingredients": [[folder, 0.5] for folder in folders], "out": str(tmp_path / "soup")})
    assert made["mask"] == mask_hash(place / "pruned") == recorded_mask(tmp_path / "soup").hash
    assert made["sparsity"]["before"] == made["sparsity"]["after"] == pytest.approx(SPARSITY, abs=1e-4)


def test_a_model_that_is_not_pruned_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not pruned \(0\.0% of its weights are zero\).*stockpot prune"):
        run(pruned(place, base_model=str(place / "model")), tmp_path)


def test_another_mask_than_the_one_given_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"mask_hash: {'0' * 64} is asked for.*{mask_hash(place / 'pruned')}"):
        run(pruned(place, mask_hash="0" * 64), tmp_path)


@pytest.mark.parametrize("changed", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_a_masked_adapter_is_plain_lora(place: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="the adapter's product is masked"):
        parse_pipeline(pruned(place, adapter="lora", **changed))
    assert isinstance(parse_pipeline(pruned(place)), RetrainPrunedConfig)


def test_wanda_weighs_by_the_models_own_inputs(place: Path, tmp_path: Path) -> None:
    rows = {"path": str(place / "train.jsonl"), "type": "prompt_completion"}
    asked = {"model": str(place / "model"), "settings": {"method": "wanda", "rows": 5}, "sparsity": 0.5}
    prune({**asked, "out": str(tmp_path / "wanda"), "data": rows})
    loaded = load_folder(place / "model")
    encoded = encode_train(read_rows(DataFile.model_validate(rows))[:5], loaded.tokenizer, 1024).rows
    ids, mask, _ = pad(list(encoded), loaded.tokenizer.pad_token_id)
    tokens = gather_grams(loaded.model, [{"input_ids": ids, "attention_mask": mask}], tmp_path / "grams.safetensors")
    grams = load_file(tmp_path / "grams.safetensors")
    dense, found = weights(place / "model"), zeros(tmp_path / "wanda")
    for name, zero in found.items():
        scores = dense[name].abs() * (grams[name].diagonal() * tokens).sqrt()
        lowest = scores.topk(scores.shape[1] // 2, dim=1, largest=False).indices
        assert torch.equal(zero, torch.zeros_like(zero).scatter_(1, lowest, True))
    magnitude = {"settings": {"scope": "layer"}, "sparsity": 0.5, "out": str(tmp_path / "layer")}
    prune({**asked, **magnitude})
    assert counted(tmp_path / "layer").sparsity == 0.5
    assert mask_hash(tmp_path / "layer") != mask_hash(tmp_path / "wanda")


def test_what_cannot_be_pruned_is_said(place: Path, tmp_path: Path) -> None:
    asked = {"out": str(tmp_path / "out"), "settings": {}}
    with pytest.raises(UserError, match=r"are zero already, more than 0\.2"):
        prune({**asked, "model": str(place / "pruned"), "sparsity": 0.2})
    with pytest.raises(UserError, match="give it rows: --on FILE"):
        prune({**asked, "model": str(place / "model"), "sparsity": 0.5, "settings": {"method": "wanda"}})
    assert not (tmp_path / "out").exists()


def test_pruning_goes_on_from_what_is_zero(place: Path, tmp_path: Path) -> None:
    prune({"model": str(place / "pruned"), "out": str(tmp_path / "more"), "settings": {}, "sparsity": 0.8})
    less, more = zeros(place / "pruned"), zeros(tmp_path / "more")
    assert all(not (less[name] & ~more[name]).any() for name in less)
    assert counted(tmp_path / "more").sparsity == pytest.approx(0.8, abs=1e-4)


def test_the_command_prints_mask_and_sparsity(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    asked = ["prune", str(place / "model"), "--sparsity", "0.25", "-o", out]
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert "sparsity  0.2500 (before: 0.0000)" in printed
    assert f"mask      {mask_hash(tmp_path / 'out')}" in printed
    assert main(asked) == 2
    assert "exists; give another folder, or --force" in capsys.readouterr().err
    assert main([*asked, "--force", "--on", str(place / "train.jsonl")]) == 2
    assert "--on: magnitude reads no rows" in capsys.readouterr().err
    assert main([*asked, "--force", "--json", "--method", "wanda", "--on", str(place / "train.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["hash"] == mask_hash(tmp_path / "out")
    assert main(["prune", str(place / "model"), "--sparsity", "1.5", "-o", out]) == 2
    assert "must lie above 0 and below 1" in capsys.readouterr().err
