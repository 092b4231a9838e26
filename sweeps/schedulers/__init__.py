"""Schedulers: which run goes on, and how far. Plain Python: no Ray, no store, no pipeline."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from sweeps.schedulers.base import Scheduler
    from sweeps.spec import EarlyTerminateConfig

SCHEDULERS: dict[str, str] = {
    "none": "sweeps.schedulers.base:RunToEnd",
    "asha": "sweeps.schedulers.asha:ASHAScheduler",
    "race": "sweeps.schedulers.race:RaceScheduler",
}


def build_scheduler(config: EarlyTerminateConfig, milestones: tuple[int, ...], finalists: int) -> Scheduler:
    """The scheduler that `early_terminate:` asks for.

    Args:
        config: one of the variants of `early_terminate`.
        milestones: all rungs, ascending; the last is the pipeline's total.
        finalists: trials guaranteed to reach the total.
    """
    module, _, name = SCHEDULERS[config.type].partition(":")
    return cast("Scheduler", getattr(importlib.import_module(module), name).of(config, milestones, finalists))
