"""Imports that leave alone what happens to be installed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

TRACKERS = ("mlflow", "wandb")
"""What TRL imports wherever it is installed, several seconds of every trial; the driver's trackers are told by the driver."""


@contextlib.contextmanager
def unseen(names: tuple[str, ...] = TRACKERS) -> Iterator[None]:
    """Have packages look as if they were not installed while others are imported; those loaded already stay visible.

    Args:
        names: of the packages' modules.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
