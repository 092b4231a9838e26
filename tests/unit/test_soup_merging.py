"""Weights made by several workers: the bytes of one, a worker that is lost, and what a failed part leaves behind."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from soup_machine import load

from pipelines.soups import merge
from pipelines.soups.masks import counted, record_mask
from sweeps import merging
from sweeps.failures import Failure, classify
from sweeps.load import LoadedSweep
from sweeps.loop import CallFailed, Later


class Workers:
    """Implements `Backend.call` and `start` in this process, with `slots` of them; `calls` is what was asked."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.calls: list[str] = []
        self.failures: dict[str, Failure] = {}

    def call(self, function: str, payload: Mapping[str, Any], on_progress: Callable[[str], None] | None = None) -> Any:
        module, _, name = function.partition(":")
        self.calls.append(name)
        if name in self.failures:
            raise CallFailed(self.failures.pop(name))
        try:
            return getattr(importlib.import_module(module), name)(json.loads(json.dumps(payload)))
        except Exception as error:  # typed, as a worker does it
            raise CallFailed(classify(error)) from error

    def start(self, function: str, payload: Mapping[str, Any]) -> Later:
        return Later(lambda on_progress: self.call(function, payload, on_progress))


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedSweep:
    monkeypatch.setattr(merging, "PART_BYTES", 64)
    return load(tmp_path)


def models(folder: Path, **last: float) -> list[list[Any]]:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"layers.{n}.weight": torch.randn(7, 9, generator=generator).bfloat16() for n in range(4)}
        for name, value in last.items():
            tensors[f"layers.3.{name}"] = torch.full((5,), value if seed == 2 else 1.0)
        (folder / str(seed)).mkdir()
        save_file(tensors, str(folder / str(seed) / "model.safetensors"))
        (folder / str(seed) / "config.json").write_text("{}")
    return [[str(folder / str(seed)), 1 / 3] for seed in range(3)]


@pytest.mark.parametrize("slots", [2, 3, 50])
def test_several_workers_write_the_bytes_of_one(tmp_path: Path, loaded: LoadedSweep, slots: int) -> None:
    payload = {"ingredients": models(tmp_path), "cache": None}
    whole = merge({**payload, "out": str(tmp_path / "whole")})
    workers: Any = Workers(slots)
    assert merging.make_weights(loaded, workers, {**payload, "out": str(tmp_path / "parted")}, print) == whole
    parts = workers.calls.count("merge_part")
    assert workers.calls == ["plan_merge", *["merge_part"] * parts, "finish_merge"]
    assert 1 < parts <= slots
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parted")]
    assert files[0] == files[1]


def test_pruned_models_keep_their_mask_on_several_workers_too(tmp_path: Path, loaded: LoadedSweep) -> None:
    payload = {"ingredients": models(tmp_path), "cache": None}
    for folder in (Path(name) for name, _ in payload["ingredients"]):
        tensors = load_file(folder / "model.safetensors")
        save_file(
            {name: value * (torch.arange(9) % 3 > 0) for name, value in tensors.items()}, folder / "model.safetensors"
        )
        record_mask(folder, counted(folder))
    whole = merge({**payload, "out": str(tmp_path / "whole")})
    assert whole["sparsity"]["after"] == pytest.approx(1 / 3)
    workers: Any = Workers(2)
    assert merging.make_weights(loaded, workers, {**payload, "out": str(tmp_path / "parted")}, print) == whole
    assert (tmp_path / "parted" / "mask.json").read_bytes() == (tmp_path / "whole" / "mask.json").read_bytes()
    (tmp_path / "2" / "mask.json").unlink()
    tensors = load_file(tmp_path / "2" / "model.safetensors")
    save_file({name: torch.ones_like(value) for name, value in tensors.items()}, tmp_path / "2" / "model.safetensors")
    with pytest.raises(CallFailed, match="the masks of pruned weights differ"):
        merging.make_weights(loaded, workers, {**payload, "out": str(tmp_path / "no")}, print)


def test_what_is_small_is_one_call(tmp_path: Path, loaded: LoadedSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = {"ingredients": models(tmp_path), "cache": None, "out": str(tmp_path / "soup")}
    for slots, size in ((1, 64), (8, 1 << 20)):
        monkeypatch.setattr(merging, "PART_BYTES", size)
        workers: Any = Workers(slots)
        merging.make_weights(loaded, workers, payload, print)
        assert workers.calls == ["merge"]


def test_a_lost_worker_does_its_part_again(tmp_path: Path, loaded: LoadedSweep) -> None:
    payload = {"ingredients": models(tmp_path), "cache": None}
    whole = merge({**payload, "out": str(tmp_path / "whole")})
    workers: Any = Workers(3)
    workers.failures["merge_part"] = Failure("node", "the worker died")
    assert merging.make_weights(loaded, workers, {**payload, "out": str(tmp_path / "soup")}, print) == whole
    assert workers.calls.count("merge_part") == 4


def test_a_part_that_can_not_be_made_leaves_the_old_soup_and_nothing_aside(tmp_path: Path, loaded: LoadedSweep) -> None:
    payload = {"ingredients": models(tmp_path, bias=float("nan")), "cache": None, "out": str(tmp_path / "soup")}
    merge({**payload, "ingredients": [[str(tmp_path / "0"), 1.0]]})
    before = (tmp_path / "soup" / "model.safetensors").read_bytes()
    with pytest.raises(CallFailed, match=r"2 holds NaN or infinite numbers in layers\.3\.bias"):
        merging.make_weights(loaded, Workers(3), payload, print)  # type: ignore[arg-type]
    assert (tmp_path / "soup" / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".soup.*"))
