"""Merges of full models: what must agree before anything is read, and the way from folders to a folder.

Numbers are calculated in float32 (float64 for float64 tensors) whatever the files hold and rounded once to the
ingredients' type: a running mean kept in bfloat16 has about three times the rounding error. Nothing is loaded whole
(`pipelines/soups/streaming.py`).

Whole numbers and booleans must be equal and are copied. Where the configuration ties the output head to the embeddings, a stored
head must be the embeddings and is left out, as the loader ties it again.

Example:
    >>> merge_models([(Path("a"), 0.5), (Path("b"), 0.5)], Path("soup"))
    {'kind': 'full', 'hash': '41...', 'bytes': 538090408}
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from pipelines.hashes import file_hash, record_hash
from pipelines.soups import ON_CHANGES
from pipelines.soups.config import AverageConfig, MergeMethodConfig
from pipelines.soups.files import FLOATS, INDEX, WEIGHTS, Mapped, ModelFiles, Stored
from pipelines.soups.grams import find_grams
from pipelines.soups.plan import SHARD_BYTES, MergePlan, lay_out
from pipelines.soups.streaming import merge_whole
from pipelines.stage import UserError

AVERAGE = AverageConfig()
TIED_HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""How names of embeddings end."""
VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
"""Keys of `config.json` that may differ between ingredients."""
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
)
"""Files that say which token has which number."""
TOKENIZER_HABITS = ("padding", "truncation")
"""Keys of `tokenizer.json` that change no token."""
NOT_COPIED = ("complete.json", "state.json", "soup.json", INDEX)
"""JSON files of an ingredient that say nothing about the soup."""
COPIED_SUFFIXES = (".json", ".txt", ".model", ".jinja")
WeightsOf = Callable[[str], Sequence[float] | None]


def merge_models(
    ingredients: Sequence[tuple[Path, float]],
    out: Path,
    *,
    method: MergeMethodConfig = AVERAGE,
    base: Path | None = None,
    cache: Path | None = None,
    scale: float = 1.0,
    seed: int = 0,
    weights_of: WeightsOf | None = None,
) -> dict[str, Any]:
    """Write the merge of full models with the first one's configuration and tokenizer.

    Args:
        ingredients: (model folder, weight); the weights sum to one, or are any numbers for a method on changes.
        out: the soup's folder; written aside and moved, what stood there is replaced.
        method: how weights are merged.
        base: the base model, where the method or `scale` needs one.
        cache: where a converted base is kept; a temporary folder by default.
        scale: the result is base + scale·(merged - base).
        seed: of random methods.
        weights_of: name of a tensor -> its own weights, one an ingredient, or None where it has none.

    Returns:
        `{kind, hash, bytes}`.

    Raises:
        UserError: if a file is missing, tensors, shapes, types, configurations or tokenizers differ, or a number is
            not finite.
        OSError: if the disk is full; what stood at `out` is left as it was.
    """
    with ExitStack() as stack:
        if cache is None and base is not None:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stockpot-")))
        plan = plan_models(
            ingredients,
            out,
            method=method,
            base=base,
            cache=cache,
            scale=scale,
            seed=seed,
            weights_of=weights_of,
        )
        known = merge_whole(plan)
    return {"kind": "full", "hash": folder_hash(out, known), "bytes": folder_bytes(out)}


def plan_models(
    ingredients: Sequence[tuple[Path, float]],
    out: Path,
    *,
    method: MergeMethodConfig = AVERAGE,
    base: Path | None = None,
    cache: Path | None = None,
    scale: float = 1.0,
    seed: int = 0,
    weights_of: WeightsOf | None = None,
    parts: int = 1,
    shard_bytes: int = SHARD_BYTES,
) -> MergePlan:
    """What `merge_models` will do, for any number of workers; reads headers and small files alone.

    Args:
        ingredients: as for `merge_models`, and so is everything down to `weights_of`.
        out: see there.
        method: see there.
        base: see there.
        cache: see there.
        scale: see there.
        seed: see there.
        weights_of: see there.
        parts: shares of the work.
        shard_bytes: largest file of the result.

    Raises:
        UserError: if the ingredients don't fit together.
    """
    folders, weights = [folder for folder, _ in ingredients], [weight for _, weight in ingredients]
    _check_weights(weights, method)
    configs = [_read_json(folder / "config.json") for folder in folders]
    models = [ModelFiles(folder) for folder in folders]
    read = _base_read(method, scale, base, cache)
    names = set().union(*(model.tensors for model in models))
    problems = _config_problems(folders, configs) + _tokenizer_problems(folders)
    if configs[0].get("tie_word_embeddings"):
        problems += _drop_tied_head(models, names)
    problems += _tensor_problems(models, names, read)
    grams: Mapping[str, Sequence[Stored]] = {}
    if method.type == "regmean" and not problems:
        sides = {name: models[0].tensors[name].shape[-1] for name in names if models[0].tensors[name].shape}
        grams = find_grams(folders, sides, problems)
    _refuse(problems)
    return lay_out(
        models,
        weights,
        sorted(names),
        out,
        method=method,
        base=read,
        grams=grams,
        own=_own_weights(names, weights_of, method),
        scale=scale,
        seed=seed,
        copies=_copies(folders[0]),
        parts=parts,
        shard_bytes=shard_bytes,
    )


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        rest = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise UserError("no soup: " + "; ".join(problems[:5]) + rest)


