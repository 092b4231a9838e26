"""Several workers a trial in the sweep file: what it says, what is refused, and what counts by them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_files import CUSTOM, SFT, load, problems

from cluster.base import Node
from cluster.machine import Machine
from pipelines.config import DistillConfig, SFTConfig
from pipelines.finetune.memory import estimate
from pipelines.finetune.memory_workers import over_workers
from pipelines.finetune.shape import ModelShape
from sweeps.commands.cluster import machines_of
from sweeps.dryrun import dry_run
from sweeps.spec import Resources


@pytest.mark.parametrize(
    ("written", "together", "each"),
    [
        ({}, 1, "auto"),
        ({"gpus": 0}, 1, 0.0),
        ({"gpus": 0.5}, 1, 0.5),
        ({"gpus": 1}, 1, 1.0),
        ({"gpus": 4}, 4, 1.0),
        ({"gpus": 4, "workers": 4}, 4, 1.0),
        ({"workers": 2}, 2, "auto"),
        ({"workers": 2, "gpus": 0, "cpus": 1}, 2, 0.0),
        ({"workers": 1, "gpus": 0.25}, 1, 0.25),
    ],
)
def test_who_trains_a_trial(written, together, each):
    resources = Resources(**written)
    assert (resources.together, resources.gpus_each) == (together, each)


@pytest.mark.parametrize(
    ("resources", "place", "said"),
    [
        ("{gpus: 1.5}", "resources.gpus", "neither a share of one GPU nor a whole number"),
        ("{workers: 2, gpus: 1}", "resources.gpus", "which need a GPU each; write gpus: 2, or 0"),
        ("{workers: 2, gpus: 0.5}", "resources.gpus", "which need a GPU each; write gpus: 2, or 0"),
        ("{workers: 1, gpus: 2}", "resources.workers", "each of which needs a worker; delete the line"),
        ("{workers: 0}", "resources.workers", "at least 1"),
    ],
)
def test_what_workers_can_not_have(tmp_path: Path, resources, place, said):
    assert said in problems(tmp_path, SFT + f"resources: {resources}\n")[place]


def test_only_fine_tunes_are_shared(tmp_path: Path):
    for written, key in (("{gpus: 2}", "gpus"), ("{workers: 2}", "workers")):
        found = problems(tmp_path, CUSTOM + f"resources: {written}\n")
        assert "2 processes for one trial are for fine-tunes, but this is custom" in found[f"resources.{key}"]


@pytest.mark.parametrize(
    ("line", "place", "said"),
    [
        ("precision: fp16\n  parallel: fsdp", "pipeline.precision", "write precision: bf16"),
        ("optimizer: adafactor\n  parallel: fsdp", "pipeline.optimizer", "take adamw or nadamw"),
        ("optimizer: schedule_free_adamw\n  parallel: fsdp", "pipeline.optimizer", "take adamw or nadamw"),
        ("optimizer: prodigy\n  parallel: fsdp", "pipeline.optimizer", "take adamw or nadamw"),
        ("adapter: vera\n  parallel: fsdp", "pipeline.parallel", "fsdp trains LoRA or all weights, not vera"),
        ("load_in_4bit: true\n  parallel: fsdp", "pipeline.parallel", "must be plain ones; write parallel: ddp"),
        ("parallel: deepspeed", "pipeline.parallel", "ddp"),
    ],
)
def test_what_can_not_be_spread(tmp_path: Path, line, place, said):
    assert said in problems(tmp_path, SFT.replace("max_steps: 27", f"max_steps: 27\n  {line}"))[place]


@pytest.mark.parametrize("kind", ["dpo", "distill", "retrain_pruned"])
def test_only_supervised_fine_tunes_are_spread(tmp_path: Path, kind):
    rows = SFT.replace("type: prompt_completion", "type: preference") if kind == "dpo" else SFT
    more = {"distill": "\n  teacher: HuggingFaceTB/SmolLM2-135M-Instruct"}.get(kind, "")
    text = rows.replace("type: sft", f"type: {kind}\n  parallel: fsdp{more}") + "resources: {workers: 2, gpus: 0}\n"
    assert (
        f"fsdp is for type: sft, and this is {kind}; write parallel: ddp"
        in problems(tmp_path, text)["pipeline.parallel"]
    )
    assert load(tmp_path, text.replace("fsdp", "ddp")).spec.resources.together == 2


def test_one_worker_has_nothing_to_spread(tmp_path: Path):
    spread = SFT.replace("max_steps: 27", "max_steps: 27\n  parallel: fsdp")
    assert any("pipeline.parallel has no effect" in text for text in load(tmp_path, spread).warnings)
    assert not any("parallel" in text for text in load(tmp_path, spread + "resources: {gpus: 2}\n").warnings)
    swept = SFT + "parameters: {parallel: [ddp, fsdp]}\n"
    assert "so trials would be equal" in problems(tmp_path, swept)["parameters.parallel"]


def test_an_epoch_has_fewer_steps_with_more_workers(tmp_path: Path):
    text = SFT.replace("max_steps: 27", "num_epochs: 2\n  gradient_accumulation_steps: 2")
    text = text.replace("    select: {fraction: 0.1}\n", "")
    text = text.replace("{fraction: 0.1}", "{path: data/tune.jsonl, type: prompt_completion}")
    totals = {workers: load(tmp_path, text + f"resources: {{workers: {workers}}}\n").total for workers in (1, 2, 3)}
    assert totals == {1: 50, 2: 26, 3: 18}  # of 100 rows: 25, 13 and 9 steps an epoch


def test_memory_of_a_worker(tmp_path: Path):
    config = SFTConfig(base_model="m", datasets={"train": {"path": "t", "type": "text"}}, max_steps=1, adapter="none")
    shape = tiny_shape(tmp_path)
    alone, ddp = estimate(config, shape), estimate(config, shape, workers=4)
    fsdp = estimate(config.model_copy(update={"parallel": "fsdp"}), shape, workers=4)
    assert ddp.moments["update"] == alone.moments["update"] + 4 * alone.trainable
    assert ddp.moments["evaluation"] == alone.moments["evaluation"]
    states = 4 * (4 * shape.parameters)  # weights, gradients, two moments
    assert alone.moments["update"] - fsdp.moments["update"] < 0.75 * states
    assert fsdp.moments["update"] < ddp.moments["update"]
    spread, numbers = config.model_copy(update={"parallel": "fsdp"}), shape.parameters
    for device, whole in (("cpu", 8 * numbers), ("gpu", 4 * numbers)):  # a checkpoint gathers both moments of a weight
        own, added = over_workers(spread, shape, numbers, 4, {"optimizer": 8 * numbers}, {}, device)
        assert (own["optimizer"], added["evaluation"]["gathered"]) == (2 * numbers, whole)


def test_memory_of_a_worker_that_distills(tmp_path: Path):
    """The buckets hold the gradients of what is trained beside the student too."""
    shape = tiny_shape(tmp_path)
    hidden = {"type": "mi_alpha", "layer_map": "last"}
    data = {"train": {"path": "t", "type": "text"}}
    config = DistillConfig(base_model="m", teacher="m", datasets=data, max_steps=1, hidden=hidden)
    alone, ddp = (estimate(config, shape, teachers=[shape], workers=workers) for workers in (1, 2))
    trained = alone.trainable + shape.layers * shape.hidden**2
    assert ddp.moments["teacher"] - alone.moments["teacher"] == 4 * trained
    assert ddp.moments["update"] - alone.moments["update"] == 4 * trained


def tiny_shape(folder: Path) -> ModelShape:
    from tiny import save_model

    from pipelines.finetune.shape import read_shape

    return read_shape(str(save_model(folder / "model")))


def test_as_many_trials_fit_as_have_room_for_all_their_workers(tmp_path: Path):
    tiny_shape(tmp_path)
    text = SFT.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tmp_path / "model"))
    machine = Machine(8.0, 8 * 2**30, 8 * 2**30)
    found = {
        workers: dry_run(
            load(tmp_path, text + f"resources: {{workers: {workers}, cpus: 1, gpus: 0}}\n"), [(Node(8), machine)]
        )["memory"]
        for workers in (1, 4)
    }
    assert [found[workers]["at_once"] for workers in (1, 4)] == [8, 2]
    assert found[4]["workers"] == 4
    assert found[4]["fit"] == found[1]["fit"] // 4 or found[4]["fit"] + 1 == found[1]["fit"] // 4


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "expected"),
    [
        ("{gpus: 4}", None, None, (16, 4, 8)),
        ("{gpus: 4, cpus: 6}", None, None, (24, 4, 8)),
        ("{gpus: 8, cpus: 4}", 16, 4, (16, 4, 16)),
        ("{gpus: 2, cpus: 4}", 16, 4, (16, 4, 4)),
        ("{workers: 2, gpus: 0, cpus: 4}", None, None, (8, 0, 8)),
    ],
)
def test_machines_for_trials_of_several_workers(tmp_path: Path, resources, cpus, gpus, expected):
    loaded = load(
        tmp_path,
        SFT + f"resources: {resources}\nmax_concurrent_trials: 8\nparameters: {{lora_r: [1, 2, 3, 4, 5, 6, 7, 8]}}\n",
    )
    assert machines_of(loaded, cpus, gpus, None) == expected
