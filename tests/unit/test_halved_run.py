"""A run that goes on with half the micro batch and twice the accumulation is the run that it would have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sft_runs import STOP, TOTAL, config, make_place, run
from tiny import sums

from pipelines.finetune.packing import grouped_order

SIZES = ((4, 1), (2, 2), (1, 4))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


def settings(place: Path, micro: int, steps: int, **more: Any) -> dict[str, Any]:
    return config(place, micro_batch_size=micro, gradient_accumulation_steps=steps, lora_dropout=0.0, **more)


def curve(reports: list[Any]) -> np.ndarray[Any, Any]:
    """(step, training loss, gradient norm, tokens) of every step, and the loss on tune where it was scored."""
    told = [
        (r.resource, r.telemetry["train/loss"], r.telemetry["train/grad_norm"], r.telemetry["cost/tokens"])
        for r in reports
    ]
    scored = [(r.resource, score.value, 0.0, 0.0) for r in reports for score in r.scores]
    return np.array(told + scored)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_loss_curve_is_that_of_the_smaller_micro_batch(place: Path, tmp_path: Path, grouped: bool) -> None:
    made = [
        curve(run(settings(place, *size, group_by_length=grouped), tmp_path / f"{size[0]}", report_every=1))
        for size in SIZES
    ]
    assert len(made[0]) == TOTAL + 1
    np.testing.assert_allclose(made[1], made[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(made[2], made[0], rtol=0, atol=1e-6)


def test_going_on_with_half_from_a_checkpoint_gives_the_same_curve(place: Path, tmp_path: Path) -> None:
    whole = curve(run(settings(place, 2, 2), tmp_path / "whole", report_every=1))
    run(settings(place, 4, 1), tmp_path / "first", milestones=(STOP, TOTAL), stop=STOP)
    start = str(tmp_path / "first" / f"checkpoint-{STOP}")
    rest = run(settings(place, 2, 2), tmp_path / "second", start=start, start_resource=STOP, report_every=1)
    np.testing.assert_allclose(curve(rest)[:, :2], whole[STOP:, :2], rtol=0, atol=1e-6)
    assert curve(rest)[0][0] == STOP + 1


def test_the_order_of_rows_is_that_of_the_steps() -> None:
    lengths = np.array([len(row["completion"]) for row in sums(41)], dtype=np.int32)
    order = grouped_order(lengths, 8, seed=3, epoch=1)
    assert sorted(order) == list(range(41))
    for step in order[:40].reshape(5, 8):
        assert list(lengths[step]) == sorted(lengths[step], reverse=True)
