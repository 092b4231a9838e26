"""Adapters as one axis of a sweep file: what sweeps together, what has no effect where, what is refused at the door."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from sweep_files import SFT, load, problems
from test_dryrun import machine, sweep
from test_shape import folder as model_folder

from pipelines.config import SFTConfig
from pipelines.finetune.adapter_sizes import factors
from pipelines.finetune.config import ADAPTER_KEYS, QUANTISED_ADAPTERS
from sweeps.dryrun import dry_run
from sweeps.trial_words import ADAPTER_NAMES, words

ADAPTERS = get_args(SFTConfig.model_fields["adapter"].annotation)


def swept(tmp_path: Path, parameters: str) -> dict[str, str]:
    return problems(
        tmp_path, SFT + "budget: {trials: 4}\nparameters:\n" + "".join(f"  {line}\n" for line in parameters.split("\n"))
    )


def test_the_tables_name_the_adapters_there_are() -> None:
    named = {adapter for adapters in ADAPTER_KEYS.values() for adapter in adapters} | set(QUANTISED_ADAPTERS)
    assert named | {"none"} == set(ADAPTERS) == set(ADAPTER_NAMES)
    assert set(ADAPTER_KEYS) <= set(SFTConfig.model_fields)


def test_kinds_of_one_rank_sweep_without_branches(tmp_path: Path) -> None:
    text = SFT + "method: grid\nparameters: {adapter: [lora, lokr, loha], lora_r: [4, 8], lora_alpha: [8, 16]}\n"
    assert load(tmp_path, text).space.size == 12


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("adapter: [lora, ia3]\nlora_r: [8, 16]", "where adapter is ia3, so trials would be equal; write adapter: {choose: {lora: {lora_r: [...]}, ia3: {}}}"),
        ("adapter: [loha, vera]\nlora_alpha: [8, 16]", "write adapter: {choose: {loha: {lora_alpha: [...]}, vera: {}}}"),
        ("adapter: [vera, lokr]\nlora_dropout: [0, 0.1]", "write adapter: {choose: {vera: {lora_dropout: [...]}, lokr: {}}}"),
        ("adapter: [prompt_tuning, lora]\nnum_virtual_tokens: [5, 10]", "{choose: {prompt_tuning: {num_virtual_tokens: [...]}, lora: {}}}"),
        ("use_dora: [true, false]\npeft_init_lora_weights: [default, pissa]", "pissa with use_dora is not supported"),
        ("load_in_4bit: [true]\nload_in_8bit: [true]", "load_in_8bit and load_in_4bit are both true; delete one"),
        ("load_in_4bit: [true]\nadapter: [lora, lokr]", "adapter lokr adds to whole weights, which load_in_4bit has not; write one of lora, vera"),
        ("load_in_8bit: [true]\nadapter: [none]", "adapter none trains all weights, which load_in_8bit has not"),
        ("load_in_8bit: [true]\npeft_init_lora_weights: [pissa]", "pissa reads whole weights, not those of load_in_8bit"),
        ("adapter: [prompt_tuning]\nsample_packing: [true]", "prompt_tuning puts its tokens before a row"),
        ("adapter: [qlora]", "Axolotl's qlora is 'lora' with load_in_4bit: true here"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said_at_the_door(tmp_path: Path, written: str, said: str) -> None:
    found = swept(tmp_path, written)
    assert any(said in message for message in found.values()), found


def test_a_pruned_model_keeps_its_zeros_under_plain_lora_alone(tmp_path: Path) -> None:
    text = SFT.replace("type: sft", "type: retrain_pruned")
    for line, said in (
        ("adapter: lokr", "'lokr' is unknown"),
        ("adapter: lora\n  peft_init_lora_weights: pissa", "the adapter's product is masked"),
        ("adapter: lora\n  load_in_8bit: true", "a mask is of whole weights"),
    ):
        found = problems(tmp_path, text.replace("type: retrain_pruned", f"type: retrain_pruned\n  {line}"))
        assert any(said in message for message in found.values()), found


def test_the_dry_run_counts_what_each_adapter_trains(tmp_path: Path) -> None:
    found = dry_run(sweep(tmp_path, "parameters:\n  adapter: [lora, vera, ia3, prompt_tuning]\n"), machine())["memory"]
    counts = {
        name: dry_run(sweep(tmp_path, f"parameters:\n  adapter: [{name}]\n"), machine())["memory"]["trainable"]
        for name in ("lora", "vera", "ia3", "prompt_tuning")
    }
    assert all(count["least"] == count["most"] for count in counts.values())
    assert found["trainable"] == {
        "least": min(count["least"] for count in counts.values()),
        "most": max(count["most"] for count in counts.values()),
    }


def test_quantised_weights_take_less_memory(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    sizes = []
    for line in ("precision: fp32", "load_in_8bit: true", "load_in_4bit: true"):
        text = SFT.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(model)).replace(
            "type: sft", f"type: sft\n  {line}"
        )
        largest = dry_run(load(tmp_path, text), machine())["memory"]["largest"]
        sizes.append(largest["items"]["weights"])
        assert ("-bit weights" in words(largest["config"])) == line.endswith("true")
    assert sizes[0] > sizes[1] > sizes[2]


def test_factors_are_the_nearest() -> None:
    assert [factors(size) for size in (1, 12, 64, 97, 128, 576, 1536)] == [
        (1, 1), (3, 4), (8, 8), (1, 97), (8, 16), (24, 24), (32, 48),
    ]  # fmt: skip
