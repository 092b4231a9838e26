"""LoRA adapters: put on a base model, written and read as safetensors, taken off again.

LoRA (Hu et al. 2021, arXiv 2106.09685) adds s·B·A to a frozen weight, s = α/r; rsLoRA (Kalajdzievski 2023, arXiv
2312.03732) has s = α/√r. DoRA (Liu et al. 2024, arXiv 2402.09353) also trains the length of every row of the sum: the
weight is m·(W + s·B·A)/‖W + s·B·A‖ by rows, where the norm counts as a constant for the gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from pipelines.config import FineTuneConfig
from pipelines.stage import UserError

WEIGHTS = "adapter_model.safetensors"


def lora_config(config: FineTuneConfig) -> LoraConfig:
    """PEFT's form of the adapter's settings.

    Raises:
        UserError: if the output layer is a target; its weight is read directly when the loss is computed.
    """
    targets = config.lora_target_modules
    if not isinstance(targets, str) and "lm_head" in targets:
        raise UserError("lora_target_modules: an adapter on lm_head is not supported; take lm_head out of the list")
    alpha = config.lora_alpha if config.lora_alpha is not None else 2.0 * config.lora_r
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        bias="none",
        task_type="CAUSAL_LM",
    )


def inject(model: Any, config: FineTuneConfig) -> Any:
    """A `PeftModel` with a fresh adapter on `model`, whose own weights are frozen; the random state decides A.

    Raises:
        UserError: if a target is no module of the model.
    """
    try:
        return get_peft_model(model, lora_config(config))
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        linear = {name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "in_features")}
        raise UserError(
            f"lora_target_modules: {', '.join(config.lora_target_modules)} match no module of the model; it has "
            f"{', '.join(sorted(linear - {'lm_head'}))}"
        ) from error


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
    layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield adapted
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer._disable_adapters = off


def _plain(name: str) -> str:
    """What a parameter is called without an adapter around it."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def save_weights(adapted: Any, folder: Path, base_model: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`; plain PEFT loads them."""
    weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    config = adapted.peft_config["default"]
    before = config.base_model_name_or_path, config.inference_mode
    config.base_model_name_or_path, config.inference_mode = base_model, True
    try:
        config.save_pretrained(str(folder))
    finally:
        config.base_model_name_or_path, config.inference_mode = before


def load_weights(adapted: Any, folder: Path) -> None:
    """Read `adapter_model.safetensors` into an adapter of the same shape.

    Raises:
        ValueError: if a tensor is missing, or one has no place.
    """
    result = set_peft_model_state_dict(adapted, load_file(folder / WEIGHTS))
    missing = [name for name in result.missing_keys if ".lora_" in name]
    if result.unexpected_keys or missing:
        raise ValueError(f"tensors without a place: {result.unexpected_keys[:3]}, missing: {missing[:3]}")
