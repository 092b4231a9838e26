"""Gradient accumulation: a step is the mean over its tokens, however it is cut into micro batches; samples are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sft_runs import config, run
from tiny import save_model, sums, write_rows

from pipelines.finetune import trainer
from pipelines.finetune.optimizer_kinds import build_optimizer

BATCH = 128


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accumulation")
    save_model(folder / "model")
    rows = [{**row, "completion": row["completion"] + " one" * (i % 11)} for i, row in enumerate(sums(BATCH))]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "tune.jsonl", sums(3, 1000))
    return folder


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The gradient of every step that is taken from here on, as one vector."""
    found: list[torch.Tensor] = []

    def watched(*words: Any, **more: Any) -> torch.optim.Optimizer:
        made = build_optimizer(*words, **more)

        def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            found.append(torch.cat([p.grad.flatten() for p in parameters]).double())

        made.register_step_pre_hook(keep)
        return made

    monkeypatch.setattr(trainer, "build_optimizer", watched)
    return found


def test_eight_micro_batches_of_16_are_one_of_128(place: Path, tmp_path: Path, gradients: list[torch.Tensor]) -> None:
    losses = []
    for micro, accumulated in ((BATCH, 1), (16, 8)):
        shape = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulated, "sequence_len": 64}
        settings = config(place, adapter="none", max_steps=1, max_grad_norm=0.0, **shape)
        [made] = run(settings, tmp_path / str(micro), (1,))
        assert made.telemetry["train/samples"] == BATCH
        losses.append(made.telemetry["train/loss"])
    whole, split = gradients
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert float((whole - split).abs().max()) < 1e-6
    assert float((whole - split).norm() / whole.norm()) < 1e-6


def test_the_mean_of_micro_means_would_be_another_gradient(
    place: Path, tmp_path: Path, gradients: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are of lengths unequal enough for the first test to notice."""
    shape = {"micro_batch_size": 16, "gradient_accumulation_steps": 8, "sequence_len": 64}
    settings = config(place, adapter="none", max_steps=1, max_grad_norm=0.0, **shape)
    run(settings, tmp_path / "ours", (1,))
    monkeypatch.setattr(trainer.Trainer, "_get_num_items_in_batch", lambda self, batches, device: None)

    def mean_of_its_own(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **rest: Any) -> Any:
        found = self._objective.loss(model, inputs)
        self._counted.total += found.total.detach().double()
        self._counted.weight += found.weight
        return found.total / found.weight / 8

    monkeypatch.setattr(trainer.Trainer, "compute_loss", mean_of_its_own)
    run(settings, tmp_path / "theirs", (1,))
    ours, theirs = gradients
    assert float((ours - theirs).norm() / ours.norm()) > 1e-3


@pytest.mark.parametrize("packed", [False, True])
def test_samples_are_rows_of_train(place: Path, tmp_path: Path, packed: bool) -> None:
    settings = config(place, sample_packing=packed, micro_batch_size=1, max_steps=4, sequence_len=128)
    reports = run(settings, tmp_path, (2, 4))
    seen = [report.telemetry["train/samples"] for report in reports]
    if packed:
        assert 4 * 2 < seen[0] < seen[1]
    else:
        assert seen == [4, 8]
