"""How alike the changes of several fine-tunes are: pairwise cosines of Δ = θ - θ₀, without holding any Δ whole.

For products ⟨BᵢAᵢ, BⱼAⱼ⟩ = Σ (BᵢᵀBⱼ) ∘ (AᵢAⱼᵀ), a sum over an (rᵢ, rⱼ) matrix. DoRA's changes are made layer by layer, those of
full models a few rows at a time. Heads and biases that adapters trained as they are stay out. Fine-tunes of one base that
share nothing have cosines near 0; a negative one says that two runs pull apart.

Example:
    >>> delta_cosines([Path("a"), Path("b")])
    {'norms': [1.9, 2.3], 'cosines': [[1.0, 0.41], [0.41, 1.0]]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from pipelines.soups.adapter_files import CONFIG, AdapterFile, read_adapter, read_config, refuse
from pipelines.soups.bases import BaseTensors
from pipelines.soups.dora import dora_delta
from pipelines.soups.factors import Factors
from pipelines.stage import UserError


def inner(left: Factors, right: Factors) -> float:
    """⟨ΔW, ΔW'⟩ of two products."""
    ups = left.up.double().T @ right.up.double()
    downs = left.down.double() @ right.down.double().T
    return left.scale * right.scale * float((ups * downs).sum())


def delta_cosines(folders: Sequence[Path], base: str | None = None, cache: Path | None = None) -> dict[str, Any] | None:
    """Norms and cosines of changes.

    Args:
        folders: adapters, or full models.
        base: the base model; adapters name theirs, full models don't.
        cache: where converted base models are kept; a temporary folder by default.

    Returns:
        `{norms: [...], cosines: [[...]]}`, a cosine with a run that changed nothing being None; None where the base of
        full models is not known.

    Raises:
        UserError: if a file can't be read, or does not fit the base.
    """
    count = len(folders)
    gram = torch.zeros(count, count, dtype=torch.float64)
    adapters = all((folder / CONFIG).is_file() for folder in folders)
    if not adapters and not base:
        return None
    for block in _adapter_grams(folders, base, cache) if adapters else _model_grams(folders, str(base), cache):
        gram += block
    norms = gram.diagonal().clamp(min=0).sqrt()
    cosines = [
        [float(gram[i, j] / (norms[i] * norms[j])) if norms[i] > 0 and norms[j] > 0 else None for j in range(count)]
        for i in range(count)
    ]
    return {"norms": [float(norm) for norm in norms], "cosines": cosines}


def measure(payload: Mapping[str, Any]) -> dict[str, Any]:
    """How alike the changes of a soup's ingredients are; what `sweeps/bench.py` has called on a worker.

    Args:
        payload: `folders` (run -> checkpoint), `base` (the base model as the sweep names it, or None) and `cache`.

    Returns:
        `{runs, norms, cosines}` as `delta_cosines` has them; `{missing: why}` where there is no base to compare with, or it
        does not fit.
    """
    folders: Mapping[str, str] = payload["folders"]
    cache = None if payload.get("cache") is None else Path(payload["cache"])
    try:
        found = delta_cosines([Path(folder) for folder in folders.values()], payload.get("base"), cache)
    except UserError as error:
        return {"missing": str(error).removeprefix("no soup: ")}
    return {"missing": "the base model is not known"} if found is None else {"runs": list(folders), **found}


def _adapter_grams(folders: Sequence[Path], base: str | None, cache: Path | None) -> Iterator[torch.Tensor]:
    """Inner products of all pairs, one layer at a time."""
    problems: list[str] = []
    configs = [read_config(folder, problems) for folder in folders]
    refuse(problems)
    with BaseTensors(base or configs[0].get("base_model_name_or_path"), cache) as tensors:
        files = [
            read_adapter(folder, config, lambda layer: tensors.shape(f"{layer}.weight")[-1], problems)
            for folder, config in zip(folders, configs, strict=True)
        ]
        refuse(problems)
        for layer in sorted({layer for file in files for layer in (*file.layers, *file.vectors)}):
            yield _layer_gram(layer, files, tensors)


def _layer_gram(layer: str, files: Sequence[AdapterFile], tensors: BaseTensors) -> torch.Tensor:
    parts = [file.layers.get(layer) for file in files]
    if any(file.vectors for file in files):
        weight = tensors.tensor(f"{layer}.weight").double()
        weight = weight.T if files[0].config.get("fan_in_fan_out") else weight
        scales = [file.vectors.get(layer) for file in files]
        return _dense_gram([None if scale is None else (scale.double() - 1) * weight for scale in scales])
    if any(part is not None and part.magnitude is not None for part in parts):
        weight = tensors.tensor(f"{layer}.weight")
        weight = weight.T if files[0].config.get("fan_in_fan_out") else weight
        return _dense_gram([None if part is None else dora_delta(part, weight) for part in parts])
    gram = torch.zeros(len(parts), len(parts), dtype=torch.float64)
    for i, left in enumerate(parts):
        for j, right in enumerate(parts[: i + 1]):
            if left is not None and right is not None:
                gram[i, j] = gram[j, i] = inner(left, right)
    return gram


def _model_grams(folders: Sequence[Path], base: str, cache: Path | None) -> Iterator[torch.Tensor]:
    """Inner products of all pairs, a few rows at a time; what the base lacks stays out."""
    with ExitStack() as stack:
        plain = stack.enter_context(BaseTensors(base, cache))
        models = [stack.enter_context(BaseTensors(str(folder), cache)) for folder in folders]
        for name in plain.names:
            if not all(model.has(name) for model in models):
                continue
            if any(model.shape(name) != plain.shape(name) for model in models):
                raise UserError(f"no soup: {name} has another shape in {base}: not the base model of all runs")
            for rows in plain.pieces(name):
                start = plain.piece(name, rows)
                if start.is_floating_point():
                    yield _dense_gram([model.piece(name, rows).double() - start.double() for model in models])


def _dense_gram(changes: Sequence[torch.Tensor | None]) -> torch.Tensor:
    gram = torch.zeros(len(changes), len(changes), dtype=torch.float64)
    for i, left in enumerate(changes):
        for j, right in enumerate(changes[: i + 1]):
            if left is not None and right is not None:
                gram[i, j] = gram[j, i] = torch.dot(left.flatten(), right.flatten())
    return gram
