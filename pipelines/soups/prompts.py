"""The average of tuned prompts, as one prompt.

Prompt tuning (Lester et al. 2021, arXiv 2104.08691) trains the embeddings of virtual tokens and no weight, so their average
Σ wᵢ Pᵢ is the average of everything that was trained, exactly. The base model is no point of that space (a prompt of zeros is
not the absence of a prompt), so there is no change from it to scale or to vote on: only weighted averages with weights that sum
to one. Runs of one seed begin from the same tokens; those of several begin apart, as heads that were drawn at random do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.finetune.checkpoint import placing
from pipelines.soups.adapter_files import CONFIG, PROMPT, WEIGHTS
from pipelines.soups.arithmetic import folder_bytes, folder_hash
from pipelines.stage import UserError

TENSOR = "prompt_embeddings"


def all_prompts(folders: Sequence[Path]) -> bool:
    """Whether these are all tuned prompts."""
    return bool(folders) and all(_record(folder).get("peft_type") == PROMPT for folder in folders)


def write_prompts(
    ingredients: Sequence[tuple[Path, float]], out: Path, *, method: str = "average", scale: float = 1.0
) -> dict[str, Any]:
    """Write the average of tuned prompts.

    Args:
        ingredients: (adapter folder, weight).
        out: the soup's folder.
        method: how they are combined; only `average` can be.
        scale: only 1 can be.

    Returns:
        As `merge_adapters`; the rank is 0.

    Raises:
        UserError: if a prompt is missing or of another length, or if anything but an average is asked for.
    """
    total = math.fsum(weight for _, weight in ingredients)
    if method != "average" or scale != 1.0 or not math.isclose(total, 1.0, abs_tol=1e-6):
        what = (
            method if method != "average" else f"weights that sum to {total:g}" if scale == 1.0 else f"scale {scale:g}"
        )
        raise UserError(
            f"no soup: {what} of tuned prompts means nothing, as the base model has no prompt to change from; they can be "
            "averaged"
        )
    prompts = [_prompt(folder) for folder, _ in ingredients]
    shapes = {tuple(prompt.shape): folder for prompt, (folder, _) in zip(prompts, ingredients, strict=True)}
    if len(shapes) > 1:
        told = " and ".join(f"{shape[0]} virtual tokens in {folder}" for shape, folder in shapes.items())
        raise UserError(f"no soup: {told}")
    mean = torch.zeros(prompts[0].shape, dtype=torch.float64)
    for prompt, (_, weight) in zip(prompts, ingredients, strict=True):
        mean.add_(prompt.double(), alpha=weight)
    record = {**_record(ingredients[0][0]), "inference_mode": True}
    with placing(out) as folder:
        save_file({TENSOR: mean.float()}, str(folder / WEIGHTS), metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
    lost: dict[str, float] = {}
    made = {"kind": "adapter", "hash": folder_hash(out), "bytes": folder_bytes(out)}
    return {**made, "rank": 0, "residual": 0.0, "residuals": lost}


def _prompt(folder: Path) -> torch.Tensor:
    path = folder / WEIGHTS
    prompt = load_file(str(path)).get(TENSOR) if path.is_file() else None
    if prompt is None or not bool(torch.isfinite(prompt).all()):
        raise UserError(f"no soup: {path} holds no {TENSOR} of finite numbers")
    return prompt


def _record(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return record
