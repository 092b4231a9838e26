"""Modules that are trained beside a model: projections, critics. They share its optimizer, clipping and checkpoints.

While a run lasts the module is a part of the model, so that one optimizer and one clipping cover both. It is no part of what
is exported: it lies in a file of its own beside a checkpoint's weights, and says nothing about the model's answers.

Example:
    >>> with attached(model, projections, start):
    ...     trainer.go(start)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.weights import BESIDE

_NAME = "trained_beside"


@contextlib.contextmanager
def attached(model: Any, module: torch.nn.Module | None, start: Path | None) -> Iterator[None]:
    """Make a module a part of a model, with the values of the checkpoint to go on from; afterwards it is none.

    Args:
        model: a base model or a `PeftModel`.
        module: on the model's device; None, or one without parameters, changes nothing.
        start: the checkpoint's folder; None begins.
    """
    if module is None or not any(True for _ in module.parameters()):
        yield
        return
    if start is not None:
        module.load_state_dict(load_file(start / BESIDE))
    model.add_module(_NAME, module)
    try:
        yield
    finally:
        delattr(model, _NAME)


@contextlib.contextmanager
def exported(model: Any, folder: Path) -> Iterator[None]:
    """Take the module off while the model's own weights are written into a checkpoint, and write it beside them."""
    module = getattr(model, _NAME, None)
    if module is None:
        yield
        return
    save_file({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, folder / BESIDE)
    delattr(model, _NAME)
    try:
        yield
    finally:
        model.add_module(_NAME, module)
