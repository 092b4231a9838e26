"""The peak memory of one fine-tune, estimated before anything runs. No torch.

A run's memory is its states (process, weights, optimizer, data) and what each moment of a step adds to them; the peak is
that of the largest moment. The terms follow what PyTorch keeps for the backward pass of a Llama-like decoder as
Transformers, PEFT and `pipelines.finetune.trainer` run it; they were counted with saved-tensor hooks. Notation: h hidden, i
intermediate, q heads x head_dim, k kv_heads x head_dim, v vocabulary, T tokens of a micro batch (rows x padded length),
n trained-on tokens in it, r rank; b bytes of a computed number: 4 in fp32, 2 under bf16 or fp16 autocast.

On a CPU the peak is the process's resident set and the C library's heap counts: see `HEAP_SHARE`. On a GPU it is what the
caching allocator hands out, and the context. `benchmarks/memory.py` holds the estimate against measured peaks on a CPU; the
GPU's has not been held against a device.

Left out: what other architectures keep beside this (experts are counted by the width a token goes through), and threads.

Example:
    >>> estimate(config, read_shape(config.base_model)).total
    2304573440
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipelines.config import DPOConfig, FineTuneConfig, RetrainPrunedConfig
from pipelines.finetune.adapter_sizes import keeps_inputs, kept_numbers, weight_bytes
from pipelines.finetune.distill_memory import beside, logit_bytes, teacher_pass, teacher_states
from pipelines.finetune.memory_workers import over_workers
from pipelines.finetune.optimizer_memory import aside_bytes, state_bytes, step_bytes
from pipelines.finetune.shape import MLP_OUTPUTS, ModelShape
from pipelines.finetune.trained import Trained

MIB = 1 << 20
Device = Literal["cpu", "gpu"]

PROCESS_BYTES = 475 * MIB
"""A process that has imported this pipeline with a CPU build of torch 2.13: its resident set, libraries included."""
TOKENIZER_BYTES = 1400
"""Of a loaded fast tokenizer and what is imported with it, an entry of the vocabulary (67 MiB at 49,152 entries)."""
CONTEXT_BYTES = 512 * MIB
"""A CUDA context with its kernels, before the first tensor."""
MAPPED_BYTES = 32 * MIB
"""glibc maps blocks from this size on by themselves and gives them back when freed; smaller ones come from its heap
(`DEFAULT_MMAP_THRESHOLD_MAX`, mallopt(3))."""
HEAP_SHARE = {"lora": 0.8, "lokr": 0.8, "loha": 0.8, "vera": 0.8, "ia3": 0.15, "prompt_tuning": 0.15, "none": 0.15}
"""Free space between the activations that the heap keeps for the backward pass, as a share of them. An adapted module
makes three temporary outputs (the base's, the adapter's, the scaled one) for the one that is kept, a plain one none, so
holes are left between kept blocks. The shares are the peaks of runs with the default allocator against those of the same
runs with every block mapped (MALLOC_MMAP_THRESHOLD_=200000): LoRA of 1 x 128 and 2 x 256 in fp32 and 2 x 256 in bf16 (0.74,
0.86, 0.73), full of 2 x 256 in fp32 (0.16)."""
TOKEN_BYTES = 48
"""A token of train that is held: a place in each of two lists (8 + 8 bytes) and a Python integer (32)."""
LAZY_ROW_BYTES = 60
"""A row of train that is read when it is needed: its places in the index (48 bytes) and among the rows (12)."""
ROW_BYTES = 1000
"""A row beside its characters: the example, its hashes, its lists."""
_OUT = ("o_proj", "out_proj", "attention.dense", "attn.c_proj", "attn_output")
_INTO_MLP = ("gate_proj", "up_proj", "gate_up_proj", "fc1", "dense_h_to_4h", "mlp.c_fc")


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model at once.

    Attributes:
        rows: how many.
        length: tokens of the longest; the others are padded to it.
        trained: tokens in all rows that count in the loss: only these reach the output layer (n).
        padded: whether lengths differ, so that attention gets a mask.
    """

    rows: int
    length: int
    trained: int
    padded: bool

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included (T)."""
        return self.rows * self.length


@dataclass(frozen=True)
class Workload:
    """The data's part of the estimate.

    Attributes:
        train: the largest micro batch that is to be expected.
        evaluated: the largest batch of the loss on `tune`; None for none.
        generated: rows and length (prompt and answer) of the largest generating batch; None for none.
        rows: rows of train.
        tokens: their tokens.
        characters: their characters.
    """

    train: Batch
    evaluated: Batch | None = None
    generated: tuple[int, int] | None = None
    rows: int = 0
    tokens: int = 0
    characters: int = 0

    def behind(self, prompt: int) -> Workload:
        """The same rows with so many virtual tokens before each."""

        def longer(batch: Batch) -> Batch:
            return replace(batch, length=batch.length + prompt)

        return replace(
            self,
            train=longer(self.train),
            evaluated=None if self.evaluated is None else longer(self.evaluated),
            generated=None if self.generated is None else (self.generated[0], self.generated[1] + prompt),
        )

    @classmethod
    def largest(cls, config: FineTuneConfig) -> Workload:
        """Every row as long as `sequence_len` allows, and all of it trained on."""
        rows, length = config.micro_batch_size * (2 if isinstance(config, DPOConfig) else 1), config.sequence_len
        evaluated = Batch(config.eval_batch_size, length, config.eval_batch_size * length, config.eval_batch_size > 1)
        return cls(Batch(rows, length, rows * length, rows > 1), evaluated)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the largest moment of a run.

    Attributes:
        device: whose memory it is: `cpu` the process's resident set, `gpu` the device's.
        moment: when the peak is: `backward`, `teacher` (its forward pass), `gradients`, `update`, `evaluation` or `generation`.
        items: what it is made of then.
        moments: the total of every moment.
        trainable: trained parameters.
        batch: the micro batch that it was made for.
    """

    device: Device
    moment: str
    items: Mapping[str, int]
    moments: Mapping[str, int]
    trainable: int
    batch: Batch

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.moments[self.moment]


