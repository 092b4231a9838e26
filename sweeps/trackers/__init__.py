"""Trackers: what writes a sweep's numbers elsewhere. One process a tracker (`sweeps.trackers.sender`), fed by the ledger."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from sweeps.track_spec import TrackConfig
    from sweeps.trackers.base import Tracker

TRACKERS: dict[str, str] = {
    "tensorboard": "sweeps.trackers.tensorboard:TensorBoardTracker",
    "mlflow": "sweeps.trackers.mlflow:MLflowTracker",
    "wandb": "sweeps.trackers.wandb:WandbTracker",
}


def build_tracker(config: TrackConfig) -> Tracker:
    """The tracker that an entry of `track:` asks for; its package is imported when it is opened."""
    module, _, name = TRACKERS[config.type].partition(":")
    return cast("Tracker", getattr(importlib.import_module(module), name)(config))