def _base_read(method: MergeMethodConfig, scale: float, base: Path | None, cache: Path | None) -> ModelFiles | None:
    """The base model's files, where the merge reads them.

    Raises:
        UserError: if it must and there is none.
    """
    needed = method.type in ON_CHANGES or scale != 1.0
    if needed and base is None:
        wanting = f"method {method.type}" if method.type in ON_CHANGES else f"scale {scale:g}"
        raise UserError(f"no soup: {wanting} needs the base model of full models")
    return _base_files(base, cache) if base is not None and (needed or method.type == "slerp") else None


def folder_hash(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """SHA-256 (hex) over the names and hashes of a weights folder's files, as `checkpoint.content_hash` makes it.

    Args:
        folder: of the weights.
        known: hashes of files by name that need not be read again.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if known is not None and name in known:
            files[name] = known[name]
            continue
        files[name] = file_hash(path)
    return record_hash(files)


def folder_bytes(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _check_weights(weights: Sequence[float], method: MergeMethodConfig) -> None:
    if not weights:
        raise UserError("no soup: it needs at least one ingredient")
    if not all(math.isfinite(weight) for weight in weights):
        raise UserError(f"no soup: weights must be finite, but are {weights}")
    if method.type not in ON_CHANGES and not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6):
        raise UserError(f"no soup: weights of full models must sum to 1, but are {weights}")


def _own_weights(
    names: Iterable[str], weights_of: WeightsOf | None, method: MergeMethodConfig
) -> dict[str, Sequence[float]]:
    """Weights of tensors that have some of their own."""
    found = {} if weights_of is None else {name: weights_of(name) for name in names}
    own = {name: weights for name, weights in found.items() if weights is not None}
    for weights in own.values():
        _check_weights(weights, method)
    return own


def _base_files(base: Path, cache: Path | None) -> ModelFiles:
    if (base / WEIGHTS).is_file() or (base / INDEX).is_file():
        return ModelFiles(base)
    if cache is None:
        raise UserError(f"no soup: the base model {base} is no folder of safetensors")
    from pipelines.finetune.model import resolve

    return ModelFiles(resolve(str(base), cache))


def _drop_tied_head(models: Sequence[ModelFiles], names: set[str]) -> list[str]:
    """Take a tied head out of the names, and say where it is not the embeddings."""
    problems = []
    embeddings = sorted(name for name in names if name.endswith(EMBEDDINGS))
    holders = [model for model in models if TIED_HEAD in model.tensors]
    if not embeddings:
        if len(holders) < len(models):
            names.discard(TIED_HEAD)
        return []
    for model in holders:
        embedding = model.tensors.get(embeddings[0])
        if embedding is not None and not _equal(model.tensors[TIED_HEAD], embedding):
            text = f"{model.folder} says tie_word_embeddings, but its {TIED_HEAD} is not its {embeddings[0]}"
            problems.append(text)
    names.discard(TIED_HEAD)
    return problems


def _equal(left: Stored, right: Stored) -> bool:
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    mapped, each = Mapped(), 1 << 20
    grid = ((at, min(at + each, left.numel)) for at in range(0, left.numel, each))
    return all(torch.equal(mapped.numbers(left, *ends), mapped.numbers(right, *ends)) for ends in grid)


def _tensor_problems(models: Sequence[ModelFiles], names: Iterable[str], base: ModelFiles | None) -> list[str]:
    problems = []
    for name in sorted(names):
        lacking = [model for model in models if name not in model.tensors]
        problems += [f"{model.folder} lacks {name}" for model in lacking]
        if lacking:
            continue
        first = models[0].tensors[name]
        for model in models[1:]:
            other = model.tensors[name]
            if (other.shape, other.dtype) != (first.shape, first.dtype):
                ours, theirs = f"{first.dtype} {first.shape}", f"{other.dtype} {other.shape}"
                problems.append(f"{name} is {ours} in {models[0].folder}, but {theirs} in {model.folder}")
        if base is not None and first.dtype in FLOATS:
            below = base.tensors.get(name)
            if below is None:
                problems.append(f"the base model {base.folder} lacks {name}")
            elif below.shape != first.shape or below.dtype not in FLOATS:
                problems.append(f"{name} is {first.shape} in {models[0].folder}, but {below.shape} in the base model")
    return problems


def _config_problems(folders: Sequence[Path], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    problems = []
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        keys = sorted(set(config) | set(configs[0]))
        differing = [key for key in keys if key not in VOLATILE and config.get(key) != configs[0].get(key)]
        if differing:
            problems.append(f"config.json of {folders[0]} and {folder} differ in {', '.join(differing)}")
    return problems


def _tokenizer_problems(folders: Sequence[Path]) -> list[str]:
    """Where the tokens differ; a folder without a tokenizer agrees with all."""
    problems = []
    known = [(folder, tokens) for folder in folders if (tokens := _tokens(folder))]
    for folder, tokens in known[1:]:
        first, expected = known[0]
        differing = [name for name in TOKENIZER if tokens.get(name) != expected.get(name)]
        if differing:
            problems.append(f"{first} and {folder} have different tokenizers ({', '.join(differing)})")
    return problems


def _tokens(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in TOKENIZER:
        if (folder / name).is_file():
            raw = (folder / name).read_bytes()
            found[name] = raw
            if name == "tokenizer.json":
                record = json.loads(raw)
                found[name] = {key: value for key, value in record.items() if key not in TOKENIZER_HABITS}
    return found


def _copies(folder: Path) -> list[str]:
    return [
        path.name
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in COPIED_SUFFIXES and path.name not in NOT_COPIED
    ]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no soup: {path.parent} has no {path.name}")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record
