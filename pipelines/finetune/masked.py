"""Training that keeps a pruned model's zeros: the pipeline `retrain_pruned`.

Source: Zimmer et al., "Sparse Model Soups" (ICLR 2024, arXiv 2306.16788): a pruned model is retrained with its mask M held, so
that all retrainings of it have one mask and their average keeps it. With all weights trained, the gradients of pruned weights
are zero, so that AdamW (decay and moments too) leaves them where they are. With an adapter the layer is (W + s·B·A) ⊙ M, in
training as in the checkpoint.

A checkpoint is a whole model with `mask.json`; an adapter's factors lie beside it in `adapter/`, to go on from. Its own file of
factors could not be loaded by plain PEFT: W + s·B·A is dense.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipelines.config import FineTuneConfig, RetrainPrunedConfig
from pipelines.finetune import adapters
from pipelines.finetune.model import LoadedModel
from pipelines.soups.masks import SPARSE, mask_of, prunable_weights, readers, record_mask, recorded_mask
from pipelines.stage import UserError

ADAPTER = "adapter"
"""Folder of an adapter's factors inside a checkpoint."""


class HeldMask:
    """The mask of a pruned model in memory: which of its prunable weights are zero, and shall stay zero.

    Args:
        loaded: the pruned model, without an adapter.
        wanted: the hash that its mask must have (SHA-256, hex); any where None.

    Attributes:
        mask: hash and counts.
        kept: name -> (out, in), True where a weight is trained.

    Raises:
        UserError: if the model is not pruned, or has another mask.
    """

    def __init__(self, loaded: LoadedModel, wanted: str | None = None) -> None:
        weights = prunable_weights(loaded.model)
        self.mask = mask_of(readers(weights))
        if self.mask.sparsity < SPARSE and recorded_mask(loaded.folder) is None:
            raise UserError(
                f"base_model: {loaded.folder} is not pruned ({self.mask.sparsity:.1%} of its weights are zero), so there is no "
                "mask to keep; prune it first: stockpot prune"
            )
        if wanted not in (None, self.mask.hash):
            raise UserError(
                f"mask_hash: {wanted} is asked for, but the weights of {loaded.folder} that are zero have {self.mask.hash}"
            )
        self.kept = {name: weight.detach() != 0 for name, weight in weights.items()}

    @classmethod
    def of(cls, loaded: LoadedModel, config: FineTuneConfig) -> HeldMask | None:
        """As the configuration says; None where it keeps no mask."""
        return cls(loaded, config.mask_hash) if isinstance(config, RetrainPrunedConfig) else None

    def save(self, model: Any, loaded: LoadedModel, folder: Path, base_model: str) -> None:
        """Write the model with its zeros, its tokenizer, `mask.json`, and an adapter's factors to go on from.

        Raises:
            AssertionError: if a pruned weight has become another number.
        """
        if hasattr(model, "peft_config"):
            plain = model.get_base_model()
            plain.save_pretrained(folder, state_dict=self._merged(plain))
            (folder / ADAPTER).mkdir()
            adapters.save_weights(model, folder / ADAPTER, base_model)
        else:
            model.save_pretrained(folder)
            changed = [name for name, kept in self.kept.items() if model.get_parameter(name).detach()[~kept].any()]
            assert not changed, f"pruned weights must stay zero, but {changed[0]} has others"
        loaded.tokenizer.save_pretrained(folder)
        record_mask(folder, self.mask)

    def _merged(self, plain: Any) -> dict[str, torch.Tensor]:
        """The weights as plain Transformers names them, products added and masked."""
        state = {}
        for name, value in plain.state_dict().items():
            if ".lora_" in name:
                continue
            own = name.replace(".base_layer.", ".")
            if own != name and own in self.kept:
                value = _masked_weight(plain.get_submodule(own.removesuffix(".weight")), self.kept[own]).detach()
            state[own] = value
        return state


@contextlib.contextmanager
def holding(held: HeldMask | None, model: Any) -> Iterator[None]:
    """Hold a mask in a model whose weights are trained, or in the layers of its adapter (a `PeftModel`); None holds nothing."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    hooks = []
    for name, kept in ({} if held is None else held.kept).items():
        layer = plain.get_submodule(name.removesuffix(".weight"))
        if hasattr(layer, "base_layer"):
            layer.forward = partial(_masked_forward, layer, kept)
        elif layer.weight.requires_grad:
            hooks.append(layer.weight.register_hook(partial(torch.mul, kept)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def adapter_folder(checkpoint: Path) -> Path:
    """Where a checkpoint has its adapter's factors."""
    inner = checkpoint / ADAPTER
    return inner if inner.is_dir() else checkpoint


def _masked_weight(layer: Any, kept: torch.Tensor) -> torch.Tensor:
    """(W + s·B·A) ⊙ M, (out, in)."""
    product: torch.Tensor = layer.get_delta_weight("default")
    return (layer.base_layer.weight + product) * kept


def _masked_forward(layer: Any, kept: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What an adapted linear layer gives: x (…, in) to (…, out)."""
    if layer.disable_adapters:
        base: torch.Tensor = layer.base_layer(x)
        return base
    return torch.nn.functional.linear(x, _masked_weight(layer, kept), layer.base_layer.bias)
