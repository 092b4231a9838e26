"""Prune a model: from a name to a folder with a pruned model, its tokenizer and the mask's record.

`pipelines.finetune.pruning` picks the weights; here the model is loaded, inputs are gathered where the method wants them, and
the weights that were picked become zero.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from pipelines.config import DataFile, PruneConfig
from pipelines.finetune.checkpoint import placing
from pipelines.finetune.model import LoadedModel, load_folder, resolve
from pipelines.finetune.pruning import global_magnitude, layer_magnitude, wanda
from pipelines.finetune.rows import encode_train
from pipelines.lm import pad
from pipelines.soups.masks import mask_of, prunable_weights, readers, record_mask
from pipelines.splits import read_rows
from pipelines.stage import UserError


def prune(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Prune a model into a folder.

    Args:
        payload: `model` (a name as `base_model` takes them), `out` (the folder, replaced), `settings` (a `PruneConfig` as
            JSON), `sparsity` (share of zeros, in (0, 1)), `cache` (a folder for converted models, or none) and, for wanda,
            `data` (a `DataFile` as JSON: the rows whose inputs count).

    Returns:
        `{hash, zeros, total, sparsity, before}`: the mask, and the share of zeros before.

    Raises:
        UserError: if the model can't be loaded or pruned so.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    settings, sparsity = PruneConfig.model_validate(payload["settings"]), float(payload["sparsity"])
    with tempfile.TemporaryDirectory(prefix="stockpot-") as own:
        folder = resolve(payload["model"], Path(payload.get("cache") or own))
        loaded = load_folder(folder)
    weights = prunable_weights(loaded.model)
    if not weights:
        raise UserError(f"{folder} has no matrices to prune: embeddings, output layer and norms are left alone")
    before = mask_of(readers(weights))
    if sparsity < before.sparsity:
        raise UserError(
            f"sparsity: {before.sparsity:.4g} of the weights of {payload['model']} are zero already, more than {sparsity:g}"
        )
    norms = _norms(loaded, payload.get("data"), settings) if settings.method == "wanda" else {}
    for name, kept in _masks(weights, norms, settings, sparsity).items():
        weights[name].data.mul_(kept)
    mask = mask_of(readers(weights))
    with placing(Path(payload["out"])) as aside:
        loaded.model.save_pretrained(aside)
        loaded.tokenizer.save_pretrained(aside)
        record_mask(aside, mask)
    return {**mask.record(), "sparsity": mask.sparsity, "before": before.sparsity}


def _masks(
    weights: Mapping[str, torch.Tensor], norms: Mapping[str, torch.Tensor], settings: PruneConfig, sparsity: float
) -> dict[str, torch.Tensor]:
    plain = {name: weight.detach() for name, weight in weights.items()}
    if settings.method == "wanda":
        return wanda(plain, norms, sparsity)
    return (global_magnitude if settings.scope == "global" else layer_magnitude)(plain, sparsity)


def _norms(loaded: LoadedModel, data: Mapping[str, Any] | None, settings: PruneConfig) -> dict[str, torch.Tensor]:
    """‖X_j‖₂ of every input of every prunable layer, over the tokens of the first `rows` rows.

    Raises:
        UserError: if there are no rows, or a layer is not `torch.nn.Linear`.
    """
    if data is None:
        raise UserError("prune: wanda weighs weights by their inputs; give it rows: --on FILE, or take magnitude")
    rows = read_rows(DataFile.model_validate(data))[: settings.rows]
    encoded = encode_train(rows, loaded.tokenizer, settings.sequence_len).rows
    layers = {name: loaded.model.get_submodule(name.removesuffix(".weight")) for name in prunable_weights(loaded.model)}
    other = [name for name, layer in layers.items() if not isinstance(layer, torch.nn.Linear)]
    if other:
        raise UserError(f"prune: wanda knows torch.nn.Linear, and {other[0]} is none; take magnitude")
    squares = {name: torch.zeros(layer.in_features, dtype=torch.float64) for name, layer in layers.items()}

    def listen(name: str) -> Any:
        def hear(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            squares[name] += inputs[0].detach().double().flatten(0, -2).square().sum(0).cpu()

        return hear

    hooks = [layer.register_forward_pre_hook(listen(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for row in encoded:  # one by one: padding would count as inputs
                ids, mask, _ = pad([row], loaded.tokenizer.pad_token_id)
                loaded.model(input_ids=ids, attention_mask=mask)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total.sqrt().float() for name, total in squares.items()}
