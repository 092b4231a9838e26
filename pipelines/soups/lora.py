"""The exact average of LoRA adapters, as one adapter of the summed rank.

An adapter changes a weight by ΔW = s·B·A with s = α/r, or α/√r for rsLoRA. The soup's ΔW = Σ wᵢ sᵢ Bᵢ Aᵢ is the product
of two stacked factors: A = [A₁; A₂; ...] (Σr, in) and B = [w₁s₁B₁, w₂s₂B₂, ...] (out, Σr), with scaling 1. Ranks, alphas
and targets may differ. Averaging the A's and the B's apart is another matrix (its cross terms BᵢAⱼ are wrong), and so is
PEFT 0.21's `add_weighted_adapter(combination_type="cat")` on rsLoRA adapters, which keeps `use_rslora` with the new rank.
With a DoRA adapter among them the soup is one too (`pipelines/soups/dora.py`).

Left out, and refused by name: trained biases, `modules_to_save`, embeddings, convolutions, initialisations that
change the base model (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA).

Example:
    >>> merge_adapters([(Path("a"), 0.5), (Path("b"), 0.5)], Path("soup"))
    {'kind': 'adapter', 'hash': '9f...', 'bytes': 1843200, 'rank': 24}
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.finetune.checkpoint import placing
from pipelines.soups.arithmetic import folder_bytes, folder_hash
from pipelines.stage import UserError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
_FACTOR = re.compile(
    rf"{re.escape(PREFIX)}(?P<layer>.+)\.lora_(?:(?P<factor>[AB])\.weight|(?P<magnitude>magnitude_vector)(?:\.weight)?)"
)

SHARED = ("base_model_name_or_path", "revision", "task_type", "fan_in_fan_out")
"""Settings that must be equal in all ingredients and stand in the soup as they are."""

UNSUPPORTED = {
    "lora_bias": "a bias on B (lora_bias)",
    "modules_to_save": "fully trained modules (modules_to_save)",
    "trainable_token_indices": "trained token embeddings (trainable_token_indices)",
    "target_parameters": "adapters on bare parameters (target_parameters)",
    "layer_replication": "replicated layers (layer_replication)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}
"""Settings under which ΔW is not s·B·A, with the words for the message."""
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base model as it is."""


@dataclass(frozen=True)
class Factors:
    """One layer of one adapter: ΔW = scale · up · down.

    Attributes:
        down: A, (rank, in).
        up: B, (out, rank).
        scale: α/r, or α/√r for rsLoRA.
        magnitude: m of DoRA, (out,); None for LoRA.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None


Adapter = Mapping[str, Factors]
"""Layer name inside the base model -> its factors."""


def merge_factors(adapters: Sequence[tuple[Adapter, float]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The soup's factors by layer: (A (Σr, in), B (out, Σr)) with B·A = Σ w·scale·up·down.

    A layer that an adapter lacks has ΔW = 0 there. Products with the scale are taken in float64.
    """
    merged = {}
    for layer in sorted({layer for adapter, _ in adapters for layer in adapter}):
        parts = [(adapter[layer], weight) for adapter, weight in adapters if layer in adapter]
        wide = [factors.up.to(torch.float64) * (weight * factors.scale) for factors, weight in parts]
        down = torch.cat([factors.down for factors, _ in parts], dim=0)
        merged[layer] = (down, torch.cat(wide, dim=1).to(down.dtype))
    return merged


def merge_adapters(ingredients: Sequence[tuple[Path, float]], out: Path, cache: Path | None = None) -> dict[str, Any]:
    """Write the exact weighted sum of adapters as one float32 adapter that plain PEFT loads.

    Args:
        ingredients: (adapter folder, weight); weights may be any finite numbers.
        out: the soup's folder; written aside and moved, what stood there is replaced.
        cache: where converted base models are kept; a temporary folder by default. Only DoRA needs the base.

    Returns:
        `{kind, hash, bytes, rank}`.

    Raises:
        UserError: if an adapter is missing, torn, not finite, of an unsupported kind, or made for another base model.
    """
    problems: list[str] = []
    configs = [_read_config(folder, problems) for folder, _ in ingredients]
    if not ingredients:
        problems.append("a soup needs at least one ingredient")
    problems += [f"the weight of {folder} is {weight}" for folder, weight in ingredients if not math.isfinite(weight)]
    problems += _disagreements([folder for folder, _ in ingredients], configs)
    _refuse(problems)
    adapters = [
        (_read_factors(folder, config, problems), weight)
        for (folder, weight), config in zip(ingredients, configs, strict=True)
    ]
    problems += _misfits([folder for folder, _ in ingredients], [adapter for adapter, _ in adapters])
    _refuse(problems)
    tensors = {}
    ranks = {}
    dora = any(config.get("use_dora") for config in configs)
    for layer, (down, up, *magnitude) in (
        _with_base(adapters, configs[0], cache) if dora else merge_factors(adapters)
    ).items():
        ranks[layer] = down.shape[0]
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = down.contiguous()
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = up.contiguous()
        if magnitude:
            tensors[f"{PREFIX}{layer}.lora_magnitude_vector"] = magnitude[0].contiguous()
    with placing(out) as folder:
        save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
        record = {**soup_config(ranks, configs[0]), **({"use_dora": True} if dora else {})}
        (folder / CONFIG).write_text(json.dumps(record, indent=1, sort_keys=True))
    return {"kind": "adapter", "hash": folder_hash(out), "bytes": folder_bytes(out), "rank": max(ranks.values())}


