"""Masks of pruned weights: which weights may be pruned, which are zero, and the hash that says whether two models agree.

A mask is never averaged. Where all ingredients have one mask, the mean of zeros is zero, and a soup is as sparse as they are;
where masks differ, a weight of the mean is zero only where it is zero in all, so that the mean of three models of 60 % zeros is
left with 22 % or so. `one_mask` refuses that, and `sparsity_kept` holds a merge against it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from pipelines.soups.adapter_files import CONFIG, WEIGHTS
from pipelines.stage import UserError

MASK = "mask.json"
SPARSE = 0.05
"""Share of zeros from which prunable weights count as pruned, where no `mask.json` says so."""
NOT_PRUNED = ("embed", "lm_head", "norm", "wte", "wpe")
"""Parts of names of matrices that pruning leaves alone."""

Reader = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Mask:
    """Which prunable weights are zero.

    Attributes:
        hash: SHA-256 (hex) over names, shapes and zeros, tensor by tensor in the order of names.
        zeros: how many are zero.
        total: how many there are.
    """

    hash: str
    zeros: int
    total: int

    @property
    def sparsity(self) -> float:
        """Share of zeros, 0 to 1."""
        return self.zeros / self.total if self.total else 0.0

    def record(self) -> dict[str, Any]:
        """JSON, as `mask.json` holds it."""
        return {"hash": self.hash, "zeros": self.zeros, "total": self.total}


def prunable(name: str) -> bool:
    """Whether pruning touches a tensor of this name, if it is a matrix: all but embeddings, output layer and norms."""
    return name.endswith(".weight") and not any(part in name for part in NOT_PRUNED)


def prunable_weights(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The matrices of a model in memory that pruning touches, by name."""
    return {
        name: weight
        for name, weight in model.named_parameters()
        if prunable(name) and weight.dim() == 2 and weight.is_floating_point()
    }


def mask_of(tensors: Iterable[tuple[str, Reader]]) -> Mask:
    """The mask of (name, read) pairs in any order; what pruning does not touch is passed over."""
    zeros = total = 0
    digest = hashlib.sha256()
    for name, read in sorted(tensors, key=lambda pair: pair[0]):
        tensor = read() if prunable(name) else None
        if tensor is None or tensor.dim() != 2 or not tensor.is_floating_point():
            continue
        zero = (tensor.detach() == 0).cpu().numpy()
        total, zeros = total + zero.size, zeros + int(zero.sum())
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(np.packbits(zero.reshape(-1)).tobytes())
    return Mask(digest.hexdigest(), zeros, total)


def counted(folder: Path) -> Mask:
    """The mask of a model folder as its weights are, one tensor at a time."""
    return mask_of(tensors_in(weight_files(folder)))


def mask_hash(folder: Path) -> str | None:
    """The hash of a folder's mask: what its `mask.json` says, else its zeros; None for dense weights and plain adapters."""
    if (recorded := recorded_mask(folder)) is not None:
        return recorded.hash
    if (folder / CONFIG).is_file():
        return None
    found = counted(folder)
    return found.hash if found.sparsity >= SPARSE else None


def recorded_mask(folder: Path) -> Mask | None:
    """`mask.json` of a folder; None where there is none. Files that have the hash alone are read too."""
    path = folder / MASK
    if not path.is_file():
        return None
    body = json.loads(path.read_text(encoding="utf-8"))
    return Mask(str(body["hash"]), int(body.get("zeros", 0)), int(body.get("total", 0)))


def record_mask(folder: Path, mask: Mask) -> None:
    """Write `mask.json` beside weights."""
    (folder / MASK).write_text(json.dumps(mask.record(), indent=1) + "\n", encoding="utf-8")


def one_mask(folders: Sequence[Path]) -> Mask | None:
    """The mask that all of these folders have; None where none of them says that it was pruned.

    Raises:
        UserError: naming who has which, if they are not all equal.
    """
    if not any((folder / MASK).is_file() for folder in folders):
        return None
    found = {str(folder): mask_hash(folder) for folder in folders}
    if len(set(found.values())) > 1:
        told = "; ".join(f"{folder} ({'dense' if own is None else own[:12]})" for folder, own in found.items())
        raise UserError(f"no soup: the masks of pruned weights differ, and their mean would be less sparse: {told}")
    return next(own for own in map(recorded_mask, folders) if own is not None)


def sparsity_kept(before: Mask, folder: Path) -> Mask:
    """The mask of a merge's weights.

    Raises:
        UserError: if fewer weights are zero than in the ingredients.
    """
    after = counted(folder)
    if after.zeros < before.zeros:
        raise UserError(
            f"no soup: {before.zeros:,} of {before.total:,} weights were pruned in every ingredient, but only {after.zeros:,} are "
            "zero in the soup: this merge does not keep zeros; take average"
        )
    return after


def with_mask(mask: Mask | None, out: Path, made: Mapping[str, Any]) -> dict[str, Any]:
    """What a merge of models returns, and the mask that all of them had: looked for in the result, and recorded beside it.

    Args:
        mask: of the ingredients; None where they are dense.
        out: the result's folder, which is removed where it lost the mask.
        made: what the merge returned.

    Raises:
        UserError: if the result has other zeros.
    """
    if mask is None:
        return dict(made)
    try:
        after = sparsity_kept(mask, out)
    except UserError:
        shutil.rmtree(out)
        raise
    record_mask(out, mask)
    return {**made, "mask": mask.hash, "sparsity": {"before": mask.sparsity, "after": after.sparsity}}


def weight_files(folder: Path) -> list[Path]:
    """An adapter's file, or a model's shards."""
    if (folder / CONFIG).is_file():
        return [path for path in [folder / WEIGHTS] if path.is_file()]
    return sorted(folder.glob("model*.safetensors"))


def tensors_in(files: Sequence[Path]) -> list[tuple[str, Reader]]:
    """(name, read) of every tensor of safetensors files; nothing is read yet."""
    found: list[tuple[str, Reader]] = []
    for path in files:
        with safe_open(str(path), "pt") as file:
            found += [(name, _reader(path, name)) for name in file.keys()]  # noqa: SIM118
    return found


def readers(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, Reader]]:
    """Tensors in memory as (name, read) pairs."""
    return [(name, lambda tensor=tensor: tensor) for name, tensor in tensors.items()]  # type: ignore[misc]


def _reader(path: Path, name: str) -> Reader:
    def read() -> torch.Tensor:
        with safe_open(str(path), "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    return read
