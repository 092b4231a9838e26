"""PiSSA: LoRA that begins as a weight's largest singular directions (Meng et al. 2024, arXiv 2404.02948).

The paper takes W = U·S·Vᵀ apart, starts from s·B₀·A₀ = U_r·S_r·V_rᵀ and trains it over the frozen residual W - s·B₀·A₀. PEFT
writes the residual over the base's weights. Here the base stays as it is, and a second adapter that is never trained takes the
start away again: the weight is W - s·B₀·A₀ + s·B·A either way. So the model in memory is the original one once the adapters are
taken off or turned off, other runs can use it, and what is saved is a plain LoRA adapter of rank 2r on the original base, with
A = [A; A₀] and B = [B, -B₀] (PEFT's own conversion), which soups and plain PEFT take as it is.

The singular directions depend on the base and the rank alone and cost far more than reading them back (a minute or more for a
model of 135 million weights on one core), so they are kept in the cache folder and shared by all runs there. A run that goes on
reads both halves from its checkpoint.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from pipelines.hashes import record_hash
from pipelines.once import made_once
from pipelines.stage import UserError

START = "start"
"""PEFT's name of the second adapter, which holds A₀ and -B₀."""
_FILE = "directions.safetensors"
_VERSION = 1


def begin(adapted: Any) -> Any:
    """Put the second adapter beside `default`; both are zero or random until `fill` or `load`.

    Args:
        adapted: a `PeftModel` with a LoRA adapter called `default`.

    Raises:
        UserError: if a module with an adapter is not linear.
    """
    for name, layer in _layers(adapted).items():
        if "default" not in layer.lora_A or layer.get_base_layer().weight.dim() != 2:
            kind = type(layer.get_base_layer()).__name__
            raise UserError(f"peft_init_lora_weights: pissa is for linear modules, but {name} is {kind}")
    start = copy.copy(adapted.peft_config["default"])
    start.lora_dropout = 0.0  # the residual sees whole inputs
    adapted.add_adapter(START, start)
    adapted.base_model.set_adapter(["default", START])
    for name, parameter in adapted.named_parameters():
        if f".{START}." in name:
            parameter.requires_grad_(False)
    return adapted


def has_start(adapted: Any) -> bool:
    """Whether a model was made by `begin`."""
    return START in getattr(adapted, "peft_config", {})


@torch.no_grad()
def fill(adapted: Any, base: str, cache: Path) -> None:
    """Start from the weights' largest singular directions.

    Args:
        adapted: a model made by `begin`.
        base: content hash of the base model.
        cache: folder for what is kept between runs.
    """
    layers = _layers(adapted)
    rank = adapted.peft_config["default"].r
    key = record_hash({"base": base, "rank": rank, "layers": sorted(layers)})

    def make(folder: Path) -> None:
        found = {}
        for name, layer in layers.items():
            weight = layer.get_base_layer().weight
            found[f"{name}.up"], found[f"{name}.down"] = directions(weight.T if layer.fan_in_fan_out else weight, rank)
        save_file(found, folder / _FILE)

    folder = made_once(cache, f"pissa-{_VERSION}-{key[:24]}", make)
    kept = load_file(folder / _FILE)
    for name, layer in layers.items():
        scale = layer.scaling["default"] ** -0.5
        up, down = (kept[f"{name}.{side}"].to(layer.get_base_layer().weight.device) * scale for side in ("up", "down"))
        for adapter, sign in (("default", 1), (START, -1)):
            layer.lora_A[adapter].weight.copy_(down)
            layer.lora_B[adapter].weight.copy_(sign * up)


def directions(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of a weight by `rank` directions, as two factors of equal norms.

    Of W·Wᵀ (or WᵀW, whichever is smaller) in float64 the leading eigenvectors are W's leading singular vectors; a full singular
    value decomposition in fp32 takes several times as long.

    Args:
        weight: W, (out, in).
        rank: directions; a weight with fewer rows or columns has zeros beside them.

    Returns:
        U_r·√S_r, (out, rank), and √S_r·V_rᵀ, (rank, in), fp32.
    """
    wide = weight.detach().double()
    tall = wide.shape[0] > wide.shape[1]
    matrix = wide.T if tall else wide
    _, vectors = torch.linalg.eigh(matrix @ matrix.T)
    left = vectors.flip(-1)[:, :rank]
    right = left.T @ matrix
    sizes = torch.linalg.norm(right, dim=1)
    up, down = left * sizes.sqrt(), right / sizes.sqrt().clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    missing = rank - left.shape[1]
    up, down = torch.nn.functional.pad(up, (0, missing)), torch.nn.functional.pad(down, (0, 0, 0, missing))
    if tall:
        up, down = down.T, up.T
    return up.float().contiguous(), down.float().contiguous()


def joined(weights: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A and A₀, B and -B₀ as one adapter of rank 2r; names as PEFT writes them."""
    return {name: torch.cat([weights[name], start[name]], dim=int(".lora_B." in name)) for name in weights}


def halves(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The inverse of `joined`: what is trained, and where it began."""
    both = {name: value.chunk(2, dim=int(".lora_B." in name)) for name, value in weights.items()}
    return {name: first for name, (first, _) in both.items()}, {name: second for name, (_, second) in both.items()}


def plain_config(folder: Path) -> None:
    """Make a written `adapter_config.json` that of the joined adapter: twice the rank, the same scaling."""
    path = folder / "adapter_config.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    rank, alpha = record["r"], record["lora_alpha"]
    scaled = 2 * alpha * (rank**0.5 if record["use_rslora"] else 1)
    record |= {"r": 2 * rank, "lora_alpha": scaled, "use_rslora": False, "init_lora_weights": True}
    path.write_text(json.dumps(record, indent=2, sort_keys=True), encoding="utf-8")


def _layers(adapted: Any) -> dict[str, Any]:
    """Adapted modules by their names in the base model."""
    return {name: part for name, part in adapted.get_base_model().named_modules() if isinstance(part, LoraLayer)}
