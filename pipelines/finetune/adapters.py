"""Adapters of every kind: put on a base model, turned off, written and read as safetensors, taken off again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from pipelines.config import FineTuneConfig
from pipelines.finetune import pissa
from pipelines.finetune.adapter_kinds import no_such_module, peft_config
from pipelines.finetune.prompts import is_prompted, prompted
from pipelines.stage import UserError

WEIGHTS = "adapter_model.safetensors"
_TENSORS = (".lora_", ".lokr_", ".hada_", ".vera_lambda_", ".ia3_")
"""What every kind calls its tensors in a model."""


def inject(model: Any, config: FineTuneConfig) -> Any:
    """A `PeftModel` with a new adapter on `model`, whose own weights are frozen; the random state decides where it begins.

    An adapter that begins as PiSSA is random until `begin` or `load_weights` has filled it.

    Raises:
        UserError: if a target is no module of the model.
    """
    try:
        adapted = get_peft_model(model, peft_config(config, model))
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        raise no_such_module(config, model) from error
    if config.adapter == "prompt_tuning":
        return prompted(adapted)
    if config.adapter == "lora" and config.peft_init_lora_weights == "pissa":
        return pissa.begin(adapted)
    return adapted


def attach(model: Any, folder: Path) -> Any:
    """A `PeftModel` with the adapter of a folder on `model`, for evaluation.

    Raises:
        UserError: if the adapter does not fit the model.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        config.base_model_name_or_path = None
        adapted = get_peft_model(model, config)
        if is_prompted(adapted):
            prompted(adapted)
        if getattr(config, "bias", "none") != "none":
            adapted.plain_biases = {
                _plain(name): value.detach().clone()
                for name, value in adapted.get_base_model().named_parameters()
                if name.endswith(".bias") and ".lora_" not in name
            }
        load_weights(adapted, folder)
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{folder}: the adapter can't be put on its base model: {error}") from error
    return adapted.eval()


def detach(adapted: Any) -> Any:
    """The base model as it was before its adapter, trained biases and heads taken out again too."""
    if is_prompted(adapted):
        return adapted.base_model
    heads = [
        (name, module.original_module)
        for name, module in adapted.get_base_model().named_modules()
        if hasattr(module, "original_module") and hasattr(module, "modules_to_save")
    ]
    biases = getattr(adapted, "plain_biases", {})
    model = adapted.unload()
    for name, original in heads:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, original)
    for name, value in biases.items():
        model.get_parameter(name).data.copy_(value)
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model


@contextlib.contextmanager
def disabled(adapted: Any) -> Iterator[Any]:
    """Run with the adapter off: inside, the model answers as its base does, bit by bit; gradients and modes stay as they are.

    PEFT's own `disable_adapter` unfreezes every active adapter weight when it ends, frozen ones too.

    Args:
        adapted: a `PeftModel` of any kind that `inject` or `attach` makes.

    Yields:
        The same model.

    Raises:
        TypeError: if the model has no adapter: once its own weights are trained, nothing of its base is left in it.

    Example:
        >>> with torch.no_grad(), disabled(model):
        ...     reference = model(input_ids=ids).logits
    """
    if not hasattr(adapted, "peft_config"):
        raise TypeError("there is no adapter to turn off: all weights are trained")
    parts: list[tuple[Any, str]] = [
        (module, "_disable_adapters") for module in adapted.modules() if isinstance(module, BaseTunerLayer)
    ]
    parts += [(adapted, "prompt_off")] if is_prompted(adapted) else []
    before = [getattr(*part) for part in parts]
    for part in parts:
        setattr(*part, True)
    try:
        yield adapted
    finally:
        for part, off in zip(parts, before, strict=True):
            setattr(*part, off)


def _plain(name: str) -> str:
    """What a parameter is called without an adapter around it."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def save_weights(adapted: Any, folder: Path, base_model: str, gathered: dict[str, Any] | None = None) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`; plain PEFT loads them.

    Args:
        adapted: a `PeftModel`.
        folder: of the checkpoint.
        base_model: what is recorded as its base.
        gathered: the adapter's weights by parameter name, where workers hold a part of them each.
    """
    weights = get_peft_model_state_dict(adapted, state_dict=gathered, save_embedding_layers=False)
    if pissa.has_start(adapted):
        start = get_peft_model_state_dict(adapted, adapter_name=pissa.START, save_embedding_layers=False)
        weights = pissa.joined(weights, start)
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    config = adapted.peft_config["default"]
    before = config.base_model_name_or_path, config.inference_mode
    config.base_model_name_or_path, config.inference_mode = base_model, True
    try:
        config.save_pretrained(str(folder))
    finally:
        config.base_model_name_or_path, config.inference_mode = before
    if pissa.has_start(adapted):
        pissa.plain_config(folder)


def load_weights(adapted: Any, folder: Path) -> None:
    """Read `adapter_model.safetensors` into an adapter of the same shape.

    Raises:
        ValueError: if a tensor is missing, or one has no place.
    """
    weights = load_file(folder / WEIGHTS)
    if pissa.has_start(adapted):
        weights, start = pissa.halves(weights)
        _put(adapted, start, pissa.START)
    _put(adapted, weights, "default")


def trainable_parameters(model: Any) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _put(adapted: Any, weights: dict[str, torch.Tensor], name: str) -> None:
    if is_prompted(adapted):
        if set(weights) != {"prompt_embeddings"}:
            raise ValueError(f"a prompt must be one tensor, prompt_embeddings, but there are {sorted(weights)[:3]}")
        adapted.prompt_encoder[name].embedding.load_state_dict({"weight": weights["prompt_embeddings"]})
        return
    result = set_peft_model_state_dict(adapted, weights, adapter_name=name)
    missing = [key for key in result.missing_keys if f".{name}" in key and any(part in key for part in _TENSORS)]
    if result.unexpected_keys or missing:
        raise ValueError(f"tensors without a place: {result.unexpected_keys[:3]}, missing: {missing[:3]}")
