"""PEFT's configuration of every kind of adapter that a fine-tune can train.

- LoRA (Hu et al. 2021, arXiv 2106.09685) adds s·B·A to a frozen weight, s = α/r; rsLoRA (Kalajdzievski 2023, arXiv
  2312.03732) has s = α/√r. DoRA (Liu et al. 2024, arXiv 2402.09353) also trains the length of every row of the sum: the weight
  is m·(W + s·B·A)/‖W + s·B·A‖ by rows, where the norm counts as a constant for the gradient.
- LoKr (Yeh et al. 2024, arXiv 2309.14859) adds s·C ⊗ (B·A), LoHa (Hyeon-Woo et al. 2022, arXiv 2108.06098) s·(B₁A₁) ∘ (B₂A₂).
- VeRA (Kopiczko et al. 2024, arXiv 2310.11454) adds diag(b)·B · diag(d)·A and trains b and d; A and B are drawn once, by a
  seed that all runs share, and written beside them.
- IA3 (Liu et al. 2022, arXiv 2205.05638) scales a module's outputs, and the inputs of the MLP's last one. The paper's modules
  are `lora_target_modules: [k_proj, v_proj, down_proj]`.
- Prompt tuning (Lester et al. 2021, arXiv 2104.08691) trains virtual tokens that stand before every row (`prompts.py`).

Left out of LoKr and LoHa: dropout of whole rows of the change (`rank_dropout`), which is another thing than LoRA's.
"""

from __future__ import annotations

from typing import Any

from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, PromptTuningConfig, VeraConfig

from pipelines.config import FineTuneConfig
from pipelines.finetune.shape import MLP_OUTPUTS
from pipelines.stage import UserError

TASK = "CAUSAL_LM"


def peft_config(config: FineTuneConfig, model: Any) -> PeftConfig:
    """PEFT's form of the adapter's settings.

    Args:
        config: the trial's settings.
        model: the base model that it will be put on.

    Raises:
        UserError: if the output layer is a target, whose weight is read directly when the loss is computed, or, for IA3, if a
            target is no module of the model.
    """
    if config.adapter == "prompt_tuning":
        return PromptTuningConfig(
            num_virtual_tokens=config.num_virtual_tokens, prompt_tuning_init="SAMPLE_VOCAB", task_type=TASK
        )
    targets = config.lora_target_modules
    if not isinstance(targets, str) and "lm_head" in targets:
        raise UserError("lora_target_modules: an adapter on lm_head is not supported; take lm_head out of the list")
    if config.adapter == "ia3":
        return _ia3(config, model)
    shared = {"r": config.lora_r, "target_modules": targets if isinstance(targets, str) else list(targets)}
    if config.adapter == "vera":
        return VeraConfig(**shared, vera_dropout=config.lora_dropout, save_projection=True, task_type=TASK)
    alpha = config.lora_alpha if config.lora_alpha is not None else 2.0 * config.lora_r
    whole: Any = int(alpha) if float(alpha).is_integer() else alpha
    if config.adapter == "lokr":
        return LoKrConfig(**shared, alpha=whole, task_type=TASK)
    if config.adapter == "loha":
        return LoHaConfig(**shared, alpha=whole, task_type=TASK)
    assert config.adapter == "lora", f"an adapter's kind must be known, but got {config.adapter}"
    return LoraConfig(
        **shared,
        lora_alpha=whole,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        bias="none",
        task_type=TASK,
    )


def no_such_module(config: FineTuneConfig, model: Any) -> UserError:
    """What to say where the targets match nothing."""
    linear = {name.rpartition(".")[2] for name in _linears(model)}
    return UserError(
        f"lora_target_modules: {', '.join(config.lora_target_modules)} match no module of the model; it has "
        f"{', '.join(sorted(linear))}"
    )


def _ia3(config: FineTuneConfig, model: Any) -> IA3Config:
    """Modules by their full names: PEFT wants the MLP's last ones among the targets, and finds them by the end of a name."""
    targets = config.lora_target_modules
    chosen = [
        name
        for name in _linears(model)
        if targets == "all-linear" or any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    if not chosen:
        raise no_such_module(config, model)
    inner = [name for name in chosen if name.endswith(MLP_OUTPUTS)]
    return IA3Config(target_modules=chosen, feedforward_modules=inner, task_type=TASK)


def _linears(model: Any) -> list[str]:
    """Names of the modules with a weight matrix, but for the output layer."""
    output = model.get_output_embeddings()
    return [
        name
        for name, part in model.named_modules()
        if part is not output and (hasattr(part, "in_features") or type(part).__name__ == "Conv1D")
    ]
