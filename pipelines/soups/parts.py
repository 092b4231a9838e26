"""One merge of full models by several workers that share a file system; each function is called on a worker.

`plan_merge` makes the files, `merge_part` writes a part of them, on any worker and in any order, and `finish_merge` puts
the whole in its place. The result is that of `pipelines.soups.merge`, byte for byte. Whoever gives up in between leaves a
folder aside that the next merge of the same soup removes.

Example:
    >>> begun = plan_merge({"ingredients": [["a", 0.5], ["b", 0.5]], "out": "soup", "parts": 2})
    >>> [merge_part({"plan": begun["plan"], "part": part}) for part in range(begun["parts"])]
    [{'part': 0, 'bytes': 269045204}, {'part': 1, 'bytes': 269045204}]
    >>> finish_merge({"plan": begun["plan"]})
    {'kind': 'full', 'hash': '41...', 'bytes': 538090408}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.soups import base_folder, merge_settings, streaming
from pipelines.soups.arithmetic import folder_bytes, folder_hash, plan_models
from pipelines.soups.masks import one_mask, with_mask
from pipelines.soups.plan import MergePlan
from pipelines.soups.streaming import merge_part

__all__ = ["finish_merge", "merge_part", "plan_merge"]


def plan_merge(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Look at the ingredients, deal out the work and make the files of the result.

    Args:
        payload: as for `pipelines.soups.merge`, of full models, and `parts`: how many workers there are.

    Returns:
        `plan` (JSON) and `parts`, how many there really are.

    Raises:
        pipelines.stage.UserError: if the ingredients can't be merged.
        OSError: if the disk is too small.
    """
    cache = None if payload.get("cache") is None else Path(payload["cache"])
    ingredients = [(Path(folder), float(weight)) for folder, weight in payload["ingredients"]]
    given = merge_settings(payload)
    base = base_folder(payload, cache)
    one_mask([folder for folder, _ in ingredients])
    plan = plan_models(ingredients, Path(payload["out"]), base=base, cache=cache, parts=payload["parts"], **given)
    streaming.start_merge(plan)
    return {"plan": plan.model_dump(mode="json"), "parts": len(plan.parts)}


def finish_merge(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Put what all parts have written in its place.

    Args:
        payload: `plan`.

    Returns:
        What `pipelines.soups.merge` returns.
    """
    plan = MergePlan.model_validate(payload["plan"])
    known = streaming.finish_merge(plan)
    made = {"kind": "full", "hash": folder_hash(Path(plan.out), known), "bytes": folder_bytes(Path(plan.out))}
    return with_mask(one_mask([Path(folder) for folder in plan.folders]), Path(plan.out), made)
