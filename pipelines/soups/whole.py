"""Tensors of the base model that adapters trained as they are: biases, and modules of `modules_to_save` (heads).

Their soup is start + Σ wᵢ (θᵢ - start), where an adapter that did not train one has θᵢ = start. Where the base model has
the tensor, that is the start. A head that the base does not have was drawn at random: its average means something only
if all runs drew the same one, and the start is then not needed as long as the weights sum to one. What each run drew is
read from `heads.json` beside its weights (tensor name -> SHA-256 of its bytes before training), which a pipeline of one's
own writes with `record_heads`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from pipelines.soups.adapter_files import PREFIX, AdapterFile
from pipelines.soups.bases import BaseTensors

HEADS = "heads.json"

Combine = Callable[[Sequence[torch.Tensor], Sequence[float], str], torch.Tensor]
"""(changes, weights, name) -> the merged change."""


def tensor_hash(tensor: torch.Tensor) -> str:
    """SHA-256 (hex) of a tensor's type, shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    body = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    body.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return body.hexdigest()


def record_heads(folder: Path, heads: Mapping[str, torch.Tensor]) -> None:
    """Write `heads.json`: what freshly drawn tensors were before training.

    Args:
        folder: the checkpoint's folder.
        heads: the tensors as they were drawn, by their names in the model (`score.weight`).
    """
    record = {name: tensor_hash(tensor) for name, tensor in sorted(heads.items())}
    (folder / HEADS).write_text(json.dumps(record, indent=1), encoding="utf-8")


def recorded_heads(folder: Path) -> dict[str, str]:
    """`heads.json` of a folder; empty where there is none."""
    path = folder / HEADS
    return {} if not path.is_file() else dict(json.loads(path.read_text(encoding="utf-8")))


def head_problems(files: Sequence[AdapterFile], base: BaseTensors) -> list[str]:
    """Heads that did not start from one initialisation, or can't be shown to have."""
    problems = []
    for name in sorted({name for file in files for name in file.whole}):
        shapes = {tuple(file.whole[name].shape): file.folder for file in files if name in file.whole}
        if len(shapes) > 1:
            told = ", ".join(f"{shape} in {folder}" for shape, folder in shapes.items())
            problems.append(f"{name} is {told}: not the same head")
            continue
        starts = {file.folder: recorded_heads(file.folder).get(name) for file in files}
        if len(set(starts.values())) == 1 and None not in starts.values():
            continue
        if base.has(name):
            continue
        unknown = [str(folder) for folder, start in starts.items() if start is None]
        if unknown:
            problems.append(
                f"{name} is a head that the base model does not have, and {', '.join(unknown)} does not say in {HEADS} "
                "what it was before training: heads that began apart can't be averaged"
            )
        else:
            problems.append(f"{name} began differently in {' and '.join(str(folder) for folder in starts)} ({HEADS})")
    return problems


def merged_whole(
    files: Sequence[AdapterFile],
    weights: Sequence[float],
    base: BaseTensors,
    combine: Combine | None = None,
    scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Every such tensor of the soup, by its name in the base model, in float32.

    Args:
        files: the ingredients; `head_problems` found nothing.
        weights: one an ingredient.
        base: the base model; read only where a start is needed.
        combine: a merge method on changes; None is Σ w·δ.
        scale: factor on the change.

    Raises:
        UserError: if the start is needed and the base does not have it.
    """
    merged = {}
    plain = combine is None and math.isclose(scale * math.fsum(weights), 1.0, abs_tol=1e-6)
    for name in sorted({name for file in files for name in file.whole}):
        trained = [file.whole.get(name) for file in files]
        there = [tensor for tensor in trained if tensor is not None]
        if plain and len(there) == len(trained):
            total = sum(scale * w * tensor.double() for w, tensor in zip(weights, there, strict=True))
        else:
            start = base.tensor(name).double()
            changes = [torch.zeros_like(start) if tensor is None else tensor.double() - start for tensor in trained]
            if combine is not None:
                total = start + scale * combine(changes, weights, name)
            else:
                total = start + sum(scale * w * change for w, change in zip(weights, changes, strict=True))
        assert isinstance(total, torch.Tensor), "a tensor stands in at least one ingredient"
        merged[name] = total.float()
    return merged


def stored_names(whole: Mapping[str, torch.Tensor], layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """Under the names that PEFT gives them in a file: a bias inside an adapted layer is its base layer's."""
    adapted = set(layers)
    named = {}
    for name, tensor in whole.items():
        module, _, kind = name.rpartition(".")
        inner = ".base_layer" if module in adapted else ""
        named[f"{PREFIX}{module}{inner}.{kind}"] = tensor.contiguous()
    return named
