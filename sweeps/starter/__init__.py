"""Sweep files to begin with, one a pipeline: what `stockpot init` writes. Loaded by name on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.starter.base import Request, Starter

STARTERS: dict[str, str] = {
    "sft": "sweeps.starter.sft:start",
    "dpo": "sweeps.starter.dpo:start",
    "rag": "sweeps.starter.rag:start",
}
"""Pipeline -> `module:function` that takes a `Request` and gives a `Starter`."""


def starter_of(kind: str) -> Callable[[Request], Starter]:
    """The function that begins a sweep file for a pipeline of the table."""
    module, _, name = STARTERS[kind].partition(":")
    function: Callable[[Request], Starter] = getattr(importlib.import_module(module), name)
    return function
