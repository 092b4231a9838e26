"""Gram matrices of the inputs of a model's linear layers, which RegMean weighs by.

G = XᵀX / tokens for every `torch.nn.Linear`, under the name of its weight, in float32. The matrices lie in the file from the
beginning and are added to where they lie, mapped: memory holds one product at a time, however many layers there are.

Example:
    >>> gather_grams(model, batches, Path("checkpoint-30") / GRAMS)
    1842
"""

from __future__ import annotations

import mmap
import os
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.soups.files import Stored, layout, read_header

GRAMS = "grams.safetensors"
"""Name of the file beside an ingredient's weights."""


def gather_grams(
    model: torch.nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    path: Path,
    names: Collection[str] | None = None,
) -> int:
    """Write the Gram matrices of a model's linear layers over rows.

    Args:
        model: whose layers they are; put into evaluation mode, its gradients untouched.
        batches: what the model is called with; where `attention_mask` (batch, seq) is 0, inputs of that shape don't count.
        path: the file; written aside and moved.
        names: of the weights of the layers that count; all by default.

    Returns:
        How many tokens counted.

    Raises:
        ValueError: if there are no tokens.
    """
    linear = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    layers = {name: module for name, module in linear.items() if names is None or name in names}
    shapes = [(name, "F32", (layer.in_features, layer.in_features)) for name, layer in layers.items()]
    header, offsets, size = layout(shapes)
    aside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with aside.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            file.write(len(header).to_bytes(8, "little") + header.encode())
            file.flush()
            mapped = mmap.mmap(file.fileno(), size)
        grams = [
            torch.frombuffer(mapped, dtype=torch.float32, count=shape[0] * shape[1], offset=offset).reshape(shape)
            for offset, (_, _, shape) in zip(offsets, shapes, strict=True)
        ]
        tokens = _add_up(model, list(layers.values()), grams, batches)
        if not tokens:
            raise ValueError("there must be at least one token, but the batches hold none")
        for gram in grams:
            gram.div_(tokens)
        mapped.flush()
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
    return tokens


def find_grams(folders: Sequence[Path], sides: Mapping[str, int], problems: list[str]) -> dict[str, list[Stored]]:
    """Where the Gram matrices of some weights lie, by the weight's name, one an ingredient.

    Args:
        folders: of the ingredients.
        sides: name of a weight -> inputs of its layer.
        problems: takes what is missing or has another shape.
    """
    missing = [folder for folder in folders if not (folder / GRAMS).is_file()]
    if missing:
        problems.append(f"regmean needs {GRAMS} beside every ingredient, but {missing[0]} has none")
        return {}
    headers = [read_header(folder / GRAMS) for folder in folders]
    found = {}
    for name in sorted(set().union(*headers) & set(sides)):
        side = sides[name]
        for folder, header in zip(folders, headers, strict=True):
            shape = header[name].shape if name in header else None
            if shape != (side, side):
                problems.append(f"{folder / GRAMS} has {shape or 'nothing'} for {name}, which needs ({side}, {side})")
        found[name] = [header[name] for header in headers if name in header]
    return found


def _add_up(
    model: torch.nn.Module,
    layers: list[torch.nn.Module],
    grams: list[torch.Tensor],
    batches: Iterable[Mapping[str, torch.Tensor]],
) -> int:
    mask: torch.Tensor | None = None

    def listen(gram: torch.Tensor) -> Any:
        def hear(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].detach()
            rows = rows[mask.bool()] if mask is not None and rows.shape[:-1] == mask.shape else rows.flatten(0, -2)
            rows = rows.to("cpu", torch.float32)
            gram.addmm_(rows.T, rows)

        return hear

    handles = [layer.register_forward_pre_hook(listen(gram)) for layer, gram in zip(layers, grams, strict=True)]
    tokens = 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                mask = batch.get("attention_mask")
                first = next(iter(batch.values()))
                tokens += int(mask.sum()) if mask is not None else first.shape[:2].numel()
                model(**batch)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return tokens
