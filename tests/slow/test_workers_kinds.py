"""Whatever two workers may train gives the loss curve of one with as many rows a step: every kind of fine-tune and optimizer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from second_worker import SecondWorker, train
from sft_runs import weights
from tiny import save_model, sums, write_rows

from pipelines.finetune import interim
from pipelines.finetune.prune import prune
from pipelines.stage import Rank

pytestmark = pytest.mark.slow

STEPS = 4
FULL = {"adapter": "none", "learning_rate": 0.002}
WIDE = {"hidden": {"type": "mse", "weight": 0.5}, "teacher": "wide"}
CRITIC = {"hidden": {"type": "mi_alpha", "alpha": 0.5}, "optimizer": "schedule_free_adamw"}
KINDS: dict[str, dict[str, Any]] = {
    "dpo in groups": {"type": "dpo", "group_by_length": True},
    "kto": {"type": "dpo", "loss": {"type": "kto"}},
    "distill with a projection": {"type": "distill", **FULL, **WIDE},
    "distill with a critic": {"type": "distill", **FULL, **CRITIC},
    "retrain all pruned weights": {"type": "retrain_pruned", **FULL, "base_model": "pruned"},
    "retrain a masked adapter": {"type": "retrain_pruned", "base_model": "pruned"},
    "prodigy": {"optimizer": "prodigy"},
    "in phases": {"datasets": "phased"},
    "prompts": {"adapter": "prompt_tuning", "num_virtual_tokens": 3},
    "packed and spread": {"sample_packing": True, "micro_batch_size": 1, "parallel": "fsdp"},
    "parts spread": {**FULL, "unfrozen_parameters": ["model.layers.1.mlp"], "parallel": "fsdp"},
    "a cut spread": {**FULL, "keep_layers": 1, "parallel": "fsdp", "gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def second() -> Iterator[SecondWorker]:
    with SecondWorker() as started:
        yield started


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, and rows of which an epoch ends in the middle of a step."""
    folder = tmp_path_factory.mktemp("kinds")
    save_model(folder / "model")
    save_model(folder / "teacher", seed=1, layers=3, spread=0.3)
    save_model(folder / "wide", seed=3, layers=3, hidden=48, spread=0.3)
    prune({"model": str(folder / "model"), "out": str(folder / "pruned"), "settings": {}, "sparsity": 0.5})
    (folder / "train").mkdir()
    write_rows(folder / "train" / "00-easy.jsonl", sums(7))
    write_rows(folder / "train" / "05-hard.jsonl", sums(4, 50))
    write_rows(folder / "tune.jsonl", sums(5, 100))
    for name, first in (("pairs", 0), ("tune-pairs", 100)):
        rows = [
            {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "no " * 3} for row in sums(11, first)
        ]
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


def settings(place: Path, changed: dict[str, Any]) -> dict[str, Any]:
    preference = changed.get("type") == "dpo"
    kind, files = ("preference", ("pairs", "tune-pairs")) if preference else ("prompt_completion", ("train", "tune"))
    train, tune = ({"path": str(place / name) + ("" if name == "train" else ".jsonl"), "type": kind} for name in files)
    plain = {
        "type": "sft",
        "base_model": "model",
        "lora_r": 4,
        "learning_rate": 0.01,
        "micro_batch_size": 2,
        "max_steps": STEPS,
        "sequence_len": 32,
        **({"teacher": "teacher"} if changed.get("type") == "distill" else {}),
        **changed,
    }
    placed = {name: str(place / plain[name]) for name in ("base_model", "teacher") if name in plain}
    strategy = {"strategy": "phased"} if changed.get("datasets") == "phased" else {}
    return {**plain, **placed, "datasets": {"train": train, "tune": tune, **strategy}}


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_train_as_one(second: SecondWorker, place: Path, tmp_path: Path, kind: str) -> None:
    told = settings(place, KINDS[kind])
    together = second.train({**told, "gradient_accumulation_steps": 1}, tmp_path / "together")
    alone = train({**told, "gradient_accumulation_steps": 2}, tmp_path / "alone", Rank())
    assert (
        [report.resource for report in together] == [report.resource for report in alone] == list(range(1, STEPS + 1))
    )
    for theirs, mine in zip(together, alone, strict=True):
        for name, value in mine.telemetry.items():
            if name.startswith("train/"):
                assert theirs.telemetry[name] == pytest.approx(value, abs=1e-4, nan_ok=True), (name, mine.resource)
        assert theirs.telemetry["cost/tokens"] == mine.telemetry["cost/tokens"]
    (theirs_last,), (mine_last,) = together[-1].scores, alone[-1].scores
    assert theirs_last.value == pytest.approx(mine_last.value, abs=1e-4)
    ours, its = (weights(tmp_path / name / f"checkpoint-{STEPS}") for name in ("together", "alone"))
    assert ours.keys() == its.keys()
    assert max(float((ours[name] - its[name]).abs().max()) for name in its) < 2e-3
    assert alone[0].telemetry["train/loss"] != pytest.approx(alone[-1].telemetry["train/loss"], abs=1e-3)


def test_half_the_micro_batch_goes_on_with_the_same_steps(second: SecondWorker, place: Path, tmp_path: Path) -> None:
    """As after memory that ran out, with two workers."""
    whole, half = (
        settings(place, {"micro_batch_size": size, "gradient_accumulation_steps": 2 // size}) for size in (2, 1)
    )
    mine = second.train(whole, tmp_path / "whole", milestones=(2, STEPS))
    start = {"start": str(tmp_path / "whole" / "checkpoint-2"), "start_resource": 2}
    theirs = second.train(half, tmp_path / "half", milestones=(STEPS,), **start)
    assert [report.resource for report in theirs] == [3, 4]
    for one, other in zip(mine[2:], theirs, strict=True):
        for name in ("train/loss", "train/grad_norm", "train/samples", "train/learning_rate"):
            assert other.telemetry[name] == pytest.approx(one.telemetry[name], abs=1e-5), name


def test_two_workers_go_on_from_between_milestones(
    second: SecondWorker, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = settings(place, {"parallel": "fsdp", **FULL})
    mine = second.train(told, tmp_path / "whole" / "attempt-0")
    monkeypatch.setattr(interim, "PAUSE", 0.0)
    with monkeypatch.context() as killed:  # what is left behind is what a kill would leave
        killed.setattr(interim.Interims, "forget", lambda self, but=None: None)
        second.train(told, tmp_path / "cut" / "attempt-0", checkpoint_seconds=1e-9)
    theirs = second.train(told, tmp_path / "cut" / "attempt-1", checkpoint_seconds=1e-9)
    assert [report.resource for report in theirs] == [STEPS]
    for name in ("train/grad_norm", "train/samples", "train/learning_rate", "cost/tokens"):
        assert theirs[0].telemetry[name] == mine[-1].telemetry[name], name
    assert theirs[0].scores[0].value == mine[-1].scores[0].value
    ours, its = (weights(tmp_path / n / f"checkpoint-{STEPS}") for n in ("whole/attempt-0", "cut/attempt-1"))
    assert ours.keys() == its.keys()
    assert all(torch.equal(ours[name], its[name]) for name in its)
    assert not list((tmp_path / "cut" / "attempt-1").glob("*interim-*"))
