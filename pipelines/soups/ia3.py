"""The exact average of IA3 adapters, as one IA3 adapter.

IA3 (Liu et al. 2022, arXiv 2205.05638) multiplies: the weight is l ∘ W, by rows, or by columns in feed-forward layers. So
W + Σ wᵢ (lᵢ ∘ W - W) = (1 + Σ wᵢ (lᵢ - 1)) ∘ W: the average of the vectors is the average of the weights, layer by layer,
and a layer that an adapter lacks has l = 1. As a LoRA adapter it would need the full rank, so it stays what it is.

Example:
    >>> merge_adapters([(Path("ia3-a"), 0.5), (Path("ia3-b"), 0.5)], Path("soup"))
    {'kind': 'adapter', 'hash': '9f...', 'bytes': 18432, 'rank': 0, 'residual': 0.0, 'residuals': {}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from pipelines.finetune.checkpoint import placing
from pipelines.soups.adapter_files import CONFIG, IA3, PREFIX, WEIGHTS, AdapterFile, shared_config
from pipelines.soups.arithmetic import folder_bytes, folder_hash
from pipelines.soups.whole import stored_names
from pipelines.stage import UserError

if TYPE_CHECKING:
    from pipelines.soups.lora import Mixing


def write_ia3(
    files: Sequence[AdapterFile],
    weights: Sequence[float],
    scale: float,
    mixing: Mixing,
    whole: Mapping[str, torch.Tensor],
    out: Path,
) -> dict[str, Any]:
    """Write the merge of IA3 adapters.

    Args:
        files: the ingredients.
        weights: one an ingredient.
        scale: factor on the soup's change.
        mixing: how changes l - 1 are combined.
        whole: merged tensors of the base model (heads).
        out: the soup's folder.

    Returns:
        As `merge_adapters`; the rank is 0.

    Raises:
        UserError: if a layer is scaled by rows in one adapter and by columns in another.
    """
    vectors = {}
    for layer in sorted({layer for file in files for layer in file.vectors}):
        there = [file.vectors.get(layer) for file in files]
        shapes = {
            tuple(vector.shape): file.folder for vector, file in zip(there, files, strict=True) if vector is not None
        }
        if len(shapes) > 1:
            told = " and ".join(f"{shape} in {folder}" for shape, folder in shapes.items())
            raise UserError(f"no soup: {layer} is scaled by {told} (feedforward_modules differ)")
        shape = next(iter(shapes))
        changes = [
            torch.zeros(shape, dtype=torch.float64) if vector is None else vector.double() - 1 for vector in there
        ]
        vectors[layer] = (1 + scale * mixing(changes, weights, layer)).float().contiguous()
    columns = [layer for layer, vector in vectors.items() if vector.shape[0] == 1 and vector.shape[1] > 1]
    record = {
        **shared_config(files),
        "peft_type": IA3,
        "target_modules": sorted(vectors),
        "feedforward_modules": columns,
    }
    tensors = {f"{PREFIX}{layer}.ia3_l": vector for layer, vector in vectors.items()}
    tensors.update(stored_names(whole, []))
    with placing(out) as folder:
        save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(record, indent=1, sort_keys=True))
    return {
        "kind": "adapter",
        "hash": folder_hash(out),
        "bytes": folder_bytes(out),
        "rank": 0,
        "residual": 0.0,
        "residuals": {},
    }
