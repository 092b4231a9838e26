"""The memory estimate: arithmetic by hand for a tiny model, and what must move it which way."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipelines.config import SFTConfig
from pipelines.finetune.memory import (
    CONTEXT_BYTES,
    HEAP_SHARE,
    PROCESS_BYTES,
    TOKENIZER_BYTES,
    Batch,
    MemoryEstimate,
    Workload,
    estimate,
)
from pipelines.finetune.shape import ModelShape
from sweeps.footprint import checkpoint_bytes


def shape(layers: int = 2, *, h: int = 8, i: int = 16, v: int = 32, heads: int = 2, kv: int = 1) -> ModelShape:
    """A Llama with tied embeddings."""
    d = h // heads
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, h), "model.norm.weight": (h,)}
    for at in range(layers):
        parts = {
            "self_attn.q_proj": (heads * d, h),
            "self_attn.k_proj": (kv * d, h),
            "self_attn.v_proj": (kv * d, h),
            "self_attn.o_proj": (h, heads * d),
            "mlp.gate_proj": (i, h),
            "mlp.up_proj": (i, h),
            "mlp.down_proj": (h, i),
        }
        tensors |= {f"model.layers.{at}.{name}.weight": size for name, size in parts.items()}
        tensors |= {
            f"model.layers.{at}.{name}.weight": (h,) for name in ("input_layernorm", "post_attention_layernorm")
        }
    return ModelShape(tensors, h, layers, heads, kv, d, i, v, gated=True, tied=True)


def config(**changes: Any) -> SFTConfig:
    data = {"train": {"path": "x.jsonl", "type": "text"}}
    return SFTConfig.model_validate({"base_model": "m", "datasets": data, "max_steps": 4, "lora_r": 2, **changes})


WORK = Workload(Batch(rows=3, length=5, trained=6, padded=True))
STATES = PROCESS_BYTES + TOKENIZER_BYTES * 32


def made(device: str = "cpu", work: Workload = WORK, model: ModelShape | None = None, **changes: Any) -> MemoryEstimate:
    return estimate(config(**changes), model or shape(), work, device)  # type: ignore[arg-type]


def test_parameters_by_hand() -> None:
    # embedding 32 x 8; a layer 64 + 32 + 32 + 64 + 3 x 128 and two norms of 8; the last norm 8
    assert shape().parameters == 256 + 2 * (64 + 32 + 32 + 64 + 3 * 128 + 16) + 8 == 1448
    # r (inputs + outputs): q 32, k 24, v 24, o 32, gate 48, up 48, down 48
    assert made().trainable == 2 * 256
    assert made(use_dora=True).trainable == 2 * (256 + 8 + 4 + 4 + 8 + 16 + 16 + 8)
    assert made(adapter="none").trainable == 1448
    assert made(lora_target_modules=["q_proj", "v_proj"]).trainable == 2 * (32 + 24)
    assert made(adapter="none", unfrozen_parameters=[r"model\.layers\.1\.mlp"]).trainable == 3 * 128
    assert made(adapter="none", unfrozen_parameters=["lm_head.weight"]).trainable == 256


def test_lora_in_fp32_by_hand() -> None:
    found = made()
    a_layer = (
        2 * (4 * 8 * 15)  # the norms' inputs
        + 4 * (4 * 8 * 15)  # queries, repeated keys and values, output
        + 4 * 2 * 15  # the log-sum-exp of two heads
        + 4 * 3 * 5**2  # the mask
        + 3 * (4 * 16 * 15)  # gate, its activation, up
        + 7 * (4 * 2 * 15)  # the seven A products
        + 2 * (4 * 8 * 15)  # what q, k, v and gate, up read
        + 4 * 16 * 15  # what down reads
    )
    kept = 2 * a_layer + 2 * (4 * 8 * 15)
    assert found.moment == "backward"
    assert found.items == {
        "weights": 4 * 1448,
        "adapter": 4 * 512,
        "optimizer": 8 * 512,
        "process": STATES,
        "activations": kept + 4 * 15 * (3 * 16 + 2 * 8),
        "heap": int(HEAP_SHARE["lora"] * kept),
        "logits": 12 * 6 * 32,
    }
    assert found.total == sum(found.items.values())


def test_full_in_bf16_by_hand() -> None:
    found = made(adapter="none", precision="bf16")
    a_layer = (
        2 * (4 * 8 * 15)  # the norms' inputs stay fp32
        + 2 * (4 * 8 * 15)  # and their normalised forms, for the trained norm weights
        + 4 * (2 * 8 * 15)
        + 4 * 2 * 15
        + 2 * 3 * 5**2
        + 3 * (2 * 16 * 15)
        + 3 * (2 * 8 * 15)  # a copy of its input for each of q, k, v; o's is the attention's output
        + 2 * (2 * 8 * 15)  # gate, up
        + 2 * 16 * 15  # down
    )
    kept = 2 * a_layer + 2 * (4 * 8 * 15)
    linear = 2 * (64 + 32 + 32 + 64 + 3 * 128) + 256
    gradients = 4 * 1448
    states = STATES + 4 * 1448 + 8 * 1448
    assert found.moments["gradients"] == states + gradients + 4 * 256 + kept + 2 * linear
    assert found.moments["update"] == states + gradients + 8 * 256 + kept + 2 * linear
    assert found.moments["backward"] == (
        states + kept + 2 * 15 * (3 * 16 + 2 * 8) + int(HEAP_SHARE["none"] * kept) + 2 * linear + 12 * 6 * 32 + 4 * 256
    )


def test_a_gpu_has_a_context_and_no_heap() -> None:
    found = made("gpu")
    assert found.items["process"] == CONTEXT_BYTES
    assert "heap" not in found.items
    full = made("gpu", adapter="none")
    assert full.moments["update"] == CONTEXT_BYTES + (4 + 8 + 4 + 4) * 1448


@pytest.mark.parametrize(
    ("optimizer", "lora", "full"),
    [
        ("nadamw", 8 * 512, 8 * 1448),
        ("schedule_free_adamw", 8 * 512, 8 * 1448),
        ("prodigy", 16 * 512, 16 * 1448),
        # rows and columns: of each module's two factors 2 + inputs and outputs + 2; of a matrix its rows and its columns
        ("adafactor", 4 * (256 + 14 * 4), 4 * (32 + 8 + 8 + 2 * (16 + 12 + 12 + 16 + 24 + 24 + 24 + 16))),
        ("adamw_8bit", 8 * 512, 8 * 1448),  # every weight is small
    ],
)
def test_what_optimizers_keep_by_hand(optimizer: str, lora: int, full: int) -> None:
    assert made(optimizer=optimizer).items["optimizer"] == lora
    assert made(optimizer=optimizer, adapter="none").items["optimizer"] == full


def test_eight_bits_of_large_weights_and_their_scales() -> None:
    counted = 12 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 1024)
    found = made("gpu", LONG, BIG, adapter="none", optimizer="adamw_8bit")
    assert found.items["optimizer"] == (2 + 8 / 256) * counted + 8 * (8000 * 256 + 25 * 256)
    steps = {name: made("gpu", LONG, BIG, adapter="none", optimizer=name).moments for name in ("adamw", "nadamw")}
    assert steps["nadamw"]["update"] - steps["adamw"]["update"] == 4 * found.trainable


def test_schedule_free_puts_the_weights_it_trains_with_aside() -> None:
    work = Workload(WORK.train, evaluated=Batch(40, 5, 150, False), generated=(40, 30))
    one, other = (made("gpu", work, optimizer=name).moments for name in ("schedule_free_adamw", "adamw"))
    assert {moment: one[moment] - other[moment] for moment in one} == {
        "backward": 0,
        "gradients": 0,
        "update": 0,
        "evaluation": 4 * 512,
        "generation": 4 * 512,
    }
    assert checkpoint_bytes(config(optimizer="schedule_free_adamw"), shape()) == (4 * 512, (4 + 12) * 512)


def test_evaluation_and_generation_by_hand() -> None:
    work = Workload(
        WORK.train, evaluated=Batch(40, 5, 150, False), generated=(40, 30), rows=7, tokens=100, characters=9
    )
    found = made("gpu", work)
    states = CONTEXT_BYTES + 4 * 1448 + 12 * 512
    assert found.moments["evaluation"] == states + 8 * 150 * 32 + 4 * 200 * (3 * 16 + 4 * 8)
    assert found.moments["generation"] == states + 8 * 40 * 30 * 4 * 2 + 8 * 40 * 32
    assert made("cpu", work).items["data"] == 48 * 100 + 1000 * 7 + 9


BIG = shape(12, h=256, i=1024, v=8000, heads=8, kv=4)
LONG = Workload(Batch(8, 512, 4096, True))


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"lora_r": 4}, {"lora_r": 64}),
        ({"lora_target_modules": ["q_proj"]}, {}),
        ({}, {"lora_dropout": 0.1}),
        ({}, {"use_dora": True}),
        ({"precision": "bf16"}, {}),
        ({"gradient_checkpointing": True}, {}),
        ({"adapter": "none", "unfrozen_parameters": [r"model\.layers\.11\."]}, {"adapter": "none"}),
        ({"adapter": "none"}, {"adapter": "none", "gradient_accumulation_steps": 2}),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_what_needs_more(less: dict[str, Any], more: dict[str, Any], device: str) -> None:
    assert made(device, LONG, BIG, **less).total < made(device, LONG, BIG, **more).total


def test_full_against_lora() -> None:
    """Optimizer and gradients of all weights; but where activations rule, adapters keep more, and their holes."""
    short = Workload(Batch(1, 8, 8, False))
    for device in ("cpu", "gpu"):
        assert made(device, short, BIG).total < made(device, short, BIG, adapter="none").total
    assert made("cpu", LONG, BIG).total > made("cpu", LONG, BIG, adapter="none").total


def test_checkpointing_keeps_a_layer_at_a_time() -> None:
    plain, less = (made("gpu", LONG, BIG, gradient_checkpointing=on).items["activations"] for on in (False, True))
    assert less < plain / 4
    assert less > plain / BIG.layers


def test_nothing_is_kept_below_the_lowest_trained_layer() -> None:
    def kept(layer: int) -> int:
        patterns = [rf"model\.layers\.{layer}\.mlp"]
        return made("gpu", LONG, BIG, adapter="none", unfrozen_parameters=patterns).items["activations"]

    assert kept(11) < kept(6) < kept(0)


def test_blocks_that_are_mapped_leave_no_holes() -> None:
    wide = Workload(Batch(64, 1024, 64, False))
    model = shape(2, h=256, i=1024, v=100, heads=8, kv=8)
    small = made("cpu", wide, model, lora_r=1).items.get("heap", 0)
    # 65,536 tokens: every tensor of width 256 and more is mapped; A's products and log-sum-exps are not
    assert small == int(HEAP_SHARE["lora"] * 2 * (7 * 4 * 65536 + 4 * 8 * 65536))


def test_without_data_every_row_is_as_long_as_it_may_be() -> None:
    work = Workload.largest(config(micro_batch_size=4, sequence_len=64, eval_batch_size=8))
    assert work.train == Batch(4, 64, 256, True)
    assert work.evaluated == Batch(8, 64, 512, True)
    assert math.isclose(made(work=work).total, estimate(config(micro_batch_size=4, sequence_len=64), shape()).total)
