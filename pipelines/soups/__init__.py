"""Soups: merges of trials' weights. A recipe decides what goes in; arithmetic makes the weights."""

from __future__ import annotations

SOUPS: dict[str, str] = {
    "uniform": "pipelines.soups.recipes:UniformSoup",
    "greedy": "pipelines.soups.recipes:GreedySoup",
}
