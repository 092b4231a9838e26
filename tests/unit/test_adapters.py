"""Adapters of every kind on a tiny random Llama: turned off, they leave the base as it is, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sft_runs import config, make_place

from pipelines.config import FineTuneConfig, parse_pipeline
from pipelines.finetune import adapters
from pipelines.finetune.model import LoadedModel, load_folder

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}
"""Name -> settings of an adapter."""
IDS = torch.arange(24).reshape(2, 12) % 200


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("adapters"))


def typed(place: Path, **changed: Any) -> FineTuneConfig:
    made = parse_pipeline(config(place, **changed))
    assert isinstance(made, FineTuneConfig)
    return made


def moved(place: Path, **changed: Any) -> tuple[LoadedModel, Any]:
    """The base model, and an adapter on it whose every trained number was moved."""
    loaded = load_folder(place / "model")
    loaded.model.requires_grad_(False)
    torch.manual_seed(3)
    model = adapters.inject(loaded.model, typed(place, **changed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return loaded, model


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_turned_off_leaves_the_base_bit_by_bit(place: Path, kind: str) -> None:
    base = answer(load_folder(place / "model").model)
    _, model = moved(place, **KINDS[kind])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapted = answer(model)
    assert (adapted - base).abs().max() > 0.01
    with adapters.disabled(model) as same:
        assert same is model
        assert torch.equal(answer(model), base)
        with adapters.disabled(model):
            pass
        assert torch.equal(answer(model), base), "an inner one must not turn it on again"
    assert torch.equal(answer(model), adapted)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained


def test_without_an_adapter_there_is_none_to_turn_off(place: Path) -> None:
    model = load_folder(place / "model").model
    with pytest.raises(TypeError, match="all weights are trained"), adapters.disabled(model):
        pass
