"""What a sweep needs: memory against machines, disk of what `keep` holds, what splits can show."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from sweep_files import SFT, folder_with_data, load
from test_shape import folder as model_folder

from cluster.base import Node
from cluster.machine import Machine
from evaluators.statistics import smallest_difference, smallest_share_difference
from pipelines.config import SFTConfig
from pipelines.finetune.shape import read_shape
from pipelines.finetune.workload import RowSize, count_tokens, workload
from pipelines.splits import load_splits
from sweeps.doubles import doubles
from sweeps.dryrun import RAY_BYTES, dry_run
from sweeps.footprint import checkpoint_bytes, footprint
from sweeps.known_rows import first_rows
from sweeps.splitsizes import smallest

GB = 10**9


def sweep(place: Path, more: str = "", *, model: bool = True) -> Any:
    text = SFT + more
    if model:
        text = text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(model_folder(place / "model")))
    return load(place, text)


def machine(free: float = 20 * GB, cpus: float = 8, gpus: tuple[int, ...] = ()) -> tuple[tuple[Node, Machine], ...]:
    return ((Node(cpus, float(len(gpus))), Machine(cpus, 32 * GB, int(free), gpus)),)


def test_the_largest_and_the_smallest_configuration_are_told(tmp_path: Path) -> None:
    loaded = sweep(
        tmp_path,
        "parameters:\n  micro_batch_size: [2, 8, 4]\n  learning_rate: [1.0e-4, 1.0e-3]\n  lora_r: {min: 4, max: 64}\n"
        "budget: {trials: 4}\n",
    )
    found = dry_run(loaded, machine())["memory"]
    assert found["largest"]["parameters"] == {"micro_batch_size": 8, "lora_r": 64}
    assert found["smallest"]["parameters"] == {"micro_batch_size": 2, "lora_r": 4}
    assert found["largest"]["total"] == sum(found["largest"]["items"].values()) > found["smallest"]["total"]


def test_arms_are_compared_at_their_own_largest(tmp_path: Path) -> None:
    space = "parameters:\n  adapter: {choose: {lora: {lora_r: [2, 400]}, none: {}}}\n"
    found = dry_run(sweep(tmp_path, space), machine())["memory"]
    text = SFT.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tmp_path / "model"))
    alone = [
        dry_run(load(tmp_path, text, sets), machine())["memory"]["largest"]["total"]
        for sets in (("pipeline.adapter=none",), ("pipeline.lora_r=2",), ("pipeline.lora_r=400",))
    ]
    assert found["largest"]["total"] == max(alone)
    assert found["smallest"]["total"] == min(alone)


@pytest.mark.parametrize(
    ("free", "fit", "warned"), [(20 * GB, True, False), (RAY_BYTES + 1.2 * GB, True, True), (GB, False, True)]
)
def test_what_does_not_fit_is_a_warning_with_numbers_and_the_mend(
    tmp_path: Path, free: float, fit: bool, warned: bool
) -> None:
    found = dry_run(sweep(tmp_path, "max_concurrent_trials: 4\n"), machine(free))
    assert (found["memory"]["fit"] > 0) is fit
    assert found["memory"]["at_once"] == 4
    assert bool(found["warnings"]) is warned
    if warned and fit:
        assert f"write max_concurrent_trials: {found['memory']['fit']}" in found["warnings"][0]
    elif warned:
        assert "can't be expected to fit" in found["warnings"][0]
        assert "1.0 GB free of 32.0 GB" in found["warnings"][0]


def test_the_mend_is_the_largest_micro_batch_that_fits(tmp_path: Path) -> None:
    loaded = sweep(tmp_path, "max_concurrent_trials: 1\n")
    big = load(tmp_path, SFT.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tmp_path / "model")), (
        "pipeline.micro_batch_size=4096", "max_concurrent_trials=1", "pipeline.sequence_len=512",
    ))  # fmt: skip
    rows = "".join(json.dumps({"prompt": "one " * 400, "completion": f" {i}" * 200}) + "\n" for i in range(40))
    (tmp_path / "data" / "train.jsonl").write_text(rows)
    needs = dry_run(big, machine(900 * GB))["memory"]["largest"]["total"]
    free = RAY_BYTES + 0.7 * needs
    warning = dry_run(big, machine(free))["warnings"][0]
    assert "micro_batch_size: 2048, gradient_accumulation_steps: 2 needs about" in warning
    assert "sequence_len: 256 needs about" in warning
    assert not dry_run(loaded, machine(free))["warnings"]


def test_trials_on_a_gpu_are_held_against_its_memory(tmp_path: Path) -> None:
    loaded = sweep(tmp_path, "resources: {gpus: 0.5}\n")
    found = dry_run(loaded, machine(gpus=(80 * GB, 80 * GB)))
    assert (found["memory"]["device"], found["memory"]["fit"], found["memory"]["at_once"]) == ("gpu", 4, 4)
    small = dry_run(loaded, machine(gpus=(GB // 4, GB // 4)))
    assert small["memory"]["fit"] == 0
    assert "the GPUs of this machine have 250 MB each" in small["warnings"][0]


def test_a_model_that_is_not_here_is_unknown_not_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    found = dry_run(sweep(tmp_path, model=False), machine())
    assert found["memory"]["largest"] is None
    assert found["memory"]["fit"] is None
    assert "not on this machine; fetch it once" in found["memory"]["reason"]
    assert found["disk"] is None


def test_a_cluster_that_can_never_run_a_trial_says_so(tmp_path: Path) -> None:
    found = dry_run(sweep(tmp_path, "resources: {cpus: 64}\n"), machine(), here=False)
    assert "resources.cpus: 64 is more than any node has" in found["warnings"][0]


def test_a_pipeline_of_ones_own_has_no_estimate(tmp_path: Path) -> None:
    text = 'name: d\npipeline: {type: custom, import_path: "json:P", total: 2, metrics: {x: minimize}}\nmetric: x\n'
    found = dry_run(load(tmp_path, text), machine())
    assert found == {"memory": None, "disk": None, "splits": None, "warnings": []}


def test_disk_by_hand(tmp_path: Path) -> None:
    def need(more: str) -> dict[str, Any]:
        return footprint(load(tmp_path, SFT + more), checkpoint=100, weights=30, slots=2)

    space = "parameters: {learning_rate: {min: 1.0e-5, max: 1.0e-3}}\nbudget: {trials: 12}\n"
    plain = need(space)
    assert (plain["checkpoints"], plain["spare"], plain["held"], plain["writing"]) == (1, 0, 100, 400)
    assert need(space + "checkpoint_seconds: null\n")["writing"] == 200
    kept = need(space + "keep: {best: 5}\nsoup: {top: 3}\n")
    assert (kept["checkpoints"], kept["spare"], kept["held"]) == (3, 2, 500)
    assert (kept["soup"], kept["total"]) == (2 * 3 * 30, 500 + 400 + 180)
    halving = need(space + "early_terminate: {type: asha, min: 3, eta: 3}\nseeds: {tune: [0, 1], test: [7]}\n")
    assert (halving["checkpoints"], halving["spare"]) == (24, 8)
    assert (halving["held"], halving["final"]) == (3200, 200)
    open_end = need(space.replace("trials: 12", "hours: 1") + "early_terminate: {type: asha, min: 3, eta: 3}\n")
    assert (open_end["checkpoints"], open_end["total"]) == (None, None)


def test_a_sparse_soup_writes_whole_models(tmp_path: Path) -> None:
    soup = "soup: {method: sparse, sparsity: 0.5, phases: 2, retrain: {seeds: [0, 1, 2]}}\n"
    loaded = load(tmp_path, SFT + "parameters: {lora_r: [2, 4]}\n" + soup)
    need = footprint(loaded, checkpoint=100, weights=30, slots=1, model=1000)
    assert need["soup"] == 3 * (100 + 1000) + (2 + 2) * 1000


def test_disk_gb_limits_what_is_kept_only_while_there_is_room(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        SFT + "parameters: {lora_r: [2, 4, 8, 16]}\nkeep: {best: 4, disk_gb: 2}\nsoup: {top: 2}\nbudget: {trials: 4}\n",
    )
    assert footprint(loaded, checkpoint=GB // 2, weights=1, slots=1)["held"] == 2 * GB
    assert footprint(loaded, checkpoint=3 * GB // 2, weights=1, slots=1)["held"] == 3 * GB


def test_a_checkpoint_s_size(tmp_path: Path) -> None:
    shape = read_shape(str(model_folder(tmp_path / "m")))
    data = {"train": {"path": "x", "type": "text"}}

    def of(**changes: Any) -> tuple[int, int]:
        return checkpoint_bytes(
            SFTConfig.model_validate({"base_model": "m", "datasets": data, "max_steps": 1, **changes}), shape
        )

    assert of(lora_r=2) == (4 * 80, 12 * 80)  # q 2 (8 + 8), gate 2 (8 + 16)
    assert of(adapter="none") == (4 * 456, 12 * 456)
    assert of(adapter="none", unfrozen_parameters=[r"model\.norm"]) == (4 * 456, 4 * 456 + 8 * 8)


@pytest.mark.parametrize("groups", [2, 50, 500, 5000])
def test_the_smallest_difference_is_the_statistics_own(groups: int) -> None:
    exact, about = smallest(groups, exact=True), smallest(groups)
    assert exact["sds"] == pytest.approx(smallest_difference(1 / math.sqrt(groups), groups), abs=1e-4)
    assert exact["share"] == pytest.approx(smallest_share_difference(groups), abs=1e-4)
    assert about["sds"] == pytest.approx(smallest_difference(1 / math.sqrt(groups)), abs=1e-4)


def test_splits_are_counted_or_estimated(tmp_path: Path) -> None:
    loaded = sweep(tmp_path)
    config = loaded.spec.pipeline
    about = dry_run(loaded, machine())["splits"]
    assert {name: (split["rows"], split["exact"]) for name, split in about.items()} == {
        "train": (80, False), "tune": (10, False), "select": (10, False), "test": (100, False),
    }  # fmt: skip
    splits = load_splits(config.datasets, config.seed_data)
    read = dry_run(loaded, machine(), splits)["splits"]
    assert {name: split["rows"] for name, split in read.items()} == {name: len(splits.rows(name)) for name in read}
    assert read["test"]["exact"]
    assert read["test"]["share"] > about["test"]["share"]


def test_one_prompt_in_many_rows_counts_once(tmp_path: Path) -> None:
    loaded = sweep(tmp_path)
    rows = "".join(f'{{"prompt": "question {i % 4}", "completion": "{i}"}}\n' for i in range(100))
    (tmp_path / "data" / "test.jsonl").write_text(rows)
    config = loaded.spec.pipeline
    found = dry_run(loaded, machine(), load_splits(config.datasets, config.seed_data))["splits"]["test"]
    assert (found["rows"], found["groups"]) == (100, 4)


def test_first_rows_passes_over_bad_ones(tmp_path: Path) -> None:
    loaded = sweep(folder_with_data(tmp_path))
    data = loaded.spec.pipeline.datasets.train
    Path(data.path).write_text(
        '{"prompt": "a", "completion": "b"}\nnot json\n\n{"x": 1}\n{"prompt": "c", "completion": "d"}\n'
    )
    assert [row.prompt for row in first_rows(data)] == ["a", "c"]
    assert [row.prompt for row in first_rows(data, 1)] == ["a"]
    Path(data.path).unlink()
    assert first_rows(data) == []


def test_tokens_of_texts() -> None:
    assert count_tokens("") == 0
    assert count_tokens("There are 12 lamps.") == 6
    assert count_tokens("incomprehensible") == 3
    assert count_tokens("人工智能") == 6


def test_the_longest_batch_is_found(tmp_path: Path) -> None:
    shape = read_shape(str(model_folder(tmp_path / "m")))
    data = {"train": {"path": "x", "type": "text"}}
    rows = [RowSize(4, 0, 6, 10)] * 30 + [RowSize(10, 0, 90, 100)]

    def largest(**changes: Any) -> Any:
        made = {
            "base_model": "m",
            "datasets": data,
            "max_steps": 400,
            "micro_batch_size": 2,
            "sequence_len": 64,
            **changes,
        }
        return workload(SFTConfig.model_validate(made), shape, rows, rows).train

    mixed = largest()
    assert (mixed.length, mixed.padded, mixed.trained) in {(64, True, 54 + 6), (64, False, 108)}
    assert largest(max_steps=1, micro_batch_size=1).length in (10, 64)
    grouped = largest(group_by_length=True)
    assert (grouped.length, grouped.trained) == (64, 60)
    packed = largest(sample_packing=True)
    assert (packed.tokens, packed.padded) == (128, True)
    assert packed.trained == math.ceil(128 * (30 * 6 + 54) / (30 * 10 + 64))


def test_doubles_name_files_and_lines(tmp_path: Path) -> None:
    loaded = sweep(tmp_path)
    text = "Please say in one word what colour the sky has on a clear day in summer"
    train = [
        {"prompt": f"{text}.", "completion": "blue"},
        *({"prompt": f"{i * 7919} {'xyz'[i % 3] * 9}", "completion": "a"} for i in range(60)),
    ]
    train += train[1:21]
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    test = [
        {"prompt": "nothing like it at all, whatever you think of it", "completion": "n"},
        {"prompt": f"{text}?!", "completion": "blue"},
    ]
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    config = loaded.spec.pipeline
    splits = load_splits(config.datasets, config.seed_data)
    record, warnings = doubles(config, splits)
    files = {name: str(tmp_path / "data" / f"{name}.jsonl") for name in ("train", "test")}
    pair = next(pair for pair in record["pairs"] if pair["split"] == "test")
    assert pair["examples"][0]["row"] == f"{files['test']}, line 2"
    assert pair["examples"][0]["other"] == f"{files['train']}, line 1"
    assert any(f"{files['test']}, line 2 and {files['train']}, line 1" in warning for warning in warnings)
    assert record["repeated"] == len(splits.train) - len({row.group for row in splits.train}) > 5
    places = [int(record["repeats"][0][key].rpartition(" ")[2]) for key in ("row", "first")]
    assert places[0] - places[1] == 60
    assert json.loads(json.dumps(record)) == record
