"""What a learned soup's weights stand for: models as functions of them, to be trained through, and the weights they make.

A *set* of weights is one number an ingredient, for the whole model, for a layer or for a tensor (`group_of`). Adapters
are held as one of rank Σr whose columns of B are scaled. Full models are read from their files for every mixture and for
every gradient, tensor by tensor: memory holds the model that runs and its gradients, however many ingredients there are.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipelines.soups.files import Mapped, ModelFiles, Stored
from pipelines.stage import UserError

ADAPTER = "adapter_model.safetensors"
_LAYER = re.compile(r"\.(?:layers|layer|h|blocks|block)\.(\d+)\.")
_PART = re.compile(r"(.+)\.lora_(?:A|B)\.")


def group_of(name: str, per: str) -> str:
    """The set of weights that a tensor goes by: `all`, `layer.<n>` or `rest`, or its own name (its module's, of LoRA)."""
    if per == "model":
        return "all"
    if per == "layer":
        found = _LAYER.search(f".{name}")
        return f"layer.{found[1]}" if found else "rest"
    part = _PART.match(name)
    return part[1] if part else name


class Mixture(Protocol):
    """A model whose parameters come of weights.

    Attributes:
        model: a causal language model; nothing of it is trained.
        tokenizer: its tokenizer.
        groups: parameter -> set of weights.
    """

    model: Any
    tokenizer: Any
    groups: dict[str, str]

    def parameters(self, alpha: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters by name, under sets of weights (ingredients,); gradients go back to the weights."""
        ...


class ModelMixture:
    """Full models; implements `Mixture`.

    Args:
        model: the one that runs, float32.
        tokenizer: its tokenizer.
        files: of the ingredients.
        per: what has a set of weights of its own.

    Raises:
        UserError: if a tensor has another shape in one of them.
    """

    def __init__(self, model: Any, tokenizer: Any, files: Sequence[ModelFiles], per: str) -> None:
        self.model, self.tokenizer = model.requires_grad_(False), tokenizer
        self._mapped = Mapped()
        self._stored: dict[str, list[Stored]] = {}
        for name, value in model.named_parameters():
            stored = [one.tensors[name] for one in files if name in one.tensors]
            if len(stored) < len(files):
                continue
            if any(tensor.shape != tuple(value.shape) for tensor in stored):
                raise UserError(f"no soup: {name} has different shapes: {', '.join(str(t.shape) for t in stored)}")
            self._stored[name] = stored
        self.groups = {name: group_of(name, per) for name in self._stored}

    def parameters(self, alpha: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Mixture`."""
        return {
            name: _Summed.apply(alpha[self.groups[name]], stored, self._mapped) for name, stored in self._stored.items()
        }


class _Summed(torch.autograd.Function):
    """Σ wᵢθᵢ of one tensor in float32, and ⟨∂L/∂θ, θᵢ⟩ as the gradient of wᵢ; no θᵢ is kept in between."""

    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, stored: Sequence[Stored], mapped: Mapped) -> torch.Tensor:
        ctx.stored, ctx.mapped = stored, mapped
        total = torch.zeros(stored[0].numel)
        for weight, tensor in zip(weights.tolist(), stored, strict=True):
            total.add_(mapped.numbers(tensor, 0, tensor.numel).float(), alpha=weight)
        return total.reshape(stored[0].shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        flat = gradients[0].reshape(-1).float()
        products = [torch.dot(flat, ctx.mapped.numbers(tensor, 0, tensor.numel).float()) for tensor in ctx.stored]
        return torch.stack(products), None, None


class AdapterMixture:
    """LoRA adapters on one base model; implements `Mixture`.

    Args:
        model: the base model; all adapters are attached to it as one.
        tokenizer: its tokenizer.
        folders: of the adapters.
        per: what has a set of weights of its own.

    Raises:
        UserError: if one is no LoRA adapter, or is DoRA.
    """

    def __init__(self, model: Any, tokenizer: Any, folders: Sequence[Path], per: str) -> None:
        adapted, self._owner = stacked_adapter(model, folders)
        self.model, self.tokenizer = adapted.requires_grad_(False), tokenizer
        count = len(folders)
        self._up = {name: value.detach() * count for name, value in adapted.named_parameters() if name in self._owner}
        self.groups = {name: group_of(_inside(name), per) for name in self._up}

    def parameters(self, alpha: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Mixture`: every column of B (out, Σr) times its ingredient's weight."""
        return {name: value * alpha[self.groups[name]][self._owner[name]] for name, value in self._up.items()}


def load_mixture(config: Any, folders: Sequence[Path], per: str, cache: str | None) -> Mixture:
    """The ingredients as a function of weights.

    Args:
        config: of a trial (`FineTuneConfig`); names the base model of adapters.
        folders: adapters, or full models.
        per: `model`, `layer` or `tensor`.
        cache: folder of converted models.

    Raises:
        UserError: if they can't be mixed by weights.
    """
    from pipelines.finetune.model import BaseModels

    models = BaseModels(cache)
    if (folders[0] / "adapter_config.json").is_file():
        loaded = models.load(config.base_model, trust_remote_code=config.trust_remote_code)
        return AdapterMixture(loaded.model, loaded.tokenizer, folders, per)
    loaded = models.load(str(folders[0]), trust_remote_code=config.trust_remote_code)
    return ModelMixture(loaded.model, loaded.tokenizer, [ModelFiles(folder) for folder in folders], per)


def weights_of(method: Mapping[str, Any]) -> Callable[[str], Sequence[float] | None]:
    """The weights of full models' tensors by name, as a method of type `learned` has them; None for what has none."""
    coefficients: Mapping[str, Sequence[float]] = method["coefficients"]
    return lambda name: coefficients.get(group_of(name, method["per"]))


def merge_learned(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Make the adapter of a learned soup: `pipelines.soups.merge` of adapters with a method of type `learned`.

    Raises:
        UserError: if the ingredients can't be mixed by weights.
    """
    from pipelines.soups import merge

    method = payload["method"]
    coefficients: Mapping[str, Sequence[float]] = method["coefficients"]
    folders = [Path(folder) for folder, _ in payload["ingredients"]]
    count = len(folders)
    with tempfile.TemporaryDirectory(prefix="stockpot-") as own:
        scaled = []
        for place, folder in enumerate(folders):
            _refuse_dora(folder)
            copy = Path(own) / str(place)
            copy.mkdir()
            shutil.copyfile(folder / "adapter_config.json", copy / "adapter_config.json")
            tensors = load_file(folder / ADAPTER)
            for name in [name for name in tensors if ".lora_B." in name]:
                weight = coefficients[group_of(_inside(name), method["per"])][place]
                tensors[name] = tensors[name].to(torch.float32) * (weight * count)
            save_file(tensors, copy / ADAPTER, metadata={"format": "pt"})
            scaled.append([str(copy), 1.0 / count])
        rest = {key: payload[key] for key in ("out", "cache", "rank", "energy") if key in payload}
        if payload.get("scale", 1.0) != 1.0:
            rest |= {"scale": payload["scale"], "base": payload.get("base")}
        return merge({**rest, "ingredients": scaled})


def stacked_adapter(model: Any, folders: Sequence[Path]) -> tuple[Any, dict[str, torch.Tensor]]:
    """All adapters as one of rank Σr on the model, each at 1/n of its strength, and whose a column of its B is."""
    from pipelines.finetune.adapters import attach
    from pipelines.soups import merge

    for folder in folders:
        _refuse_dora(folder)
    ranks = [_ranks(folder) for folder in folders]
    with tempfile.TemporaryDirectory(prefix="stockpot-") as own:
        out = Path(own) / "all"
        share = 1.0 / len(folders)
        merge({"ingredients": [[str(folder), share] for folder in folders], "out": str(out), "cache": None})
        adapted = attach(model, out)
    owner = {}
    for name, value in adapted.named_parameters():
        if ".lora_B." in name:
            part = _inside(name)
            columns = [place for place, known in enumerate(ranks) for _ in range(known.get(part, 0))]
            if len(columns) != value.shape[1]:
                raise UserError(
                    f"no soup: {part} has rank {value.shape[1]} in the sum, but {len(columns)} in its parts"
                )
            owner[name] = torch.tensor(columns)
    return adapted, owner


def _ranks(folder: Path) -> dict[str, int]:
    """Module -> rank of its B."""
    with safe_open(str(folder / ADAPTER), framework="pt") as file:
        return {_inside(name): file.get_slice(name).get_shape()[1] for name in file.keys() if ".lora_B." in name}  # noqa: SIM118


def _inside(name: str) -> str:
    """A module's name in the base model, from a parameter's."""
    return name.removeprefix("base_model.model.").partition(".lora_")[0]


def _refuse_dora(folder: Path) -> None:
    record = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if record.get("peft_type") != "LORA" or record.get("use_dora"):
        kind = "DoRA" if record.get("use_dora") else record.get("peft_type")
        raise UserError(f"no soup: {folder} is a {kind} adapter; learned weights are for LoRA, give another method")