def _with_base(
    adapters: Sequence[tuple[Adapter, float]], config: Mapping[str, Any], cache: Path | None
) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The factors of a soup with DoRA, whose norms are those of the base model that the adapters name."""
    from pipelines.finetune.model import resolve
    from pipelines.soups.dora import base_weights, merge_dora_factors

    if config.get("fan_in_fan_out"):
        raise UserError("no soup: DoRA on weights that lie (in, out) (fan_in_fan_out) can't be averaged yet")
    with tempfile.TemporaryDirectory(prefix="stockpot-") as own:
        base = resolve(str(config["base_model_name_or_path"]), Path(own) if cache is None else cache)
        try:
            with base_weights(base) as read:
                return merge_dora_factors(adapters, read)
        except ValueError as error:
            raise UserError(f"no soup: {error}") from error


def soup_config(ranks: Mapping[str, int], first: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's configuration of a soup: alpha = rank everywhere, so that the scaling is 1.

    Args:
        ranks: rank of each layer.
        first: an ingredient's configuration, for what all share.
    """
    rank = max(ranks.values())
    pattern = {f"^{re.escape(layer)}$": own for layer, own in ranks.items() if own != rank}
    return {
        **{key: first.get(key) for key in SHARED},
        "fan_in_fan_out": bool(first.get("fan_in_fan_out")),
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "target_modules": sorted(ranks),
        "use_rslora": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def scaling(config: Mapping[str, Any], layer: str) -> tuple[int, float]:
    """(rank, scale) that a configuration gives a layer, its rank and alpha patterns read as PEFT reads them."""
    rank = int(_by_pattern(config.get("rank_pattern"), layer, config["r"]))
    alpha = float(_by_pattern(config.get("alpha_pattern"), layer, config["lora_alpha"]))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(pattern: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return default


def _read_config(folder: Path, problems: list[str]) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{folder} has no {CONFIG}: it is no adapter")
        return {}
    except ValueError as error:
        problems.append(f"{folder / CONFIG} is not JSON ({error})")
        return {}
    if config.get("peft_type") != "LORA":
        problems.append(f"{folder} is a {config.get('peft_type')} adapter; only LoRA can be averaged exactly")
    for key, words in UNSUPPORTED.items():
        if config.get(key):
            problems.append(f"{folder} uses {words}, which a soup can't average yet")
    if config.get("bias", "none") != "none":
        problems.append(f"{folder} trained biases (bias: {config['bias']}), which a soup can't average yet")
    init = config.get("init_lora_weights", True)
    if init not in PLAIN_INITS:
        problems.append(f"{folder} began with init_lora_weights: {init}, which changes the base model")
    return dict(config)


def _disagreements(folders: Sequence[Path], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    problems = []
    for key in SHARED:
        for folder, config in zip(folders[1:], configs[1:], strict=True):
            ours, theirs = configs[0].get(key), config.get(key)
            if (ours or None) != (theirs or None):
                problems.append(f"{folders[0]} has {key} {ours!r}, but {folder} has {theirs!r}")
    return problems


def _read_factors(folder: Path, config: Mapping[str, Any], problems: list[str]) -> dict[str, Factors]:
    path = folder / WEIGHTS
    if not path.is_file():
        problems.append(f"{folder} has no {WEIGHTS}")
        return {}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(str(path)).items():
        match = _FACTOR.fullmatch(name)
        magnitude = match is not None and match["magnitude"] is not None
        if match is None or tensor.dim() != (1 if magnitude else 2) or (magnitude and not config.get("use_dora")):
            what = "a convolution" if match and not magnitude else "neither lora_A nor lora_B of a linear layer"
            problems.append(f"{path} holds {name}, which is {what}; a soup can't average it yet")
            continue
        if not bool(torch.isfinite(tensor).all()):
            problems.append(f"{path} holds NaN or infinite numbers in {name}")
        found.setdefault(match["layer"], {})[match["factor"] or "m"] = tensor.to(torch.float32)
    adapter = {}
    for layer, pair in found.items():
        rank, scale = scaling(config, layer)
        m = pair.pop("m", None)
        if bool(config.get("use_dora")) != (m is not None) or (
            m is not None and "B" in pair and len(m) != len(pair["B"])
        ):
            problems.append(f"{path} has no magnitude that fits {layer}, but {CONFIG} says use_dora")
            continue
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            shapes = {factor: tuple(tensor.shape) for factor, tensor in sorted(pair.items())}
            problems.append(f"{path} has {shapes} for {layer}, but {CONFIG} says rank {rank}")
            continue
        adapter[layer] = Factors(pair["A"], pair["B"], scale, m)
    if not found:
        problems.append(f"{path} holds no adapter weights")
    return adapter


def _misfits(folders: Sequence[Path], adapters: Sequence[Adapter]) -> list[str]:
    problems = []
    seen: dict[str, tuple[Path, tuple[int, int]]] = {}
    for folder, adapter in zip(folders, adapters, strict=True):
        for layer, factors in adapter.items():
            shape = (factors.up.shape[0], factors.down.shape[1])
            first, expected = seen.setdefault(layer, (folder, shape))
            if shape != expected:
                problems.append(f"{layer} is {expected} in {first}, but {shape} in {folder}: not the same base model")
    return problems


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        rest = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise UserError("no soup: " + "; ".join(problems[:5]) + rest)