def estimate(
    config: FineTuneConfig,
    shape: ModelShape,
    work: Workload | None = None,
    device: Device = "cpu",
    teachers: Sequence[ModelShape] = (),
    workers: int = 1,
) -> MemoryEstimate:
    """The peak of one run with its evaluations; where several workers train it, of one of them.

    Args:
        config: the trial's configuration.
        shape: its base model's.
        work: lengths and sizes of its data; without it every row is as long as `sequence_len` and trained on whole.
        device: where the model is.
        teachers: shapes of a distillation's teacher, one a member.
        workers: processes that train together.
    """
    work = work or Workload.largest(config)
    batch = work.train
    if config.adapter == "prompt_tuning":
        work = work.behind(config.num_virtual_tokens)
    trained = Trained.of(config, shape)
    states, added = over_workers(
        config,
        shape,
        trained.parameters + beside(config, shape, teachers),
        workers,
        _states(config, shape, work, trained, device) | teacher_states(config, shape, teachers),
        _moments(config, shape, work, trained, device),
        device,
    )
    moments = {name: states | {item: size for item, size in extra.items() if size} for name, extra in added.items()}
    if teachers:
        passing = teacher_pass(config, teachers, work.train.tokens, work.train.trained)
        moments["teacher"] = {**moments["backward"], "logits": 8 * work.train.trained * shape.vocabulary} | passing
    totals = {name: sum(items.values()) for name, items in moments.items()}
    peak = max(totals, key=lambda name: totals[name])
    return MemoryEstimate(device, peak, moments[peak], totals, trained.parameters, batch)


def _states(
    config: FineTuneConfig, shape: ModelShape, work: Workload, trained: Trained, device: Device
) -> dict[str, int]:
    """What stays through the run."""
    states = {"weights": weight_bytes(config, shape), "adapter": 4 * (trained.adapter + trained.frozen)}
    states["optimizer"] = state_bytes(config, shape, trained)
    if isinstance(config, RetrainPrunedConfig):  # a byte a number; with an adapter also the masked sum, for backward
        states["mask"] = (5 if config.adapter == "lora" else 1) * sum(math.prod(s) for s in shape.linears.values())
    if device == "gpu":
        states["process"] = CONTEXT_BYTES
    else:
        states["process"] = PROCESS_BYTES + TOKENIZER_BYTES * shape.vocabulary
        held = TOKEN_BYTES * work.tokens + ROW_BYTES * work.rows + work.characters
        states["data"] = LAZY_ROW_BYTES * work.rows if config.datasets.train.streaming else held
    return {name: size for name, size in states.items() if size}


