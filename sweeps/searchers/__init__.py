"""Searchers: which configuration next. Plain Python with an ask/tell face: no Ray, no store, no pipeline."""

from __future__ import annotations

SEARCHERS: dict[str, str] = {
    "random": "sweeps.searchers.basic:RandomSearcher",
    "grid": "sweeps.searchers.basic:GridSearcher",
    "tpe": "sweeps.searchers.optuna:TPESearcher",
}
