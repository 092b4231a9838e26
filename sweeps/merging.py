"""A soup's weights made by workers: in one call, or, where full models are large, a part by each worker that there is.

The parts are byte ranges of the result (`pipelines/soups/plan.py`), written into one folder that all workers see, as they
see the checkpoints they are made of. Any number of workers writes the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.finetune.checkpoint import clear_torn
from sweeps.loop import Backend, Pending
from sweeps.scoring import Say, call

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

MERGE = "pipelines.soups:merge"
PLAN = "pipelines.soups.parts:plan_merge"
PART = "pipelines.soups.parts:merge_part"
FINISH = "pipelines.soups.parts:finish_merge"
PART_BYTES = 1 << 28
"""Bytes of the result below which a part isn't worth a worker: starting one takes seconds."""


def make_weights(loaded: LoadedSweep, backend: Backend, payload: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Merge ingredients into a folder, on as many workers as the merge has work for.

    Args:
        loaded: the sweep.
        backend: makes the calls.
        payload: as for `pipelines.soups.merge`.
        say: takes lines for people.

    Returns:
        What `pipelines.soups.merge` returns.

    Raises:
        CallFailed: with the typed failure; what stood in the folder is left as it was.
    """
    parts = min(backend.slots, full_bytes(Path(payload["ingredients"][0][0])) // PART_BYTES)
    if parts < 2:
        made: dict[str, Any] = call(loaded, backend, MERGE, payload, say)
        return made
    try:
        begun = call(loaded, backend, PLAN, {**payload, "parts": parts}, say)
        say(f"the soup's weights are merged by {begun['parts']} workers")
        _all_parts(loaded, backend, begun["plan"], begun["parts"], say)
        made = call(loaded, backend, FINISH, {"plan": begun["plan"]}, say)
    except BaseException:
        clear_torn(Path(payload["out"]))
        raise
    return made


def full_bytes(folder: Path) -> int:
    """Bytes of a full model's weights; 0 for an adapter."""
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))


def _all_parts(loaded: LoadedSweep, backend: Backend, plan: Mapping[str, Any], parts: int, say: Say) -> None:
    """Every part, all at once; one that fails is tried again as any call is."""
    asked = [{"plan": plan, "part": part} for part in range(parts)]
    running: deque[tuple[Mapping[str, Any], Pending]] = deque()
    try:
        running.extend((payload, backend.start(PART, payload)) for payload in asked)
        while running:
            payload, begun = running.popleft()
            call(loaded, backend, PART, payload, say, begun)
    finally:
        for _, begun in running:
            begun.forget()
