"""Preference tuning on a tiny random Llama: every loss, exact resume, the reference computed once, scores of given weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sft_runs import STOP, TOTAL, disturb, quick, run, same, weights
from tiny import save_model, write_rows

from evaluators.base import GenerationRequest
from pipelines.finetune import preference as preference_module
from pipelines.finetune.data import encode_answer
from pipelines.finetune.model import Quantised, load_folder
from pipelines.finetune.preference import DPOPipeline
from pipelines.finetune.preference_objective import answer_logprobs
from pipelines.lm import pad
from pipelines.memo import open_memo
from pipelines.splits import load_splits
from pipelines.stage import EvaluationJob, ModelSource, Services, UserError

LOSSES = ["sigmoid", "ln_dpo", "simpo", "ipo", "hinge", "robust", "kto", "orpo"]
BOTH = ({"type": "loss"}, {"type": "preference"})


def pairs(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows `a+b=` with the sum in words of unequal lengths, and one that is wrong."""
    rows = range(first, first + count)
    return [
        {"prompt": f"{i}+{i % 7}=", "chosen": "so " * (i % 3) + "yes", "rejected": "no" * (1 + i % 4)} for i in rows
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    save_model(folder / "model")
    write_rows(folder / "train.jsonl", pairs(13))
    write_rows(folder / "tune.jsonl", pairs(9, 100))
    unpaired = [
        {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
        for row in pairs(13)
        for key in ("chosen", "rejected")
    ]
    write_rows(folder / "unpaired.jsonl", unpaired)
    return folder


def config(place: Path, **changed: Any) -> dict[str, Any]:
    return {
        "type": "dpo",
        "base_model": str(place / "model"),
        "datasets": {
            "train": {"path": str(place / "train.jsonl"), "type": "preference"},
            "tune": {"path": str(place / "tune.jsonl"), "type": "preference"},
        },
        "lora_r": 4,
        "lora_dropout": 0.1,
        "learning_rate": 0.01,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": TOTAL,
        "sequence_len": 32,
        **changed,
    }


def tune(settings: dict[str, Any], folder: Path, milestones: tuple[int, ...] = (TOTAL,), **more: Any) -> list[Any]:
    words = {"rung_evaluators": BOTH, "pipeline": DPOPipeline(), **more}
    return run(settings, folder, milestones, **words)


@pytest.mark.parametrize("loss", quick(LOSSES, "sigmoid", "kto", "orpo"))
def test_every_loss_falls_and_every_weight_moves(place: Path, tmp_path: Path, loss: str) -> None:
    settings = config(place, loss={"type": loss}, max_steps=12, lora_dropout=0.0)
    reports = tune(settings, tmp_path, (1, 12))
    first, last = ({score.name: score for score in report.scores} for report in reports)
    assert list(first) == ["loss", "reward_accuracy", "reward_margin"]
    assert last["loss"].value < first["loss"].value
    assert last["reward_accuracy"].value >= 8 / 9
    assert last["reward_margin"].value > first["reward_margin"].value
    assert last["loss"].n == 9
    assert last["loss"].se > 0
    assert reports[-1].telemetry["train/reward_accuracy"] > 0.7
    before, after = weights(tmp_path / "checkpoint-1"), weights(tmp_path / "checkpoint-12")
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_the_untouched_model_is_a_coin(place: Path, tmp_path: Path) -> None:
    job = EvaluationJob(config(place), ModelSource(str(place / "model")), "tune", BOTH)
    loss, accuracy, margin = DPOPipeline().evaluate(job)
    assert loss.value == pytest.approx(math.log(2), abs=1e-12)
    assert (accuracy.value, margin.value) == (0.5, 0.0)


@pytest.mark.parametrize(
    "changed",
    quick(
        [{}, {"loss": {"type": "kto"}}, {"adapter": "none", "learning_rate": 0.001}, {"precision": "bf16"}],
        "kto",
        "full",
        ids=["sigmoid", "kto", "full", "bf16"],
    ),
)
def test_a_stopped_run_goes_on_bit_by_bit(place: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    settings = config(place, **changed)
    whole = tune(settings, tmp_path / "whole", (STOP, TOTAL))
    tune(settings, tmp_path / "cut", (STOP, TOTAL), stop=STOP)
    disturb()
    start = tmp_path / "cut" / f"checkpoint-{STOP}"
    second = tune(settings, tmp_path / "cut", (TOTAL,), start=str(start), start_resource=STOP)
    assert same(tmp_path / "whole" / f"checkpoint-{TOTAL}", tmp_path / "cut" / f"checkpoint-{TOTAL}")
    assert [s.record() for s in whole[-1].scores] == [s.record() for s in second[-1].scores]


def test_accumulation_changes_no_pairs_loss(place: Path, tmp_path: Path) -> None:
    found = []
    for micro, accumulation in ((4, 1), (2, 2), (1, 4)):
        changed = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation, "lora_dropout": 0.0}
        [report] = tune(config(place, max_steps=1, **changed), tmp_path / str(micro), (1,))
        found.append([report.telemetry[name] for name in ("train/loss", "train/grad_norm")])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_unpaired_answers_train_as_the_pairs_they_are_from(place: Path, tmp_path: Path) -> None:
    data = {"train": {"path": str(place / "unpaired.jsonl"), "type": "unpaired_preference"}}
    both = {**config(place)["datasets"], **data}
    settings = config(place, loss={"type": "kto"}, datasets=both, max_steps=12, micro_batch_size=4)
    first, last = tune(settings, tmp_path, (1, 12))
    assert last.scores[0].value < first.scores[0].value
    assert last.scores[1].value >= 8 / 9


def test_the_reference_is_the_start_with_the_adapter_off(place: Path) -> None:
    loaded = load_folder(place / "model")
    row = pairs(1)[0]
    encoded = [encode_answer(row["prompt"], row[key], loaded.tokenizer, 32) for key in ("chosen", "rejected")]
    with torch.no_grad():
        logprobs, tokens = answer_logprobs(loaded.model, *pad(encoded, loaded.tokenizer.pad_token_id))
        single = torch.log_softmax(loaded.model(torch.tensor([encoded[0].ids])).logits[0, :-1], -1)
    picked = single.gather(1, torch.tensor(encoded[0].ids[1:])[:, None])[:, 0]
    wanted = torch.tensor(encoded[0].labels[1:]) >= 0
    assert float(logprobs[0]) == pytest.approx(float(picked[wanted].sum()), rel=1e-5)
    assert tokens.tolist() == [row.trained for row in encoded]


def test_trials_share_what_the_reference_makes_of_their_rows(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = preference_module.Reference._computed

    def counted(self: Any, calls: Any, by_key: Any) -> Any:
        asked.append(sum(len(by_key[call.key]) for call in calls))
        return real(self, calls, by_key)

    monkeypatch.setattr(preference_module.Reference, "_computed", counted)
    trials = [config(place, loss={"type": name}, learning_rate=rate) for name in LOSSES[:2] for rate in (0.01, 0.001)]
    with open_memo(tmp_path / "memo") as memo:
        services = Services(memo=lambda: memo)
        for number, settings in enumerate(trials):
            tune(settings, tmp_path / f"shared-{number}", services=services)
        kinds = memo.kinds()
    assert sorted(asked) == [18, 26]  # two answers of each of 9 and 13 rows, once for all four trials
    assert kinds["reference_logprobs"].entries == 2
    tune(trials[-1], tmp_path / "alone")
    assert len(asked) == 4
    assert same(tmp_path / "alone" / f"checkpoint-{TOTAL}", tmp_path / "shared-3" / f"checkpoint-{TOTAL}")


def test_what_the_memo_gives_is_what_would_be_computed(place: Path, tmp_path: Path) -> None:
    pipeline = DPOPipeline()
    typed = preference_module.DPOConfig.model_validate(config(place))
    splits = load_splits(typed.datasets)
    loaded = load_folder(place / "model")
    rows = [one for row in pipeline._encode(typed, loaded, splits.train) for one in row.answers]
    with open_memo(tmp_path / "memo") as memo:
        shared = [
            DPOPipeline()._reference(typed, loaded, loaded.model, Services(memo=lambda: memo)).log_probabilities(rows)
            for _ in range(2)
        ]
    alone = DPOPipeline()._reference(typed, loaded, loaded.model, Services()).log_probabilities(rows)
    assert np.array_equal(shared[0], shared[1])
    assert np.array_equal(shared[0], alone)


def test_a_quantised_reference_is_another_one(place: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pipeline = DPOPipeline()
    found = []
    for changed in ({}, {"load_in_4bit": True}, {}):
        typed = preference_module.DPOConfig.model_validate(config(place, **changed))
        loaded = load_folder(place / "model", quantised=Quantised.of(typed))
        rows = [one for row in pipeline._encode(typed, loaded, load_splits(typed.datasets).tune) for one in row.answers]
        found.append(pipeline._reference(typed, loaded, loaded.model, Services()).log_probabilities(rows))
    assert np.array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_another_model_can_be_the_reference(place: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "other", seed=1)
    scores = []
    for reference in (None, str(tmp_path / "other")):
        job = EvaluationJob(config(place, reference=reference), ModelSource(str(place / "model")), "tune", BOTH)
        scores.append([score.value for score in DPOPipeline().evaluate(job)])
    assert scores[0][2] == 0.0
    assert scores[1][2] != 0.0


def test_a_reference_of_other_tokens_is_refused(place: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "other")
    body = json.loads((folder / "tokenizer.json").read_text())
    body["added_tokens"] = [{**body["added_tokens"][0], "id": len(body["model"]["vocab"]) + 9, "content": "<new>"}]
    (folder / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(UserError, match="reference: the tokenizer of"):
        tune(config(place, reference=str(folder)), tmp_path / "run")


def test_the_divergence_is_the_samples_own(place: Path, tmp_path: Path) -> None:
    settings = config(place, lora_dropout=0.0)
    ends = ({"type": "kl", "max_new_tokens": 12},)
    [report] = tune(settings, tmp_path / "run", rung_evaluators=(), end_evaluators=ends)
    kl, length = report.scores
    assert kl.value != 0.0  # nine draws: the estimate may be below 0
    assert kl.se > 0
    assert 1 <= length.value <= 12
    untouched = EvaluationJob(settings, ModelSource(str(place / "model")), "tune", ends)
    same_kl, same_length = DPOPipeline().evaluate(untouched)
    assert same_kl.value == 0.0
    assert same_length.n == 9
    folder = str(tmp_path / "run" / f"checkpoint-{TOTAL}")
    job = EvaluationJob(settings, ModelSource(str(place / "model"), folder), "tune", ends)
    assert DPOPipeline().evaluate(job)[0].value == pytest.approx(kl.value, rel=1e-4)
    from pipelines.finetune.adapters import attach

    loaded = load_folder(place / "model")
    model = attach(loaded.model, Path(folder))
    lm = DPOPipeline().language_model(model, loaded, preference_module.DPOConfig.model_validate(settings), Services())
    request = GenerationRequest("1+1=", 12, temperature=1.0)
    [answer] = lm.local.answered([request])
    with torch.no_grad():
        own = torch.log_softmax(model(torch.tensor([answer.ids])).logits[0, :-1], -1)
        with model.disable_adapter():
            other = torch.log_softmax(model(torch.tensor([answer.ids])).logits[0, :-1], -1)
    start = sum(label < 0 for label in answer.labels) - 1
    by_hand = sum(float(own[at, answer.ids[at + 1]] - other[at, answer.ids[at + 1]]) for at in range(start, len(own)))
    assert lm.divergences([request])[0].nats == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_checkpoints_and_their_averages_are_scored_as_they_were(place: Path, tmp_path: Path, adapter: str) -> None:
    rate = 0.01 if adapter == "lora" else 0.001
    settings = config(place, adapter=adapter, learning_rate=rate, lora_dropout=0.0)
    [told] = tune(settings, tmp_path)
    folder = str(tmp_path / f"checkpoint-{TOTAL}")
    source = ModelSource(str(place / "model"), folder) if adapter == "lora" else ModelSource(folder)
    pipeline = DPOPipeline()
    with open_memo(tmp_path / "memo") as memo:
        services = Services(memo=lambda: memo, cache=str(tmp_path / "cache"))
        alone = pipeline.evaluate(EvaluationJob(settings, source, "tune", BOTH, services=services))
        again = ModelSource(str(place / "model"), blend=((folder, 0.5), (folder, 0.5)))
        blended = pipeline.evaluate(EvaluationJob(settings, again, "tune", BOTH, services=services))
    for scores in (alone, blended):
        assert [s.value for s in scores] == pytest.approx([s.value for s in told.scores], rel=1e-4)


def test_rows_that_are_cut_to_their_prompt_are_dropped_and_unscored(place: Path, tmp_path: Path) -> None:
    long = {"prompt": "x" * 40, "chosen": "yes", "rejected": "no"}
    data = {
        name: {"path": str(write_rows(tmp_path / f"{name}.jsonl", [*pairs(9, first), long])), "type": "preference"}
        for name, first in (("train", 0), ("tune", 100))
    }
    data["tune"]["path"] = str(write_rows(tmp_path / "tune.jsonl", [*pairs(9, 100), {**long, "prompt": "y" * 40}]))
    [report] = tune(config(place, datasets=data), tmp_path / "run")
    assert report.telemetry["train/dropped_rows"] == 1
    assert [(score.n, score.unscored) for score in report.scores] == [(9, 1)] * 3
    data["train"]["path"] = str(write_rows(tmp_path / "train.jsonl", [long]))
    with pytest.raises(UserError, match="sequence_len: 32 tokens leave nothing of the answers in any of the 1 rows"):
        tune(config(place, datasets=data), tmp_path / "none")
