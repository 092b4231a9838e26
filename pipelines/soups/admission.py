"""What is wrong with ingredients, asked of them before anything is averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def problems(payload: Mapping[str, Any]) -> dict[str, str]:
    """Run -> why it can't be in a soup; what `sweeps/bench.py` has called on a worker.

    Args:
        payload: `folders` (run -> checkpoint), `base` and `cache`.
    """
    return {}
