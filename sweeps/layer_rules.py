"""Layers that a sweep file names must be there, as far as the headers of the models on this machine tell."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.config import DistillConfig, FineTuneConfig
from pipelines.cuts import kept_layers
from pipelines.finetune.layer_map import mapped
from pipelines.finetune.shape import ShapeUnknown, read_shape
from pipelines.stage import UserError
from sweeps.draft import Draft
from sweeps.local import absolute_model


def check_layers(draft: Draft) -> None:
    """`keep_layers` and `hidden.layer_map` name layers that base model and teacher have."""
    known: dict[str, int | None] = {}

    def layers(name: str) -> int | None:
        """A model's number of layers; None where nothing on this machine tells."""
        if name not in known:
            try:
                known[name] = read_shape(absolute_model(name, draft.folder)).layers
            except ShapeUnknown:
                known[name] = None
        return known[name]

    said: set[str] = set()
    for _, config in draft.configs:
        try:
            if isinstance(config, FineTuneConfig):
                _check(config, layers)
        except UserError as error:
            key, _, message = str(error).partition(": ")
            if message not in said:
                said.add(message)
                draft.wrong(draft.source(key), message)


def _check(config: FineTuneConfig, layers: Callable[[str], int | None]) -> None:
    """Raises UserError, beginning with the key, for a layer that is not there."""
    if config.keep_layers is None and not isinstance(config, DistillConfig):
        return
    student = layers(config.base_model)
    if student is not None and config.keep_layers is not None:
        student = len(kept_layers(config.keep_layers, student))
    if isinstance(config, DistillConfig) and config.hidden.type != "none":
        teacher = layers(config.teachers[0])
        if student is not None and teacher is not None:
            mapped(config.hidden.layer_map, student, teacher)
