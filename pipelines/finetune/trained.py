"""Which numbers of a fine-tune get gradients, from the model's shape alone. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.config import FineTuneConfig
from pipelines.finetune.adapter_sizes import adapter_sizes
from pipelines.finetune.shape import EMBEDDINGS, ModelShape


@dataclass(frozen=True)
class Trained:
    """What gets gradients.

    Attributes:
        adapter: parameters that the adapter adds.
        weights: trained weights of the base by name, with their sizes.
        modules: linear modules with an adapter.
        frozen: numbers of the adapter that are kept and written, but not trained.
    """

    adapter: int
    weights: Mapping[str, int]
    modules: frozenset[str]
    frozen: int = 0

    @classmethod
    def of(cls, config: FineTuneConfig, shape: ModelShape) -> Trained:
        """The adapter's numbers (`adapter_sizes`), or the weights themselves."""
        if config.adapter != "none":
            trained, frozen, modules = adapter_sizes(config, shape)
            return cls(trained, {}, modules, frozen)
        patterns = [re.compile(pattern) for pattern in config.unfrozen_parameters or ()]
        # A tied output layer is the embedding; either name unfreezes it.
        chosen = {
            name
            for name in {*shape.tensors, *(["lm_head.weight"] if shape.tied else [])}
            if not patterns or any(pattern.match(name) for pattern in patterns)
        }
        if shape.tied and "lm_head.weight" in chosen:
            chosen |= {name for name in shape.tensors if name.endswith(EMBEDDINGS)}
        own = {name: size for name, size in shape.tensors.items() if not (shape.tied and name == "lm_head.weight")}
        weights = {name: math.prod(size) for name, size in own.items() if name in chosen}
        return cls(0, weights, frozenset())

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return self.adapter + sum(self.weights.values())

    @property
    def embedding(self) -> int:
        """Those of the embedding."""
        return sum(size for name, size in self.weights.items() if name.endswith(EMBEDDINGS))

    @property
    def largest(self) -> int:
        """Those of the largest weight."""
        return max(self.weights.values(), default=0)

    def first_layer(self, shape: ModelShape) -> int:
        """The lowest decoder layer whose activations are kept: nothing flows back below the lowest trained weight."""
        if self.adapter or self.embedding:
            return 0
        found = [shape.layer_of(name) for name in self.weights]
        return min((layer for layer in found if layer is not None), default=shape.layers)
