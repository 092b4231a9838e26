"""Runs of the SFT pipeline on a tiny random Llama, for its tests."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import save_model, sums, write_rows

from evaluators.base import Report
from pipelines.finetune.sft import SFTPipeline
from pipelines.stage import Task

TOTAL, STOP = 8, 5


def quick(cases: Iterable[Any], *kept: str, ids: Sequence[str] = ()) -> list[Any]:
    """Cases of a parametrised test: those named run with every test, the others, of the same code, with the slow ones."""
    cases = list(cases)
    names = list(ids or cases)
    assert set(kept) < set(names), "every case that is kept must be there"
    slow = {name: () if name in kept else (pytest.mark.slow,) for name in names}
    return [pytest.param(case, id=str(name), marks=slow[name]) for case, name in zip(cases, names, strict=True)]


ROWS = 13  # an epoch of 13 rows at 4 a step ends between steps 3 and 4


def make_place(folder: Path) -> Path:
    """A tiny model beside rows to train it on."""
    save_model(folder / "model")
    write_rows(folder / "train.jsonl", sums(ROWS))
    write_rows(folder / "tune.jsonl", sums(9, 100))
    return folder


def config(place: Path, **changed: Any) -> dict[str, Any]:
    return {
        "type": "sft",
        "base_model": str(place / "model"),
        "datasets": {
            "train": {"path": str(place / "train.jsonl"), "type": "prompt_completion"},
            "tune": {"path": str(place / "tune.jsonl"), "type": "prompt_completion"},
        },
        "lora_r": 4,
        "lora_dropout": 0.1,
        "learning_rate": 0.01,
        "warmup_ratio": 0.25,
        "weight_decay": 0.01,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": TOTAL,
        "sequence_len": 32,
        **changed,
    }


def sft_sweep(place: Path, name: str, changed: dict[str, Any], **sections: Any) -> Path:
    """A sweep file beside the model and the rows of `make_place`, with the settings of `config`."""
    file = place / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"name": name, "metric": "loss", "pipeline": config(place, **changed), **sections}))
    return file


def run(
    settings: dict[str, Any],
    folder: Path,
    milestones: tuple[int, ...] = (TOTAL,),
    pipeline: SFTPipeline | None = None,
    stop: int | None = None,
    **more: Any,
) -> list[Report]:
    """Reports of a lease; `stop` ends it at that resource, as the engine does."""
    reports: list[Report] = []

    def report(made: Report) -> None:
        reports.append(made)
        torch.rand(3)  # whoever listens may draw
        if made.resource == stop:
            raise SystemExit

    words: dict[str, Any] = {"total": settings["max_steps"], "rung_evaluators": ({"type": "loss"},), **more}
    task = Task(settings, "0000-abcdef01", 7, 0, str(folder), milestones, **words)
    try:
        (pipeline or SFTPipeline()).run(task, report)
    except SystemExit:
        assert stop is not None
    return reports


def go_on(settings: dict[str, Any], folder: Path, after: int, total: int = TOTAL) -> list[Report]:
    """Reports of a second lease that starts from the checkpoint of `after` in `folder` and writes beside it.

    Another random state than the first lease's is around it, as in another process.
    """
    disturb()
    start = str(folder / f"checkpoint-{after}")
    return run(settings, folder.with_name("second"), (total,), start=start, start_resource=after)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (folder / "adapter_model.safetensors").exists() else "model.safetensors"
    return load_file(folder / name)


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def disturb() -> None:
    """Another random state than a checkpoint's."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
