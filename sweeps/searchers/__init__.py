"""Searchers: which configuration next. Plain Python with an ask/tell face: no Ray, no store, no pipeline."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from evaluators.base import Direction
    from sweeps.searchers.base import Searcher
    from sweeps.space import Space
    from sweeps.spec import MethodConfig

SEARCHERS: dict[str, str] = {
    "random": "sweeps.searchers.basic:RandomSearcher",
    "grid": "sweeps.searchers.basic:GridSearcher",
    "tpe": "sweeps.searchers.optuna:TPESearcher",
    "gp": "sweeps.searchers.gp:GPSearcher",
    "cmaes": "sweeps.searchers.cmaes:CMAESSearcher",
    "nsga2": "sweeps.searchers.nsga2:NSGA2Searcher",
}


def build_searcher(config: MethodConfig, space: Space, directions: Sequence[Direction]) -> Searcher:
    """The searcher that `method:` asks for.

    Args:
        config: one of the variants of `method`.
        space: what `parameters` says.
        directions: of the sweep's metrics, in order.
    """
    module, _, name = SEARCHERS[config.type].partition(":")
    return cast("Searcher", getattr(importlib.import_module(module), name).of(config, space, directions))