def _moments(
    config: FineTuneConfig, shape: ModelShape, work: Workload, trained: Trained, device: Device
) -> dict[str, dict[str, int]]:
    """What each moment adds to the states.

    - `backward`, at its start: everything that was kept, the logits (their log-softmax, and two gradients of their size:
      12 n v), the half-precision copies of the weights, and the gradient of an output layer that is trained. With
      accumulation, the gradients of the micro batches before.
    - `gradients`, at its end: all gradients, and once more the embedding's, which is made whole before it is added.
    - `update`: all gradients, and the optimizer's temporaries.
    - `evaluation`: logits and log-softmax of a batch (8 n v); `generation`: keys and values of a batch. In both, what a
      schedule-free optimizer puts aside.

    On a CPU the heap has kept what the backward pass freed, and gradients are put beside it. Gradient checkpointing saves
    less there: what a layer computed and dropped leaves the same holes between the inputs that are kept.
    """
    b = 4 if config.precision == "fp32" else 2
    cpu = device == "cpu"
    kept = _kept(config, shape, work.train, trained, device)
    copies = _copies(config, shape, trained)
    activations = sum(kept)
    every = kept
    if config.gradient_checkpointing:
        every = _kept(config.model_copy(update={"gradient_checkpointing": False}), shape, work.train, trained, device)
    holes = int(HEAP_SHARE[config.adapter] * _heaped(every)) if cpu else 0
    small = _heaped([*kept, *copies])
    retained = {"heap": small if config.adapter == "none" else small + holes} if cpu else {}
    gradients = 4 * trained.parameters
    head = 4 * shape.vocabulary * shape.hidden if trained.embedding or "lm_head.weight" in trained.weights else 0
    layer = b * work.train.tokens * (3 * shape.intermediate + 2 * shape.hidden)
    accumulated = gradients if config.gradient_accumulation_steps > 1 else head
    moments = {
        "backward": {
            "activations": activations + layer,
            "heap": holes,
            "copies": sum(copies),
            "logits": logit_bytes(config) * work.train.trained * shape.vocabulary,
            "gradients": accumulated,
        },
        "gradients": {"gradients": gradients + 4 * trained.embedding, **retained},
        "update": {"gradients": gradients, "update": step_bytes(config, trained, device), **retained},
    }
    aside = retained | {"trained weights": aside_bytes(config, trained)}
    if work.evaluated is not None:
        moments["evaluation"] = _scoring(shape, work.evaluated, b, aside)
        if isinstance(config, DPOConfig) and (config.adapter == "none" or config.reference is not None):
            moments["evaluation"]["reference"] = 4 * shape.parameters  # a second model, while it is asked
    if work.generated is not None:
        moments["generation"] = _generating(shape, *work.generated, aside)
    return moments


def _heaped(sizes: Iterable[int]) -> int:
    """Bytes of the blocks that glibc takes from its heap."""
    return sum(size for size in sizes if size < MAPPED_BYTES)


def _scoring(shape: ModelShape, batch: Batch, b: int, retained: Mapping[str, int]) -> dict[str, int]:
    """The forward pass of an evaluation keeps one layer's tensors at a time; the heap holds them where it can."""
    passing = b * batch.tokens * (3 * shape.intermediate + 4 * shape.hidden)
    mask = batch.rows * batch.length**2 * (1 + b) if batch.padded else 0
    passing = max(0, passing + mask - retained.get("heap", 0))
    return {"activations": passing, "logits": 8 * batch.trained * shape.vocabulary, **retained}


def _generating(shape: ModelShape, rows: int, length: int, retained: Mapping[str, int]) -> dict[str, int]:
    """Keys (fp32: rotated with fp32 angles) and values of every layer, and the next token's logits."""
    cache = 8 * rows * length * shape.kv_heads * shape.head_dim * shape.layers
    return {"cache": cache, "logits": 8 * rows * shape.vocabulary, **retained}


def _copies(config: FineTuneConfig, shape: ModelShape, trained: Trained) -> list[int]:
    """Autocast's half-precision copies of the linear weights; kept to compute the gradients of their inputs."""
    if config.precision == "fp32":
        return []
    sizes = [] if config.quantised else [2 * outputs * inputs for outputs, inputs in shape.linears.values()]
    if config.gradient_checkpointing:
        sizes = sizes[: math.ceil(len(sizes) / max(shape.layers, 1))]
    return [*sizes, 2 * shape.vocabulary * shape.hidden, 2 * trained.adapter]


