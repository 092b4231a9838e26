"""`stockpot convert`: every key of a foreign file is accounted for once, and what is written is a sweep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeps import cli
from sweeps.convert.axolotl_keys import INSTRUCTION_TYPES, LEFT, RENAMED, SAME, SO_HERE
from sweeps.convert.base import Book, Foreign, leaves, said
from sweeps.convert.wandb_ranges import ranged
from sweeps.convert.write import write
from sweeps.load import LoadedSweep, load_file
from sweeps.starter.quote import quoted
from sweeps.yaml_source import read

AXOLOTL: dict[str, Any] = {
    "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "model_type": "LlamaForCausalLM",
    "load_in_8bit": False,
    "load_in_4bit": True,
    "datasets": [
        {
            "path": "rows.jsonl",
            "ds_type": "json",
            "type": {"field_instruction": "prompt", "field_output": "completion", "format": "{instruction}"},
        }
    ],
    "val_set_size": 0.1,
    "output_dir": "./out",
    "sequence_len": 256,
    "sample_packing": False,
    "adapter": "qlora",
    "lora_r": 32,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_linear": True,
    "lora_modules_to_save": ["embed_tokens", "lm_head"],
    "wandb_project": None,
    "gradient_accumulation_steps": 4,
    "micro_batch_size": 2,
    "num_epochs": 2,
    "optimizer": "adamw_bnb_8bit",
    "lr_scheduler": "cosine",
    "learning_rate": "2e-4",
    "bf16": "auto",
    "gradient_checkpointing": True,
    "warmup_steps": 5,
    "weight_decay": 0.0,
    "seed": 42,
    "special_tokens": {"pad_token": "<|end_of_text|>"},
    "loss_watchdog_threshold": 5.0,
    "never_heard_of": {"a": 1, "b": [1, 2]},
}
WANDB: dict[str, Any] = {
    "program": "train.py",
    "name": "my sweep",
    "method": "bayes",
    "metric": {"name": "eval/loss", "goal": "minimize", "target": 0.1},
    "parameters": {
        "lr": {"distribution": "log_uniform", "min": -9.0, "max": -5.0},
        "max_steps": {"value": 27},
        "batch_size": {"values": [2, 4], "probabilities": [0.3, 0.7]},
        "optimizer": {"values": ["adam", "sgd"]},
        "lora_r": {"min": 4, "max": 32},
        "lora_alpha": {"distribution": "normal", "mu": 1, "sigma": 2},
        "lr_scheduler_type": {"values": ["cosine", "polynomial"]},
        "model": {"parameters": {"lora_dropout": {"min": 0.0, "max": 0.1}}},
    },
    "early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 3, "strict": True},
    "run_cap": 24,
    "command": ["${env}", "python"],
}
FINE_TUNE = ("--base-model", "HuggingFaceTB/SmolLM2-135M-Instruct", "--data", "rows.jsonl")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [json.dumps({"prompt": f"question {number}", "completion": f"answer {number}"}) for number in range(120)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def converted(
    capsys: pytest.CaptureFixture[str], config: dict[str, Any], *options: str, sweep: dict[str, Any] | None = None
) -> tuple[dict[str, Any], LoadedSweep]:
    """The record that `--json` prints, and the sweep that was written."""
    Path("foreign.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    if sweep is not None:
        Path("axes.yml").write_text(yaml.safe_dump(sweep, sort_keys=False))
        options = (*options, "--sweep", "axes.yml")
    status = cli.main(["convert", "foreign.yml", "--json", "--force", *options])
    out = capsys.readouterr()
    assert status == 0, out.err
    return json.loads(out.out), load_file("sweep.yaml")


def refused(capsys: pytest.CaptureFixture[str], config: dict[str, Any], *options: str) -> str:
    """What is said; nothing is written."""
    Path("foreign.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    before = sorted(Path().iterdir())
    assert cli.main(["convert", "foreign.yml", *options]) == 2
    assert sorted(Path().iterdir()) == before
    return capsys.readouterr().err


def fates(record: dict[str, Any], file: str = "foreign.yml") -> dict[str, str]:
    """Leaf -> the list it stands in; a leaf in two lists fails."""
    found: dict[str, str] = {}
    for kind in ("carried", "changed", "not_carried"):
        for entry in record[kind]:
            if entry["file"] == file:
                assert entry["key"] not in found, entry
                found[entry["key"]] = kind
    return found


def test_every_leaf_of_an_axolotl_config_stands_in_one_list(capsys: pytest.CaptureFixture[str]) -> None:
    record, loaded = converted(capsys, AXOLOTL)
    assert fates(record).keys() == dict(leaves(AXOLOTL)).keys()
    assert "wandb_project" not in fates(record)
    config = loaded.pipeline
    assert config["learning_rate"] == 2e-4
    assert config["lora_target_modules"] == "all-linear"
    assert (config["lora_r"], config["lora_alpha"], config["adapter"]) == (32, 16, "lora")
    assert config["datasets"]["train"]["field_prompt"] == "prompt"
    assert loaded.spec.seeds.tune == (42,)
    assert {fates(record)[key] for key in ("adapter", "bf16", "val_set_size")} == {"changed"}
    assert (fates(record)["optimizer"], config["optimizer"]) == ("carried", "adamw_8bit")
    assert {fates(record)[key] for key in ("never_heard_of.a", "special_tokens.pad_token")} == {"not_carried"}
    assert (fates(record)["load_in_4bit"], config["load_in_4bit"]) == ("carried", True)


def test_warm_up_steps_become_the_share_that_they_are_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    _, loaded = converted(capsys, AXOLOTL)
    assert loaded.pipeline["warmup_ratio"] == pytest.approx(5 / loaded.total, abs=1e-6)
    record, loaded = converted(capsys, {**AXOLOTL, "max_steps": 50})
    assert loaded.pipeline["warmup_ratio"] == pytest.approx(0.1)
    assert fates(record)["num_epochs"] == "not_carried"
    record, loaded = converted(capsys, AXOLOTL, sweep={"num_epochs": [1, 2]})
    assert fates(record)["warmup_steps"] == "not_carried"


def test_an_axolotl_sweep_is_the_same_grid(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = {
        "_": [{"load_in_8bit": False, "lora_r": 8}, {"load_in_8bit": True, "lora_r": 64, "lora_alpha": 128}],
        "learning_rate": ["3e-4", 6e-4],
        "bf16": [True, False],
    }
    record, loaded = converted(capsys, {**AXOLOTL, "load_in_4bit": False}, sweep=sweep)
    tried = {
        tuple(loaded.resolve(loaded.space.replay(choices))[key] for key in ("lora_r", "lora_alpha", "learning_rate", "precision"))
        for choices in loaded.space.grid()
    }  # fmt: skip
    pairs, rates = [(8, 16), (64, 128)], [3e-4, 6e-4]
    assert tried == {(*pair, rate, bits) for pair in pairs for rate in rates for bits in ("bf16", "fp32")}
    assert fates(record, "axes.yml").keys() == dict(leaves(sweep)).keys()
    assert fates(record)["learning_rate"] == "carried"


def test_values_that_mean_the_same_here_are_tried_once(capsys: pytest.CaptureFixture[str]) -> None:
    record, loaded = converted(capsys, AXOLOTL, sweep={"adapter": ["lora", "qlora"], "lora_r": [8, 16]})
    assert loaded.space.size == 2
    assert fates(record, "axes.yml")["adapter"] == "changed"
    assert loaded.pipeline["adapter"] == "lora"


def test_what_axolotl_does_unasked_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    bare = {"base_model": "org/model", "datasets": [{"path": "rows.jsonl", "type": "completion", "field": "prompt"}],
            "learning_rate": 1e-4}  # fmt: skip
    record, loaded = converted(capsys, bare)
    config = loaded.pipeline
    assert (config["adapter"], config["sequence_len"], config["micro_batch_size"]) == ("none", 512, 1)
    assert (config["num_epochs"], config["precision"], config["warmup_ratio"]) == (1, "bf16", 0.03)
    assert config["datasets"]["train"]["type"] == "text"
    assert {line["ours"].partition(":")[0] for line in record["added"]} >= {"adapter", "sequence_len", "precision"}


@pytest.mark.parametrize("kind", INSTRUCTION_TYPES)
def test_types_of_instruction_rows_are_prompt_and_completion(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompt, completion = INSTRUCTION_TYPES[kind]
    row = {prompt: "a", completion: "b"}
    Path("rows.jsonl").write_text("".join(json.dumps({**row, prompt: f"{n}"}) + "\n" for n in range(40)))
    record, loaded = converted(capsys, {**AXOLOTL, "datasets": [{"path": "rows.jsonl", "type": f"{kind}:chat"}]})
    train = loaded.pipeline["datasets"]["train"]
    assert (train["field_prompt"], train["field_completion"]) == (prompt, completion)
    assert fates(record)["datasets[0].type"] == "changed"


def test_rows_of_an_unknown_type_are_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    _, loaded = converted(capsys, {**AXOLOTL, "datasets": [{"path": "rows.jsonl", "type": "of_my_own"}]})
    assert loaded.pipeline["datasets"]["train"]["type"] == "prompt_completion"
    said = refused(capsys, {**AXOLOTL, "datasets": [{"path": "org/data", "type": "of_my_own"}]}, "-o", "x.yaml")
    assert "--data org/data" in said


def test_rows_of_the_hub_are_not_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    Path("foreign.yml").write_text(
        yaml.safe_dump({**AXOLOTL, "datasets": [{"path": "org/data", "type": "alpaca"}], "warmup_steps": None})
    )
    assert cli.main(["convert", "foreign.yml"]) == 0
    assert "next: stockpot check sweep.yaml --data" in capsys.readouterr().out
    assert yaml.safe_load(Path("sweep.yaml").read_text())["pipeline"]["datasets"]["train"]["path"] == "org/data"


def test_a_text_corpus_is_streamed(capsys: pytest.CaptureFixture[str]) -> None:
    config = {**AXOLOTL, "datasets": None, "pretraining_dataset": [{"path": "rows.jsonl", "text_column": "completion"}]}
    record, loaded = converted(capsys, {**config, "max_steps": 20})
    train = loaded.pipeline["datasets"]["train"]
    assert (train["type"], train["field_text"], train["streaming"]) == ("text", "completion", True)
    assert fates(record)["pretraining_dataset[0].text_column"] == "carried"


def test_a_wandb_sweep_of_fine_tunes(capsys: pytest.CaptureFixture[str]) -> None:
    record, loaded = converted(capsys, WANDB, *FINE_TUNE)
    assert fates(record).keys() == dict(leaves(WANDB)).keys()
    axes = {axis.name: axis.domain for axis in loaded.space.axes}
    assert axes.keys() == {"learning_rate", "micro_batch_size", "lora_r", "lora_dropout"}
    assert (axes["learning_rate"].low, axes["learning_rate"].high) == pytest.approx(
        (math.exp(-9), math.exp(-5)), rel=1e-5
    )
    assert loaded.spec.method.type == "gp"
    assert loaded.trials == 24
    assert loaded.milestones == (3, 9, 27)
    assert fates(record)["early_terminate.strict"] == "not_carried"
    assert fates(record)["parameters.batch_size.probabilities"] == "not_carried"
    assert loaded.pipeline["lr_scheduler"] == "cosine"


def test_a_wandb_sweep_of_a_program_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text("class Mine:\n    pass\n")
    record, loaded = converted(capsys, WANDB, "--import-path", "mine:Mine", "--total", "81")
    assert fates(record).keys() == dict(leaves(WANDB)).keys()
    assert {axis.path for axis in loaded.space.axes} == {
        "kwargs.lr", "kwargs.batch_size", "kwargs.optimizer", "kwargs.lora_r", "kwargs.lr_scheduler_type",
        "kwargs.model.lora_dropout",
    }  # fmt: skip
    assert loaded.pipeline["kwargs"] == {"max_steps": 27}
    assert loaded.milestones == (3, 9, 27, 81)
    assert loaded.metrics[0].direction == "minimize"


@pytest.mark.parametrize(
    ("domain", "ours"),
    [
        ({"min": 1, "max": 8}, {"distribution": "int_uniform", "min": 1, "max": 8}),
        ({"min": 1, "max": 8.0}, {"distribution": "uniform", "min": 1, "max": 8.0}),
        ({"values": [1, 2]}, {"values": [1, 2]}),
        ({"value": 3}, {"value": 3}),
        ({"distribution": "q_uniform", "min": 0, "max": 8, "q": 2}, {"distribution": "q_uniform", "min": 0, "max": 8, "q": 2}),
        ({"distribution": "log_uniform", "min": 0, "max": 1}, {"distribution": "log_uniform_values", "min": 1.0, "max": 2.71828}),
        ({"distribution": "inv_log_uniform", "min": 0, "max": 1}, {"distribution": "log_uniform_values", "min": 0.367879, "max": 1.0}),
        ({"distribution": "inv_log_uniform_values", "min": 2, "max": 8}, {"distribution": "log_uniform_values", "min": 2, "max": 8}),
        ({"distribution": "normal", "mu": 0, "sigma": 1}, None),
        ({"distribution": "log_uniform", "min": 0, "max": 10_000}, None),
        ({"min": 1}, None),
        ({"distribution": "odd", "min": 1, "max": 2}, None),
    ],
)  # fmt: skip
def test_ranges_of_wandb(domain: dict[str, Any], ours: dict[str, Any] | None) -> None:
    found = ranged(domain)
    assert found.domain == ours
    assert ours is not None or found.why


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"rl": "dpo"}, (), "rl: dpo: convert does not translate preference tuning; `stockpot init dpo DATA`"),
        ({"datasets": None}, (), "names no datasets; --data"),
        ({"datasets": [{"path": "nowhere.jsonl", "type": "completion"}]}, (), "nowhere.jsonl"),
        ({"base_model": None}, ("--from", "axolotl"), "--base-model names one"),
        ({}, ("--sweep", "missing.yml"), "missing.yml: can't be read"),
        ({}, ("-o", "foreign.yml", "--force"), "is the file to be converted"),
        ({}, ("--data", "org/data"), "say what its rows are"),
        ({"pipeline": {"type": "sft"}}, (), "is a sweep file of Stockpot already"),
    ],
)
def test_what_is_no_sweep_is_refused(
    change: dict[str, Any], options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, {**AXOLOTL, **change}, *options)


def test_a_wandb_sweep_needs_a_model_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --base-model M and --data FILE" in refused(capsys, WANDB)
    assert "has neither base_model (Axolotl) nor parameters (W&B)" in refused(capsys, {"a": 1})


def test_a_file_that_is_there_stays(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sweep.yaml").write_text("mine")
    assert "--force overwrites it" in refused(capsys, AXOLOTL)
    assert Path("sweep.yaml").read_text() == "mine"


_ODD = [None, True, False, 0, 1, 7, -1, 0.5, 1e30, "auto", "x", "", [], ["a"], {"a": 1}, [{"a": None}]]
_KNOWN = sorted({*SAME, *RENAMED, *SO_HERE, *(key.replace("*", "x") for key in LEFT), "adapter", "bf16", "fp16",
                 "lora_target_modules", "lora_target_linear", "sample_packing", "warmup_steps", "batch_size", "seed",
                 "unknown", "gradient_checkpointing", "_"} - {"datasets"})  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.dictionaries(st.sampled_from(_KNOWN), st.sampled_from(_ODD), max_size=8),
    axes=st.dictionaries(st.sampled_from(_KNOWN), st.lists(st.sampled_from(_ODD), max_size=3), max_size=3),
)
def test_odd_values_are_accounted_for_or_refused(
    config: dict[str, Any], axes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {**AXOLOTL, **config}
    Path("foreign.yml").write_text(yaml.safe_dump(whole, sort_keys=False))
    Path("axes.yml").write_text(yaml.safe_dump(axes or {"lora_r": [8]}, sort_keys=False))
    status = cli.main(["convert", "foreign.yml", "--sweep", "axes.yml", "--json", "--force"])
    out = capsys.readouterr()
    assert status in (0, 2), out.err
    if status == 0:
        record = json.loads(out.out)
        assert fates(record).keys() == dict(leaves(said(whole))).keys()
        assert fates(record, "axes.yml").keys() == dict(leaves(said(axes or {"lora_r": [8]}))).keys()
        load_file("sweep.yaml")
    else:
        assert out.err.startswith("stockpot: ")


def test_a_key_entered_twice_is_a_fault() -> None:
    book = Book(Foreign("f", {"a": {"b": 1, "c": 2}}))
    book.carried("a.b")
    with pytest.raises(RuntimeError, match=r"a\.b is entered twice"):
        book.left("a", "no")
    assert [entry.kind for entry in book.close(lambda leaf, value: leaf)] == ["carried", "left"]


def test_booleans_are_read_as_the_tools_read_them() -> None:
    assert said(read(b"a: yes\nb: Off\nc: TRUE\nd: NULL\ne: yEs\nf: [no, 1]").data) == {
        "a": True, "b": False, "c": True, "d": None, "e": "yEs", "f": [False, 1],
    }  # fmt: skip


_PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12).filter(lambda text: "\0" not in text) | st.sampled_from(["1e-4", "no", "~", "a: b", "#c", "0x1f", "2024-01-01", "1_0", "=", "<<"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_.", min_size=1, max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text("abcxyz_.", min_size=1, max_size=6), _PLAIN_VALUES, min_size=1, max_size=4))
def test_what_is_written_reads_back(data: dict[str, Any]) -> None:
    document = read(write(data, ["a head: with #", ""]).encode("utf-8", "surrogatepass"))
    assert not document.problems
    assert document.data == data
    assert all(quoted(key) for key in data)
