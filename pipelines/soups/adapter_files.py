"""Adapter folders as PEFT writes them: read with everything that can't be averaged refused by name, and written.

Left out, and refused: embeddings and convolutions with adapters, initialisations that change the base model and were not
converted when saved (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), and variants of LoRA whose change is not s·B·A. A trained
bias and a fully trained module (`modules_to_save`) are weights of the base model and are read as such.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipelines.soups.factors import FAMILIES, Adapter, Factors, Surroundings
from pipelines.stage import UserError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
IA3 = "IA3"
PROMPT = "PROMPT_TUNING"

TENSORS: dict[str, tuple[str, ...]] = {
    "LORA": ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "lora_magnitude_vector.weight"),
    "VERA": ("vera_lambda_b", "vera_lambda_d"),
    "LOHA": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LOKR": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    IA3: ("ia3_l",),
}
"""PEFT type -> what a layer's tensors are called after its name."""

SHARED = ("revision", "task_type", "fan_in_fan_out")
"""Settings that must be equal in all ingredients and stand in the soup as they are."""

UNSUPPORTED = {
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
class AdapterFile:
    """An adapter as it lies in its folder.

    Attributes:
        folder: where.
        config: `adapter_config.json`.
        layers: factors by layer; empty for IA3.
        vectors: the factors of IA3 on rows, (out, 1), or columns, (1, in), by layer.
        whole: trained tensors of the base model, by their names there: biases and `modules_to_save`.
    """

    folder: Path
    config: Mapping[str, Any]
    layers: Adapter
    vectors: Mapping[str, torch.Tensor]
    whole: Mapping[str, torch.Tensor]


class LazyLayers(Mapping[str, Factors]):
    """Factors that are made when they are asked for, one layer at a time."""

    def __init__(self, names: Sequence[str], make: Callable[[str], Factors]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, layer: str) -> Factors:
        if layer not in self._names:
            raise KeyError(layer)
        return self._make(layer)

    def __contains__(self, layer: object) -> bool:
        return layer in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_config(folder: Path, problems: list[str]) -> dict[str, Any]:
    """`adapter_config.json`; what can't be averaged goes to `problems`."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{folder} has no {CONFIG}: it is no adapter")
        return {}
    except ValueError as error:
        problems.append(f"{folder / CONFIG} is not JSON ({error})")
        return {}
    kind = config.get("peft_type")
    if kind not in TENSORS:
        problems.append(f"{folder} is a {kind} adapter; {', '.join(TENSORS)} can be averaged exactly")
    for key, words in UNSUPPORTED.items():
        if config.get(key):
            problems.append(f"{folder} uses {words}, which a soup can't average")
    init = config.get("init_lora_weights", True)
    if init not in PLAIN_INITS:
        problems.append(
            f"{folder} began with init_lora_weights: {init}, which changes the base model; save it as plain LoRA "
            "(PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        )
    return dict(config)


def read_adapter(
    folder: Path, config: Mapping[str, Any], width: Callable[[str], int], problems: list[str]
) -> AdapterFile:
    """Tensors of an adapter, in float32 or wider; what does not fit goes to `problems`.

    Args:
        folder: the adapter's folder.
        config: its configuration, of a known kind.
        width: inputs of a layer of the base model.
        problems: takes what is wrong.
    """
    path = folder / WEIGHTS
    nothing = AdapterFile(folder, config, {}, {}, {})
    if not path.is_file():
        problems.append(f"{folder} has no {WEIGHTS}")
        return nothing
    layers: dict[str, dict[str, torch.Tensor]] = {}
    shared: dict[str, torch.Tensor] = {}
    whole: dict[str, torch.Tensor] = {}
    for name, stored in load_file(str(path)).items():
        if not bool(torch.isfinite(stored).all()):
            problems.append(f"{path} holds NaN or infinite numbers in {name}")
        tensor = stored.to(torch.promote_types(stored.dtype, torch.float32))
        bare = name.removeprefix(PREFIX)
        layer, kind = _split(bare, str(config["peft_type"]))
        if kind is not None and tensor.dim() <= 2:
            layers.setdefault(layer, {})[kind] = tensor
        elif name in ("base_model.vera_A", "base_model.vera_B"):
            shared[name.removeprefix("base_model.")] = tensor
        elif (trained := _trained(bare, config)) is not None:
            if trained:
                whole[trained] = tensor
        else:
            what = (
                "of a convolution"
                if kind is not None
                else f"nothing that a {config['peft_type']} adapter of linear layers has"
            )
            problems.append(f"{path} holds {name}, which is {what}; a soup can't average it")
    if not layers and not whole:
        problems.append(f"{path} holds no adapter weights")
    if config["peft_type"] == IA3:
        return AdapterFile(folder, config, {}, {layer: parts["ia3_l"] for layer, parts in layers.items()}, whole)

    def make(layer: str) -> Factors:
        try:
            return FAMILIES[str(config["peft_type"])](config, layer, layers[layer], Surroundings(shared, width))
        except ValueError as error:
            raise UserError(f"no soup: {path} has {error} for {layer}") from error

    if config["peft_type"] != "LORA":
        return AdapterFile(folder, config, LazyLayers(list(layers), make), {}, whole)
    made = {}
    for layer in layers:
        try:
            made[layer] = make(layer)
        except UserError as error:
            problems.append(str(error).removeprefix("no soup: "))
    return AdapterFile(folder, config, made, {}, whole)


def soup_config(ranks: Mapping[str, int], files: Sequence[AdapterFile]) -> dict[str, Any]:
    """PEFT's configuration of a soup: LoRA with alpha = rank everywhere, so that the scaling is 1.

    Args:
        ranks: rank of each layer.
        files: the ingredients.
    """
    rank = max(ranks.values(), default=1)
    pattern = {f"^{re.escape(layer)}$": own for layer, own in ranks.items() if own != rank}
    return {
        **shared_config(files),
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "target_modules": sorted(ranks),
        "use_rslora": False,
        "bias": _bias(files),
        "lora_dropout": 0.0,
    }


def shared_config(files: Sequence[AdapterFile]) -> dict[str, Any]:
    """What the configurations of all kinds of soups have in common."""
    first = files[0].config
    saved = sorted({module for file in files for module in file.config.get("modules_to_save") or ()})
    return {
        **{key: first.get(key) for key in SHARED},
        "base_model_name_or_path": first.get("base_model_name_or_path"),
        "fan_in_fan_out": bool(first.get("fan_in_fan_out")),
        "inference_mode": True,
        **({"modules_to_save": saved} if saved else {}),
    }


def disagreements(folders: Sequence[Path], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings that must be equal and are not."""
    problems = []
    for key in SHARED:
        for folder, config in zip(folders[1:], configs[1:], strict=True):
            ours, theirs = configs[0].get(key), config.get(key)
            if (ours or None) != (theirs or None):
                problems.append(f"{folders[0]} has {key} {ours!r}, but {folder} has {theirs!r}")
    kinds = {config.get("peft_type") for config in configs}
    if IA3 in kinds and len(kinds) > 1:
        problems.append("IA3 multiplies weights and the other adapters add to them: no adapter can hold both")
    if any(config.get("use_dora") for config in configs) and any(config.get("lora_bias") for config in configs):
        problems.append("DoRA and a bias on B (lora_bias) can't stand in one adapter of PEFT")
    return problems


def kind_problems(runs: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Adapters of kinds that no single adapter can hold, by their `adapter_config.json`."""
    groups: dict[str, list[str]] = {}
    for run, folder in zip(runs, folders, strict=True):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        what = {IA3: "multiply weights (IA3)", PROMPT: "are prompts of {num_virtual_tokens} virtual tokens"}.get(
            config.get("peft_type"), "add to weights"
        )
        groups.setdefault(what.format_map({"num_virtual_tokens": "?", **config}), []).append(run)
    if len(groups) < 2:
        return []
    told = "; ".join(f"some {what}: {', '.join(members)}" for what, members in groups.items())
    return [f"no adapter can hold both: {told}"]


def bad_weights(ingredients: Sequence[tuple[Path, float]]) -> list[str]:
    """Numbers that are no weights."""
    if not ingredients:
        return ["a soup needs at least one ingredient"]
    return [f"the weight of {folder} is {weight}" for folder, weight in ingredients if not math.isfinite(weight)]


def refuse(problems: Sequence[str]) -> None:
    """Raise what was found, if anything was.

    Raises:
        UserError: with the first five problems.
    """
    if problems:
        rest = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise UserError("no soup: " + "; ".join(problems[:5]) + rest)


def _split(name: str, kind: str) -> tuple[str, str | None]:
    for ending in TENSORS.get(kind, ()):
        if name.endswith(f".{ending}"):
            return name[: -len(ending) - 1], ending
    return name, None


def _trained(name: str, config: Mapping[str, Any]) -> str | None:
    """What a tensor is called in the base model; empty for a second copy, None for what is no tensor of the base."""
    module, _, kind = name.rpartition(".")
    for saved in config.get("modules_to_save") or ():
        if f".{saved}." in f".{module}.":
            return "" if re.search(r"\.(original_module|modules_to_save)(\.|$)", module) else name
    if kind == "bias" and config.get("bias", "none") != "none":
        return f"{module.removesuffix('.base_layer')}.bias"
    return None


def _bias(files: Sequence[AdapterFile]) -> str:
    kinds = {str(file.config.get("bias") or "none") for file in files}
    if "all" in kinds:
        return "all"
    return "none" if kinds == {"none"} else "lora_only"
