"""A model's decoder layers: found, listened to, and left out.

Works for every causal model of Transformers that holds them in one list, as long as its configuration says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from pipelines.cuts import Keep, kept_layers
from pipelines.stage import UserError


def decoder_layers(model: Any) -> tuple[str, torch.nn.ModuleList]:
    """Where a model holds its decoder layers, and these.

    Args:
        model: a causal language model, with or without an adapter.

    Raises:
        UserError: if it holds none in one list.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    count = _text_config(plain).num_hidden_layers
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, module
    raise UserError(f"{type(plain).__name__} holds its {count} layers in no list, so none can be named")


def cut(model: Any, keep: Keep) -> None:
    """Leave only some decoder layers in a model, and have its configuration say so.

    Lists of the configuration that have an entry a layer (`layer_types`) are cut as well. The model is to be written and
    loaded again: what counts layers inside it is as before.

    Raises:
        UserError: if it has fewer layers.
    """
    place, layers = decoder_layers(model)
    kept = kept_layers(keep, len(layers))
    parent, _, own = place.rpartition(".")
    setattr(model.get_submodule(parent), own, torch.nn.ModuleList(layers[at] for at in kept))
    config = _text_config(model)
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == len(layers):
            setattr(config, name, [value[at] for at in kept])
    config.num_hidden_layers = len(kept)


@contextlib.contextmanager
def listening(model: Any, places: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Hear what decoder layers put out in a forward pass: layer, from 0 -> (batch, seq, hidden), before the last norm."""
    heard: dict[int, torch.Tensor] = {}

    def hear(place: int, _module: Any, _inputs: Any, output: Any) -> None:
        heard[place] = output[0] if isinstance(output, tuple) else output

    _, layers = decoder_layers(model)
    hooks = [layers[place].register_forward_hook(partial(hear, place)) for place in places]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _text_config(model: Any) -> Any:
    return model.config.get_text_config()
