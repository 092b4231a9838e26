"""The exact merge of adapters, as one adapter that plain PEFT loads.

An adapter changes a weight by ΔW = s·B·A; LoHa, LoKr and VeRA are such products too (`factors.py`). The soup's
ΔW = Σ wᵢ sᵢ Bᵢ Aᵢ is the product of two stacked factors: A = [A₁; A₂; ...] (Σr, in) and B = [w₁s₁B₁, w₂s₂B₂, ...] (out, Σr),
with scaling 1. Ranks, alphas, kinds and targets may differ. Averaging the A's and the B's apart is another matrix (its
cross terms BᵢAⱼ are wrong), and so is PEFT 0.21's `add_weighted_adapter(combination_type="cat")` on rsLoRA adapters, which
keeps `use_rslora` with the new rank. With a DoRA adapter among them the soup is one too (`dora.py`); biases and heads are
averaged as they are (`whole.py`), IA3 in its own form (`ia3.py`), tuned prompts too (`prompts.py`). `rank` and `energy` make the sum smaller (`compact.py`).

A merge method that is not linear (TIES, DARE, ...) sees each ΔW dense, one layer at a time; what it makes has any rank, and
unless told otherwise as many are kept as hold `ENERGY` of it.

Example:
    >>> merge_adapters([(Path("a"), 0.5), (Path("b"), 0.5)], Path("soup"), rank=16)
    {'kind': 'adapter', 'hash': '9f...', 'bytes': 1843200, 'rank': 16, 'residual': 0.12, 'residuals': {...}}
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipelines.finetune.checkpoint import placing
from pipelines.soups import method_function
from pipelines.soups.adapter_files import (
    CONFIG,
    IA3,
    PREFIX,
    WEIGHTS,
    AdapterFile,
    bad_weights,
    disagreements,
    read_adapter,
    read_config,
    refuse,
    soup_config,
)
from pipelines.soups.arithmetic import folder_bytes, folder_hash
from pipelines.soups.bases import BaseTensors
from pipelines.soups.compact import Kept, compact, factorise
from pipelines.soups.config import AverageConfig, MergeMethodConfig, TaskArithmeticConfig
from pipelines.soups.dora import as_dora, dora_delta, summed_dora
from pipelines.soups.factors import Factors, merged_bias, summed
from pipelines.soups.files import Mapped, Stored
from pipelines.soups.grams import find_grams
from pipelines.soups.prompts import all_prompts, write_prompts
from pipelines.soups.whole import HEADS, head_problems, merged_whole, stored_names
from pipelines.stage import UserError

ENERGY = 0.99
"""Share of ‖ΔW‖² that is kept of what a method that is not linear makes, unless told otherwise: at most 10 % is lost."""


@dataclass(frozen=True)
class Mixing:
    """How changes are combined.

    Attributes:
        method: of `pipelines.soups.METHODS`.
        seed: of random methods.
        grams: weight -> where the Gram matrices of its inputs lie, one an ingredient, for RegMean.
    """

    method: MergeMethodConfig = field(default_factory=AverageConfig)
    seed: int = 0
    grams: Mapping[str, Sequence[Stored]] = field(default_factory=dict)

    @property
    def linear(self) -> float | None:
        """The factor on Σ w·δ; None for a method that is no such sum."""
        if isinstance(self.method, TaskArithmeticConfig):
            return self.method.scaling
        return 1.0 if isinstance(self.method, AverageConfig) else None

    def __call__(self, changes: Sequence[torch.Tensor], weights: Sequence[float], name: str) -> torch.Tensor:
        """The merged change of one tensor, in float64.

        Raises:
            UserError: if the method does not take these weights.
        """
        if self.linear is not None:
            total = torch.zeros(changes[0].shape, dtype=torch.float64)
            for change, weight in zip(changes, weights, strict=True):
                total.add_(change.double(), alpha=weight * self.linear)
            return total
        given: dict[str, Any] = {}
        if name in self.grams:
            given["grams"] = [Mapped().numbers(one, 0, one.numel).reshape(one.shape) for one in self.grams[name]]
        try:
            merged = method_function(self.method)(
                list(changes), list(weights), None, name=name, seed=self.seed, **given
            )
        except ValueError as error:
            raise UserError(f"no soup: {self.method.type} of {name}: {error}") from error
        return torch.as_tensor(merged).double()


def merge_adapters(
    ingredients: Sequence[tuple[Path, float]],
    out: Path,
    cache: Path | None = None,
    *,
    method: MergeMethodConfig | None = None,
    base: str | Path | None = None,
    scale: float = 1.0,
    seed: int = 0,
    rank: int | None = None,
    energy: float | None = None,
) -> dict[str, Any]:
    """Write the merge of adapters as one float32 adapter that plain PEFT loads.

    Args:
        ingredients: (adapter folder, weight); weights may be any finite numbers.
        out: the soup's folder; written aside and moved, what stood there is replaced.
        cache: where converted base models are kept; a temporary folder by default. The base is read only where a merge
            needs it: for DoRA, VeRA, and biases or heads that some ingredient lacks.
        method: how changes are combined; the weighted sum by default.
        base: where the base model is read; default is the one that the adapters name.
        scale: factor on the soup's change: 1 is the soup, 0 the base.
        seed: of random methods.
        rank: ranks of a layer at most.
        energy: share of a layer's ‖ΔW‖² to keep with as few ranks as hold it, in (0, 1].

    Returns:
        `{kind, hash, bytes, rank, residual, residuals}`: ‖ΔW - kept‖/‖ΔW‖ in all, and of each layer that lost something.

    Raises:
        UserError: if an adapter is missing, torn, not finite, of an unsupported kind, or made for another base model.
    """
    problems = bad_weights(ingredients)
    folders = [folder for folder, _ in ingredients]
    if not problems and all_prompts(folders):
        return write_prompts(ingredients, out, method="average" if method is None else method.type, scale=scale)
    configs = [read_config(folder, problems) for folder in folders]
    problems += disagreements(folders, configs)
    if not problems:
        problems += _other_bases(folders, configs, cache)
    refuse(problems)
    source = base or configs[0].get("base_model_name_or_path")
    with BaseTensors(None if source is None else str(source), cache) as tensors:
        files = [
            read_adapter(folder, config, lambda layer: tensors.shape(f"{layer}.weight")[-1], problems)
            for folder, config in zip(folders, configs, strict=True)
        ]
        refuse(problems)
        refuse(head_problems(files, tensors))
        mixing = Mixing(method or AverageConfig(), seed, _grams(files, method))
        merge = _Merge(files, [weight for _, weight in ingredients], tensors, mixing, scale, rank, energy)
        if configs[0]["peft_type"] == IA3:
            from pipelines.soups.ia3 import write_ia3

            return write_ia3(files, merge.weights, scale, mixing, merge.whole(), out)
        return merge.write(out)


@dataclass
class _Merge:
    """One merge of additive adapters: its layers one by one, and what is lost."""

    files: Sequence[AdapterFile]
    weights: Sequence[float]
    tensors: BaseTensors
    mixing: Mixing
    scale: float
    rank: int | None
    energy: float | None
    lost: dict[str, Kept] = field(default_factory=dict)

    @property
    def dora(self) -> bool:
        """Whether the soup is a DoRA adapter."""
        return self.mixing.linear is not None and any(file.config.get("use_dora") for file in self.files)

    def write(self, out: Path) -> dict[str, Any]:
        """Make all layers and write the folder."""
        tensors: dict[str, torch.Tensor] = {}
        ranks: dict[str, int] = {}
        biased = False
        for layer in sorted({layer for file in self.files for layer in file.layers}):
            made = self._layer(layer)
            ranks[layer] = made["lora_A.weight"].shape[0]
            biased = biased or "lora_B.bias" in made
            tensors.update({f"{PREFIX}{layer}.{name}": value.float().contiguous() for name, value in made.items()})
        if biased:
            for layer in ranks:
                shape = tensors[f"{PREFIX}{layer}.lora_B.weight"].shape[:1]
                tensors.setdefault(f"{PREFIX}{layer}.lora_B.bias", torch.zeros(shape))
        tensors.update(stored_names(self.whole(), list(ranks)))
        record = soup_config(ranks, self.files)
        record.update({key: True for key, used in (("use_dora", self.dora), ("lora_bias", biased)) if used})
        with placing(out) as folder:
            save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
            (folder / CONFIG).write_text(json.dumps(record, indent=1, sort_keys=True))
            if (self.files[0].folder / HEADS).is_file():
                shutil.copyfile(self.files[0].folder / HEADS, folder / HEADS)
        lost, total = (math.fsum(getattr(kept, name) for kept in self.lost.values()) for name in ("lost", "total"))
        return {
            "kind": "adapter",
            "hash": folder_hash(out),
            "bytes": folder_bytes(out),
            "rank": max(ranks.values(), default=0),
            "residual": math.sqrt(lost / total) if total > 0 else 0.0,
            "residuals": {layer: kept.residual for layer, kept in self.lost.items() if kept.lost > 0},
        }

    def whole(self) -> dict[str, torch.Tensor]:
        """Biases and heads."""
        linear = self.mixing.linear
        combine = None if linear is not None else self.mixing
        return merged_whole(self.files, self.weights, self.tensors, combine, self.scale * (linear or 1.0))

    def _layer(self, layer: str) -> dict[str, torch.Tensor]:
        """One layer's tensors of the soup, by what PEFT calls them."""
        there = [file.layers.get(layer) for file in self.files]
        self._same_shape(layer, there)
        dora = self.dora or any(part is not None and part.magnitude is not None for part in there)
        weight = self._base_weight(layer) if dora else None
        if self.mixing.linear is None:
            return self._mixed(layer, there, weight)
        factor = self.scale * self.mixing.linear
        parts = [(part, w * factor) for part, w in zip(there, self.weights, strict=True) if part is not None]
        try:
            down, up, *stretched = summed(parts) if weight is None else summed_dora(parts, weight)
        except ValueError as error:
            raise UserError(f"no soup: {layer}: {error}") from error
        down, up = self._compacted(layer, down, up)
        made = {"lora_A.weight": down, "lora_B.weight": up}
        if weight is not None and stretched:
            made["lora_B.weight"], made["lora_magnitude_vector"] = as_dora(down, up, stretched[0], weight)
        bias = merged_bias(parts)
        return made if bias is None else {**made, "lora_B.bias": bias}

    def _compacted(self, layer: str, down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.rank is None and self.energy is None:
            return down, up
        self.lost[layer] = kept = compact(down, up, self.rank, self.energy)
        return kept.down, kept.up

    def _mixed(
        self, layer: str, there: Sequence[Factors | None], weight: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """A layer by a method that is not linear: dense changes in, factors out."""
        shape = next(part.shape for part in there if part is not None)
        changes = [torch.zeros(shape, dtype=torch.float64) if part is None else _dense(part, weight) for part in there]
        delta = self.scale * self.mixing(changes, self.weights, f"{layer}.weight")
        energy = ENERGY if self.rank is None and self.energy is None else self.energy
        self.lost[layer] = kept = factorise(delta, self.rank, energy)
        made = {"lora_A.weight": kept.down, "lora_B.weight": kept.up}
        if any(part is not None and part.bias is not None for part in there):
            biases = [
                torch.zeros(shape[0], dtype=torch.float64)
                if part is None or part.bias is None
                else part.scale * part.bias.double()
                for part in there
            ]
            made["lora_B.bias"] = self.scale * self.mixing(biases, self.weights, f"{layer}.bias")
        return made

    def _base_weight(self, layer: str) -> torch.Tensor:
        weight = self.tensors.tensor(f"{layer}.weight")
        return weight.T if self.files[0].config.get("fan_in_fan_out") else weight

    def _same_shape(self, layer: str, there: Sequence[Factors | None]) -> None:
        shapes = {part.shape: file.folder for part, file in zip(there, self.files, strict=True) if part is not None}
        if len(shapes) > 1:
            (ours, first), (theirs, other) = list(shapes.items())[:2]
            raise UserError(f"no soup: {layer} is {ours} in {first}, but {theirs} in {other}: not the same base model")


def _dense(part: Factors, weight: torch.Tensor | None) -> torch.Tensor:
    return part.delta() if weight is None else dora_delta(part, weight)


def _grams(files: Sequence[AdapterFile], method: MergeMethodConfig | None) -> dict[str, list[Stored]]:
    """Gram matrices of the adapted layers' inputs, where the method weighs by them."""
    if method is None or method.type != "regmean":
        return {}
    sides = {f"{layer}.weight": file.layers[layer].shape[1] for file in files for layer in file.layers}
    problems: list[str] = []
    found = find_grams([file.folder for file in files], sides, problems)
    refuse(problems)
    return found


def _other_bases(folders: Sequence[Path], configs: Sequence[Mapping[str, Any]], cache: Path | None) -> list[str]:
    """Adapters whose bases have other names and other contents, or can't be compared."""
    from pipelines.soups.checks import base_problems

    sources = [str(config.get("base_model_name_or_path") or "") for config in configs]
    return base_problems([str(folder) for folder in folders], folders, sources, cache)
