"""Soups: merges of trials' weights. A recipe decides what goes in, a method says how it is merged."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.soups.config import MergeMethodConfig

SOUPS: dict[str, str] = {
    "uniform": "pipelines.soups.recipes.uniform:UniformSoup",
    "weighted": "pipelines.soups.recipes.uniform:WeightedSoup",
    "greedy": "pipelines.soups.recipes.greedy:GreedySoup",
    "pruned": "pipelines.soups.recipes.pruned:PrunedSoup",
    "learned": "pipelines.soups.recipes.learned:LearnedSoup",
    "search": "pipelines.soups.recipes.search:SearchSoup",
    **dict.fromkeys(
        ("slerp", "task_arithmetic", "ties", "dare", "della", "model_stock", "regmean"),
        "pipelines.soups.recipes.uniform:MergedSoup",
    ),
}
METHODS: dict[str, str] = {
    "average": "pipelines.soups.methods.average:average",
    "slerp": "pipelines.soups.methods.slerp:slerp",
    "task_arithmetic": "pipelines.soups.methods.task_arithmetic:task_arithmetic",
    "ties": "pipelines.soups.methods.ties:ties",
    "dare": "pipelines.soups.methods.dare:dare",
    "della": "pipelines.soups.methods.della:della",
    "model_stock": "pipelines.soups.methods.model_stock:model_stock",
    "regmean": "pipelines.soups.methods.regmean:regmean",
}
"""Type of a method (`pipelines/soups/config.py`) -> its function f(tensors, weights, base, *, name, seed, **parameters)."""
ON_CHANGES = ("task_arithmetic", "ties", "dare", "della", "model_stock")
"""Methods on changes from a base: full models need `base` for them; an adapter's ΔW is such a change already."""


def method_function(method: MergeMethodConfig) -> Callable[..., Any]:
    """The function f(tensors, weights, base, *, name, seed) of a method, its parameters bound."""
    module, _, attribute = METHODS[method.type].partition(":")
    return functools.partial(getattr(importlib.import_module(module), attribute), **method.model_dump(exclude={"type"}))


def merge(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Make the weights of a mixture; what `sweeps/soup.py` has called on a worker.

    Args:
        payload: `ingredients` ([[folder, weight], ...], all adapters or all full models), `out` (a folder, replaced),
            `cache` (a folder for converted base models, or none), and, where it isn't the default, `method` (a
            `MergeMethodConfig` as JSON; `{"type": "average"}`), `base` (folder of the base model; none; needed by
            `ON_CHANGES` on full models, and by `scale`; `slerp` goes over the changes from it where it is there), `scale` (1.0; the result is base + scale·(merged - base), for
            adapters scale·ΔW), `seed` (0; of `dare` and `della`), and for adapters `rank` and `energy` (to what the
            result is compacted).

    Returns:
        `{kind: adapter | full, hash, bytes}` and, for an adapter, `rank`, `residual` (‖ΔW - kept‖/‖ΔW‖ in all) and
        `residuals` (of each layer that lost something); for pruned models `mask` (its hash) and `sparsity` (`before`: the
        ingredients', `after`: the soup's).

    Raises:
        pipelines.stage.UserError: if the ingredients can't be merged; the message names what and why.
    """
    ingredients = [(Path(folder), float(weight)) for folder, weight in payload["ingredients"]]
    out, cache = Path(payload["out"]), None if payload.get("cache") is None else Path(payload["cache"])
    given = merge_settings(payload)
    if any((folder / "adapter_config.json").is_file() for folder, _ in ingredients):
        if given.pop("weights_of", None) is not None:
            from pipelines.soups.mixtures import merge_learned

            return merge_learned(payload)
        from pipelines.soups.lora import merge_adapters

        given.update({key: payload[key] for key in ("base", "rank", "energy") if key in payload})
        return merge_adapters(ingredients, out, cache, **given)
    from pipelines.soups.arithmetic import merge_models
    from pipelines.soups.masks import one_mask, with_mask

    mask = one_mask([folder for folder, _ in ingredients])
    made = merge_models(ingredients, out, base=base_folder(payload, cache), cache=cache, **given)
    return with_mask(mask, out, made)


def merge_settings(payload: Mapping[str, Any]) -> dict[str, Any]:
    """`method`, `scale` and `seed` of a merge as functions take them; learned weights are an average with `weights_of`."""
    from pipelines.soups.config import parse_method

    given = {key: payload[key] for key in ("scale", "seed") if key in payload}
    method = payload.get("method") or {}
    if method.get("type") == "learned":
        from pipelines.soups.mixtures import weights_of

        given["weights_of"] = weights_of(method)
    elif method:
        given["method"] = parse_method(method)
    return given


def base_folder(payload: Mapping[str, Any], cache: Path | None) -> Path | None:
    """Where the base model lies, found and converted only for what needs it."""
    needed = (payload.get("method") or {}).get("type") in (*ON_CHANGES, "slerp") or payload.get("scale", 1.0) != 1.0
    base = payload.get("base")
    if base is None or cache is None or not needed or (Path(base) / "config.json").is_file():
        return None if base is None or not (needed and Path(base).is_dir()) else Path(base)
    from pipelines.finetune.model import resolve

    return resolve(str(base), cache)
