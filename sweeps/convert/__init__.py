"""Other tools' configurations as sweep files: what `stockpot convert` writes. Loaded by name on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.convert.base import Conversion, Request

CONVERTERS: dict[str, str] = {
    "axolotl": "sweeps.convert.axolotl:convert",
    "wandb": "sweeps.convert.wandb:convert",
}
"""Tool -> `module:function` that takes a `Request` and gives a `Conversion`."""


def converter_of(tool: str) -> Callable[[Request], Conversion]:
    """The function that converts a tool's files, a name of the table."""
    module, _, name = CONVERTERS[tool].partition(":")
    function: Callable[[Request], Conversion] = getattr(importlib.import_module(module), name)
    return function


def recognise(data: Mapping[str, Any]) -> str | None:
    """The tool that a file's keys speak of; None when they speak of none."""
    if "base_model" in data and not isinstance(data.get("pipeline"), Mapping):
        return "axolotl"
    if isinstance(data.get("parameters"), Mapping) and "pipeline" not in data:
        return "wandb"
    return None