def _kept(config: FineTuneConfig, shape: ModelShape, batch: Batch, trained: Trained, device: Device) -> list[int]:
    """Bytes of every tensor that the forward pass keeps, apart from logits and weights.

    With gradient checkpointing that is each layer's input, and one layer at a time that is computed again.
    """
    first = trained.first_layer(shape)
    linears: list[dict[str, tuple[int, int]]] = [{} for _ in range(shape.layers)]
    for name, size in shape.linears.items():
        linears[shape.layer_of(name) or 0][name] = size
    layers = [_layer(config, shape, batch, trained, at, linears[at], device) for at in range(first, shape.layers)]
    outside = [4 * batch.tokens * shape.hidden] * 2
    if config.gradient_checkpointing and layers:
        return [*outside, *[4 * batch.tokens * shape.hidden] * shape.layers, *max(layers, key=sum)]
    return [*outside, *(size for layer in layers for size in layer)]


def _layer(
    config: FineTuneConfig,
    shape: ModelShape,
    batch: Batch,
    trained: Trained,
    number: int,
    linears: Mapping[str, tuple[int, int]],
    device: Device,
) -> list[int]:
    """Bytes of every tensor that one decoder layer keeps.

    - The input of each norm: 2 · 4 h T; its normalised form, where the norm's weight is trained, as much again.
    - Attention: queries, keys, values, output: b (2 q + 2 k) T; where there is a mask, keys and values are repeated to q,
      and the mask is kept as numbers, b · rows · length². The log-sum-exp: 4 T a head.
    - MLP: the gate's output, its activation and the up-projection: 3 b i T (b i T without a gate).
    - The inputs of trained linear layers: see `_inputs`; what an adapter keeps beside them: see `kept_numbers`.
    """
    b = 4 if config.precision == "fp32" else 2
    tokens = batch.tokens
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    width = q if batch.padded else k
    norms = sum(1 for name in trained.weights if "norm" in name and shape.layer_of(name) == number)
    kept = [4 * shape.hidden * tokens] * (2 + norms)
    kept += [b * size * tokens for size in (q, q, width, width)] + [4 * shape.heads * tokens]
    if batch.padded:
        kept.append(b * batch.rows * batch.length**2)
    kept += [b * shape.intermediate * tokens] * (3 if shape.gated else 1)
    for name, (outputs, inputs) in linears.items():
        if name in trained.modules:
            kept += [b * numbers for numbers in kept_numbers(config, name, outputs, inputs, tokens)]
    adapted = trained.modules if keeps_inputs(config) else frozenset()
    touched = [name for name in linears if name in adapted or f"{name}.weight" in trained.weights]
    return kept + _inputs(config, {name: linears[name][1] for name in touched}, tokens, device)


def _inputs(config: FineTuneConfig, widths: Mapping[str, int], tokens: int, device: Device) -> list[int]:
    """Bytes of the inputs that trained linear layers of one decoder layer keep; widths by module.

    In fp32 modules with one input share it, and the attention's output is kept there already. Under autocast each module
    makes its own half-precision copy, but for what is in half precision already: the MLP's product, and the attention's
    output, which only PEFT casts up and down again. Dropout before an adapter gives each module its own input and a mask
    (numbers on a CPU, a byte each on a GPU).
    """
    b = 4 if config.precision == "fp32" else 2
    adapted = config.adapter != "none"
    if config.adapter == "lora" and config.lora_dropout > 0:
        mask = 4 if device == "cpu" else 1
        return [size * tokens * width for width in widths.values() for size in (mask, b)]
    kept: list[int] = []
    for group in _groups(widths):
        shared = b == 4 or group[0].endswith(MLP_OUTPUTS)
        if group[0].endswith(_OUT):
            kept += [] if b == 4 or not adapted else [2 * tokens * widths[name] for name in group]
        else:
            kept += [b * tokens * widths[name] for name in (group[:1] if shared else group)]
    return kept


def _groups(names: Iterable[str]) -> list[list[str]]:
    """Modules by what they read: the first norm's output, the attention's, the second norm's, the MLP's product."""
    found: dict[int, list[str]] = {}
    for name in names:
        kinds = (_OUT, _INTO_MLP, MLP_OUTPUTS)
        place = next((at for at, endings in enumerate(kinds) if name.endswith(endings)), len(kinds))
        found.setdefault(place, []).append(name)
    return list(found.values())
