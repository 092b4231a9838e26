"""A small network in float64, adapters of any kind on it as PEFT writes them, and dense arithmetic over its weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

from pipelines.soups.whole import record_heads

INPUTS = torch.linspace(-1, 1, 5 * 12, dtype=torch.float64).reshape(5, 12)


class Net(nn.Module):
    """Two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.score = nn.Linear(12, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(torch.tanh(self.b(torch.tanh(self.a(x)))))


def net(head_seed: int = 0) -> Net:
    torch.manual_seed(0)
    made = Net().double()
    torch.manual_seed(100 + head_seed)
    nn.init.normal_(made.score.weight)
    return made


def save_base(folder: Path, head: bool = True) -> Path:
    """The base model's folder; without its head if the head is drawn by every run."""
    folder.mkdir()
    state = {name: tensor for name, tensor in net().state_dict().items() if head or not name.startswith("score")}
    save_file(state, str(folder / "model.safetensors"))
    (folder / "config.json").write_text("{}")
    return folder


def save_adapter(folder: Path, base: Path, seed: int, config: Any, head_seed: int = 0, heads: bool = False) -> Path:
    """An adapter whose every trained number was moved, saved by PEFT."""
    plain = net(head_seed)
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(plain), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = 0.3 * torch.randn_like(parameter)
            parameter.data = noise if "lora_" in name and "magnitude" not in name else parameter.data + noise
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(str(folder))
    record = json.loads((folder / "adapter_config.json").read_text())
    record["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(record))
    if heads:
        record_heads(folder, {name: value for name, value in plain.state_dict().items() if name.startswith("score")})
    return folder


def adapted(folder: Path, head_seed: int = 0) -> PeftModel:
    return PeftModel.from_pretrained(net(head_seed), str(folder)).eval()


def dense_soup(ingredients: list[tuple[Path, float]], scale: float = 1.0) -> Net:
    """The base with Σ w (θ - θ₀), every θ as PEFT itself merges its adapter."""
    plain, total = net(), net()
    for folder, weight in ingredients:
        merged = adapted(folder).merge_and_unload().state_dict()
        for name, parameter in total.named_parameters():
            parameter.data += scale * weight * (merged[name] - plain.state_dict()[name])
    return total


def assert_same_answers(soup: Path, expected: Net, tolerance: float = 2e-6) -> None:
    with torch.no_grad():
        truth = expected(INPUTS)
        assert (truth - net()(INPUTS)).abs().max() > 0.02, "the ingredients must change something"
        torch.testing.assert_close(adapted(soup)(INPUTS), truth, rtol=0, atol=tolerance)
