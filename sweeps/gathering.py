"""Gram matrices for what RegMean merges, gathered by workers before the first such blend is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.soups.base import Blend
from sweeps.loop import Backend
from sweeps.paths import cache_dir
from sweeps.scoring import Say, call
from sweeps.soup_plan import Plan

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

GATHER = "pipelines.soups.gathering:gather"


class Grams:
    """Sees to it that ingredients have their Gram matrices; they stay beside the checkpoints, for a resume and for later soups.

    Args:
        loaded: the sweep.
        backend: makes the calls.
        plan: of the soup.
        say: takes lines for people.
    """

    def __init__(self, loaded: LoadedSweep, backend: Backend, plan: Plan, say: Say) -> None:
        self._loaded, self._backend, self._plan, self._say = loaded, backend, plan, say
        self._ready: set[str] = set()

    def ready(self, blends: Sequence[Blend]) -> None:
        """Gather for the runs of blends that are merged by RegMean, as many at once as there are slots.

        Raises:
            CallFailed: with the typed failure.
        """
        wanted = {run for blend in blends if json.loads(blend.method)["type"] == "regmean" for run in blend.runs}
        runs = [ingredient.run for ingredient in self._plan.ingredients if ingredient.run in wanted - self._ready]
        slots = max(1, self._backend.slots)
        for first in range(0, len(runs), slots):
            self._gather(runs[first : first + slots])

    def _gather(self, runs: Sequence[str]) -> None:
        asked = [self._payload(run) for run in runs]
        pending = [self._backend.start(GATHER, payload) for payload in asked]
        try:
            for run, payload in zip(runs, asked, strict=True):
                tokens = call(self._loaded, self._backend, GATHER, payload, self._say, pending.pop(0))["tokens"]
                self._ready.add(run)
                if tokens:
                    self._say(f"soup: {run}: the inputs of its linear layers, over {tokens} tokens of train")
        finally:
            for one in pending:
                one.forget()

    def _payload(self, run: str) -> dict[str, Any]:
        folders = {ingredient.run: ingredient.folder for ingredient in self._plan.ingredients}
        place = [ingredient.run for ingredient in self._plan.ingredients].index(run)
        config = dict(self._plan.configs[place])
        return {"config": config, "folder": folders[run], "folders": list(folders.values()), "cache": str(cache_dir())}
