"""Recipes: which mixture goes into a soup, as pure decisions over scores. One recipe, one file; `pipelines.soups.SOUPS` names them.

Example:
    >>> recipe = build_recipe(GreedySoupConfig(top=8))
    >>> recipe.mix(ingredients, bench)
    Blend(mixture=(('0003-1f2e3d4c/seed-0', 0.5), ('0001-aabbccdd/seed-0', 0.5)), ...)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pipelines.soups import SOUPS
from pipelines.soups.base import Recipe


def build_recipe(config: Any) -> Recipe:
    """The recipe that `soup:` asks for.

    Args:
        config: a member of `sweeps.soup_spec.SoupConfig`.

    Raises:
        KeyError: if the method is not in `pipelines.soups.SOUPS`; the door has checked it before.
    """
    from pipelines.soups.recipes.toward_base import TowardBase

    module, _, name = SOUPS[config.method].partition(":")
    recipe: Recipe = getattr(import_module(module), name).of(config)
    if config.toward_base:
        recipe = TowardBase.of(config, recipe)
    return recipe
