"""The weighted average of full models, tensor by tensor.

θ = Σ wᵢ θᵢ with Σ wᵢ = 1, accumulated in float32 (float64 for float64 tensors) whatever the files hold and rounded once
to the first model's type: a running mean kept in bfloat16 has about three times the rounding error. Inputs are mapped,
not loaded; the result is held in memory once.

Integer and boolean tensors must be equal and are copied. A tied output head that only some ingredients store is left out,
as the loader ties it again.

Example:
    >>> merge_models([(Path("a"), 0.5), (Path("b"), 0.5)], Path("soup"))
    {'kind': 'full', 'hash': '41...', 'bytes': 538090408}
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipelines.finetune.checkpoint import placing
from pipelines.soups import method_function
from pipelines.soups.config import AverageConfig, MergeMethodConfig
from pipelines.stage import UserError

AVERAGE = AverageConfig()
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TIED_HEAD = "lm_head.weight"
VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
"""Keys of `config.json` that may differ between ingredients."""
NOT_COPIED = ("complete.json", "state.json", "soup.json", INDEX)
"""JSON files of an ingredient that say nothing about the soup."""
COPIED_SUFFIXES = (".json", ".txt", ".model", ".jinja")


class ModelFiles:
    """A model's safetensors, one file or sharded, mapped; use as a context manager.

    Args:
        folder: where `model.safetensors` or its index lies.

    Raises:
        UserError: if neither is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        if (folder / INDEX).is_file():
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            files = sorted(set(index["weight_map"].values()))
        else:
            files = [WEIGHTS]
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise UserError(f"no soup: {folder} has no {', '.join(missing)}")
        self._where: dict[str, Any] = {}
        for name in files:
            shard = self._stack.enter_context(safe_open(str(folder / name), framework="pt"))
            self._where.update(dict.fromkeys(shard.keys(), shard))

    def __enter__(self) -> ModelFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._where)

    def kind(self, name: str) -> tuple[tuple[int, ...], str]:
        """(shape, dtype) of a tensor, without reading it."""
        view = self._where[name].get_slice(name)
        return tuple(view.get_shape()), str(view.get_dtype())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor's values."""
        tensor: torch.Tensor = self._where[name].get_tensor(name)
        return tensor


def merge_models(
    ingredients: Sequence[tuple[Path, float]],
    out: Path,
    *,
    method: MergeMethodConfig = AVERAGE,
    base: Path | None = None,
    cache: Path | None = None,
    scale: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the merge of full models with the first one's configuration and tokenizer.

    Args:
        ingredients: (model folder, weight); the weights sum to one.
        out: the soup's folder; written aside and moved, what stood there is replaced.
        method: how weights are merged.
        base: the base model's folder, where the method or `scale` needs one.
        cache: where a converted base is kept.
        scale: the result is base + scale·(merged - base).
        seed: of random methods.

    Returns:
        `{kind, hash, bytes}`.

    Raises:
        UserError: if a file is missing, tensors, shapes, types or configurations differ, or a number is not finite.
    """
    weights = [weight for _, weight in ingredients]
    if not ingredients or not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6):
        raise UserError(f"no soup: weights of full models must sum to 1, but are {weights}")
    folders = [folder for folder, _ in ingredients]
    configs = [_read_json(folder / "config.json") for folder in folders]
    with ExitStack() as stack:
        models = [stack.enter_context(ModelFiles(folder)) for folder in folders]
        names = _common_names(models, bool(configs[0].get("tie_word_embeddings")))
        problems = _config_problems(folders, configs) + _tensor_problems(models, names)
        if problems:
            rest = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise UserError("no soup: " + "; ".join(problems[:5]) + rest)
        function = method_function(method)
        own = None if base is None else stack.enter_context(ModelFiles(base))
        merged = {name: _merged(name, models, weights, own, function, scale, seed) for name in sorted(names)}
        with placing(out) as folder:
            save_file(merged, str(folder / WEIGHTS), metadata={"format": "pt"})
            for path in sorted(folders[0].iterdir()):
                if path.is_file() and path.suffix in COPIED_SUFFIXES and path.name not in NOT_COPIED:
                    shutil.copyfile(path, folder / path.name)
    return {"kind": "full", "hash": folder_hash(out), "bytes": folder_bytes(out)}


def folder_hash(folder: Path) -> str:
    """SHA-256 (hex) over the names and hashes of a weights folder's files, as `checkpoint.content_hash` makes it."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            files[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def folder_bytes(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _merged(
    name: str,
    models: Sequence[ModelFiles],
    weights: Sequence[float],
    base: ModelFiles | None,
    function: Callable[..., torch.Tensor],
    scale: float,
    seed: int,
) -> torch.Tensor:
    tensors = [model.tensor(name) for model in models]
    if tensors[0].is_floating_point():
        for model, tensor in zip(models, tensors, strict=True):
            if not bool(torch.isfinite(tensor).all()):
                raise UserError(f"no soup: {model.folder} holds NaN or infinite numbers in {name}")
        own = None if base is None else base.tensor(name)
        merged = function(tensors, weights, own, name=name, seed=seed)
        if own is not None and scale != 1.0:
            merged = own.to(merged.dtype) + scale * (merged - own.to(merged.dtype))
        return merged.to(tensors[0].dtype).contiguous()
    for model, tensor in zip(models[1:], tensors[1:], strict=True):
        if not torch.equal(tensors[0], tensor):
            raise UserError(f"no soup: {name} holds whole numbers that differ in {models[0].folder} and {model.folder}")
    return tensors[0].contiguous()


def _common_names(models: Sequence[ModelFiles], tied: bool) -> set[str]:
    everywhere = set.intersection(*(model.names for model in models))
    anywhere = set.union(*(model.names for model in models))
    return everywhere if tied and anywhere - everywhere == {TIED_HEAD} else anywhere


def _tensor_problems(models: Sequence[ModelFiles], names: set[str]) -> list[str]:
    problems = []
    for name in sorted(names):
        lacking = [model for model in models if name not in model.names]
        problems += [f"{model.folder} lacks {name}" for model in lacking]
        if lacking:
            continue
        expected = models[0].kind(name)
        for model in models[1:]:
            kind = model.kind(name)
            if kind != expected:
                problems.append(f"{name} is {expected} in {models[0].folder}, but {kind} in {model.folder}")
    return problems


def _config_problems(folders: Sequence[Path], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    problems = []
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        keys = sorted(set(config) | set(configs[0]))
        differing = [key for key in keys if key not in VOLATILE and config.get(key) != configs[0].get(key)]
        if differing:
            problems.append(f"config.json of {folders[0]} and {folder} differ in {', '.join(differing)}")
    return problems


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no soup: {path.parent} has no {path.name}")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record
