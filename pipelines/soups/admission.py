"""Who may be averaged at all: what is wrong with each run, asked before anything is.

`pipelines/soups/checks.py` says what is wrong with a run's weights, and what differs between runs; here each run is held
against the first sound one, which is the best, so that the odd one out is left out and not the whole soup.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def problems(payload: Mapping[str, Any]) -> dict[str, str]:
    """Run -> why it can't be in a soup; what `sweeps/bench.py` has called on a worker.

    Args:
        payload: `folders` (run -> checkpoint, the best first), `base` and `cache`.
    """
    from pipelines.soups.checks import inspect, weight_problems

    folders: Mapping[str, str] = payload["folders"]
    found: dict[str, str] = {}
    anchor: str | None = None
    for run, folder in folders.items():
        said = weight_problems([run], [Path(folder)])
        if not said and anchor is not None:
            pair = [[anchor, folders[anchor]], [run, folder]]
            about = {"base": payload.get("base"), "cache": payload.get("cache")}
            said = list(inspect({"ingredients": pair, **about})["problems"])
        if said:
            found[run] = "; ".join(said)
        else:
            anchor = anchor or run
    return found
