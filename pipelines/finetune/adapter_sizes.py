"""How large an adapter is, and what it keeps for the backward pass, from the model's shape alone. No torch.

PEFT's shapes: LoRA (r, in) and (out, r); LoKr a (out₁, in₁) and, where r is small, (out₂, r) and (r, in₂), with out₁ and out₂
the two most equal factors of out; LoHa two pairs like LoRA's; VeRA (r) and (out); IA3 (out), or (in) where it scales inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pipelines.config import FineTuneConfig
from pipelines.finetune.shape import MLP_OUTPUTS, ModelShape


def adapter_sizes(config: FineTuneConfig, shape: ModelShape) -> tuple[int, int, frozenset[str]]:
    """What the adapter of a configuration adds.

    Returns:
        Trained numbers; numbers that are kept and written but not trained (VeRA's shared matrices, where PiSSA began); the
        linear modules that it is on.
    """
    trained = sum(math.prod(size) for _, size in adapter_tensors(config, shape))
    modules = _modules(config, shape)
    frozen = 0
    if config.adapter == "vera" and modules:
        longest = max(outputs for outputs, _ in modules.values()) + max(inputs for _, inputs in modules.values())
        frozen = config.lora_r * longest
    elif config.adapter == "lora" and config.peft_init_lora_weights == "pissa":
        frozen = trained
    return trained, frozen, frozenset(modules)


def adapter_tensors(config: FineTuneConfig, shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes of the tensors that an adapter trains; the names only tell them apart."""
    if config.adapter == "prompt_tuning":
        yield "prompt", (config.num_virtual_tokens, shape.hidden)
    for name, (outputs, inputs) in _modules(config, shape).items():
        for place, size in enumerate(_of(config, name, outputs, inputs)):
            yield f"{name}.{place}", size


def _modules(config: FineTuneConfig, shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Linear modules with an adapter: name -> (outputs, inputs)."""
    targets = config.lora_target_modules
    if config.adapter == "prompt_tuning":
        return {}
    return {
        name: size
        for name, size in shape.linears.items()
        if targets == "all-linear" or any(name == target or name.endswith(f".{target}") for target in targets)
    }


def _of(config: FineTuneConfig, name: str, outputs: int, inputs: int) -> list[tuple[int, ...]]:
    """Trained tensors of one module."""
    rank = config.lora_r
    if config.adapter == "lokr":
        (out1, out2), (in1, in2) = factors(outputs), factors(inputs)
        return [(out1, in1), *([(out2, rank), (rank, in2)] if rank < max(out2, in2) / 2 else [(out2, in2)])]
    if config.adapter == "vera":
        return [(rank,), (outputs,)]
    if config.adapter == "ia3":
        return [(1, inputs) if name.endswith(MLP_OUTPUTS) else (outputs, 1)]
    pair = [(rank, inputs), (outputs, rank)]
    if config.adapter == "loha":
        return [*pair, *pair]
    return [*pair, *([(outputs,)] if config.use_dora else [])]


def factors(size: int) -> tuple[int, int]:
    """The two factors of a number that are nearest to each other, the smaller one first."""
    first = next(factor for factor in range(int(size**0.5), 0, -1) if size % factor == 0)
    return first, size // first


def kept_numbers(config: FineTuneConfig, name: str, outputs: int, inputs: int, tokens: int) -> list[int]:
    """Numbers that one adapted module keeps for the backward pass, beside its input.

    LoRA keeps A·x, DoRA two outputs more; LoKr and LoHa multiply by the whole change, (out, in), and keep it; VeRA keeps what its
    two vectors scale; IA3 the output that it scales, or the input.

    Args:
        config: the trial's configuration.
        name: the module.
        outputs: its outputs.
        inputs: its inputs.
        tokens: of the micro batch.
    """
    if config.adapter in ("lokr", "loha"):
        return [outputs * inputs]
    if config.adapter == "vera":
        return [config.lora_r * tokens, outputs * tokens]
    if config.adapter == "ia3":
        return [(inputs if name.endswith(MLP_OUTPUTS) else outputs) * tokens]
    return [config.lora_r * tokens] + ([outputs * tokens] * 2 if config.use_dora else [])


def keeps_inputs(config: FineTuneConfig) -> bool:
    """Whether the gradient of a module's adapter needs the module's input: not where frozen matrices come first."""
    return config.adapter not in ("vera", "ia3", "prompt_tuning")


def weight_bytes(config: FineTuneConfig, shape: ModelShape) -> int:
    """The base model's weights in memory.

    fp32, but for the linear modules inside the layers where they are quantised: bitsandbytes keeps NF4 with a byte of scale for
    64 numbers, and 8-bit numbers with a scale of 4 bytes an output.
    """
    linear = shape.linears.values()
    numbers = sum(outputs * inputs for outputs, inputs in linear)
    rest = 4 * (shape.parameters - numbers)
    if config.load_in_4bit:
        return rest + numbers // 2 + numbers // 64
    if config.load_in_8bit:
        return rest + numbers + 4 * sum(outputs for outputs, _ in linear)
    return rest + 4 * numbers
