"""What must hold before weights are averaged; each problem names the runs and what differs.

One base model and one tokenizer, both by content and not by name; one mask where weights are sparse; one start of heads
(`whole.py`); no NaN. `pipelines/soups/admission.py` asks for it pair by pair, `stockpot diagnose` for its two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.soups.adapter_files import CONFIG, kind_problems
from pipelines.soups.masks import mask_hash, tensors_in, weight_files
from pipelines.stage import UserError

STATE = "state.json"


def inspect(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Look at candidates of a soup before anything is averaged.

    Args:
        payload: `ingredients` ([[run, folder], ...]), `base` (the base model as the sweep names it, or None) and `cache`.

    Returns:
        `problems` (sentences; empty if all is well) and `mask` (hash, or None where weights are dense).
    """
    runs = [str(run) for run, _ in payload["ingredients"]]
    folders = [Path(folder) for _, folder in payload["ingredients"]]
    cache = None if payload.get("cache") is None else Path(payload["cache"])
    problems = weight_problems(runs, folders)
    adapters = [folder for folder in folders if (folder / CONFIG).is_file()]
    if len(adapters) not in (0, len(folders)):
        problems.append("some runs are adapters and some are full models: they can't be averaged")
        return {"problems": problems, "mask": None}
    problems += kind_problems(runs, folders) if adapters else []
    sources = [_source(folder) or str(payload.get("base") or "") for folder in folders]
    problems += base_problems(runs, folders, sources, cache)
    problems += differing("tokenizer", runs, [tokenizer_of(folder) for folder in folders])
    masks = [mask_hash(folder) for folder in folders]
    problems += differing("mask of pruned weights", runs, [mask or "dense" for mask in masks])
    return {"problems": problems, "mask": masks[0] if masks else None}


def differing(what: str, runs: Sequence[str], hashes: Sequence[str | None]) -> list[str]:
    """A problem where known hashes are not all equal; who has which is named."""
    groups: dict[str, list[str]] = {}
    for run, own in zip(runs, hashes, strict=True):
        if own is not None:
            groups.setdefault(own, []).append(run)
    if len(groups) < 2:
        return []
    told = "; ".join(f"{', '.join(members)} ({own[:12]})" for own, members in groups.items())
    return [f"the runs do not have one {what}: {told}"]


def base_problems(
    runs: Sequence[str], folders: Sequence[Path], sources: Sequence[str], cache: Path | None
) -> list[str]:
    """Runs that were trained on different base models, by content.

    A checkpoint's own record (`state.json`) of its base's hash counts; without one, bases of other names are read where
    they can be, and bases of one name are the same.
    """
    recorded = [recorded_in(folder, "base_hash") for folder in folders]
    if all(recorded):
        return differing("base model", runs, recorded)
    if len(set(sources)) < 2:
        return differing("base model", runs, recorded)
    from pipelines.finetune.model import resolve
    from pipelines.weights import content_hash

    found: list[str | None] = []
    for source, known in zip(sources, recorded, strict=True):
        try:
            found.append(known or _resolved_hash(source, cache, resolve, content_hash))
        except UserError as error:
            names = sorted({f"base_model_name_or_path {other!r}" for other in sources})
            return [f"{' and '.join(runs)} have {' and '.join(names)}, and {error}"]
    return differing("base model", [f"{run} on {source}" for run, source in zip(runs, sources, strict=True)], found)


def weight_problems(runs: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """NaN and infinite numbers in files of weights, one tensor at a time."""
    problems = []
    for run, folder in zip(runs, folders, strict=True):
        files = weight_files(folder)
        if not files:
            problems.append(f"{run} has no weights in {folder}")
        bad = [name for name, read in tensors_in(files) if _broken(read())]
        if bad:
            more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
            problems.append(f"{run} holds NaN or infinite numbers in {bad[0]}{more}")
    return problems


def tokenizer_of(folder: Path) -> str | None:
    """SHA-256 (hex) of what a folder's tokenizer files say; a checkpoint's record where it has none; else None."""
    from pipelines.finetune.model import tokenizer_hash

    return tokenizer_hash(folder) or recorded_in(folder, "tokenizer_hash")


def _broken(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


def _source(folder: Path) -> str | None:
    path = folder / CONFIG
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")


def recorded_in(folder: Path, key: str) -> str | None:
    """What a checkpoint's `state.json` says of its base model (`base_hash`, `tokenizer_hash`); None where it says nothing."""
    path = folder / STATE
    if not path.is_file():
        return None
    value = json.loads(path.read_text(encoding="utf-8")).get(key)
    return None if value is None else str(value)


def _resolved_hash(
    source: str, cache: Path | None, resolve: Callable[..., Path], content_hash: Callable[[Path], str]
) -> str:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="stockpot-") as own:
        return content_hash(resolve(source, cache or Path(own)))
