"""Soups: merges of trials' weights. A recipe decides what goes in; arithmetic makes the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOUPS: dict[str, str] = {
    "uniform": "pipelines.soups.recipes:UniformSoup",
    "greedy": "pipelines.soups.recipes:GreedySoup",
}


def merge(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Make the weights of a mixture; what `sweeps/soup.py` has called on a worker.

    Args:
        payload: `ingredients` ([[folder, weight], ...], all adapters or all full models), `out` (a folder, replaced) and
            `cache` (a folder for converted base models, or none).

    Returns:
        `{kind: adapter | full, hash, bytes}` and, for an adapter, `rank`.

    Raises:
        pipelines.stage.UserError: if the ingredients can't be merged exactly; the message names what and why.
    """
    ingredients = [(Path(folder), float(weight)) for folder, weight in payload["ingredients"]]
    if any((folder / "adapter_config.json").is_file() for folder, _ in ingredients):
        from pipelines.soups.lora import merge_adapters

        cache = payload.get("cache")
        return merge_adapters(ingredients, Path(payload["out"]), None if cache is None else Path(cache))
    from pipelines.soups.arithmetic import merge_models

    return merge_models(ingredients, Path(payload["out"]))
