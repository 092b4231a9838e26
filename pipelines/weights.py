"""What decides a model's answers, known from its files alone: no torch, and nothing is loaded.

A source is what `base_model` may be: hub id, folder, GGUF file, `package://module/path`, or the folder of an adapter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.cuts import split_cut
from pipelines.hashes import kept_hash, record_hash
from pipelines.packages import HUB_SECONDS, PACKAGE, first_line, hub_failures, named_path
from pipelines.stage import UserError

BESIDE = "beside.safetensors"
"""What was trained beside a model, and is no part of it: projections, critics."""
NOT_WEIGHTS = ("optimizer.safetensors", "grams.safetensors", BESIDE)
"""Files of tensors that may lie beside a checkpoint's weights and say nothing about its answers."""


@dataclass(frozen=True)
class WeightsIdentity:
    """Hashes of a model.

    Attributes:
        model: of weights and configuration, an adapter's included.
        tokenizer: of tokenizer and chat template; empty where `model` covers it.
    """

    model: str
    tokenizer: str = ""


def identity_of(source: str) -> WeightsIdentity:
    """The identity of a source: hashes of its files, or the commit of a hub repository.

    Raises:
        UserError: if there is no such model.
    """
    keep, whole = split_cut(source)
    if keep is not None:
        found = identity_of(whole)
        return replace(found, model=record_hash({"model": found.model, "keep_layers": keep}))
    if source.startswith("sweep://"):
        raise UserError(f"base_model: {source} must be resolved when the sweep file is read, but reached a worker")
    path = named_path(source, "base_model")
    if path.is_file():
        return WeightsIdentity(f"gguf:{kept_hash(path)}")
    if not path.is_dir():
        if source.startswith(PACKAGE) or path.is_absolute() or source.count("/") > 1:
            raise UserError(f"base_model: {path} does not exist")
        return WeightsIdentity(f"hub:{source}@{_commit(source)}")
    if (path / "config.json").is_file():
        return WeightsIdentity(content_hash(path), content_hash(path, "tokenizer"))
    if (path / "adapter_config.json").is_file():
        return _of_adapter(path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return WeightsIdentity(f"gguf:{kept_hash(files[0])}")
    raise UserError(
        f"base_model: the folder {path} holds no model: neither config.json, adapter_config.json nor one GGUF"
    )


def content_hash(folder: Path, names: str = "model") -> str:
    """SHA-256 (hex) over the files that decide a model's answers.

    Args:
        folder: a resolved folder.
        names: `model` for weights and their configs, `tokenizer` for the tokenizer and its chat template.
    """
    if names == "tokenizer":
        wanted = [
            p for p in folder.iterdir() if p.name.startswith(("tokenizer", "vocab", "merges", "special", "chat_"))
        ]
    else:
        wanted = [p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name.endswith("config.json")]
        wanted = [p for p in wanted if p.name not in (*NOT_WEIGHTS, "tokenizer_config.json")]
    return record_hash({path.name: kept_hash(path) for path in wanted if path.is_file()})


def _of_adapter(folder: Path) -> WeightsIdentity:
    """An adapter and the base that it names; its tokenizer is the base's."""
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise UserError(f"base_model: {folder} is an adapter that does not name its base model")
    below = identity_of(base)
    both = hashlib.sha256(f"{below.model}:{content_hash(folder)}".encode()).hexdigest()
    return WeightsIdentity(both, below.tokenizer)


def _commit(source: str) -> str:
    """The commit of a hub repository: of the copy that lies here, else the hub's newest."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    with contextlib.suppress(OSError, ValueError):
        local = try_to_load_from_cache(source, "config.json")
        if isinstance(local, str):
            return Path(local).parent.name
    try:
        return str(HfApi().model_info(source, timeout=HUB_SECONDS).sha)
    except hub_failures() as error:
        raise UserError(
            f"base_model: {source!r} is no folder here and the model hub does not know it ({first_line(error)})"
        ) from error
