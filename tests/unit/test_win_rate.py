"""Win rate: a judge that is asked in both orders, a small endpoint as the judge of a tuned model, and the door."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint
from sweep_files import load, problems
from test_load_preference import DPO
from tiny import save_model, write_rows

from evaluators.answers import JudgeRequest
from evaluators.win_rate import read, verdicts
from pipelines.finetune.preference import DPOPipeline
from pipelines.memo import open_memo
from pipelines.stage import EvaluationJob, ModelSource, Services

JUDGE = "judge: {type: openai, base_url: http://127.0.0.1:8000/v1, model: NAME}\n"


class FakeJudge:
    """Says what a rule says of two answers."""

    name = "fake"

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.asked = 0

    def ask(self, requests: Sequence[JudgeRequest]) -> list[str | None]:
        self.asked += len(requests)
        return [self.rule(*answers(request.prompt)) for request in requests]


def answers(prompt: str) -> tuple[str, str]:
    found = re.search(r"Answer A:\n(.*)\n\nAnswer B:\n(.*)\n\nLetter:", prompt, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def longer(first: str, second: str) -> str:
    return "C" if len(first) == len(second) else "A" if len(first) > len(second) else "B"


def test_the_better_answer_wins_in_both_orders() -> None:
    judge = FakeJudge(longer)
    assert verdicts(judge, ["p"] * 4, ["long answer", "no", "same", "equal"], ["short", "yes!", "same", "alike"]) == [
        1.0,
        0.0,
        0.5,
        0.5,
    ]
    assert judge.asked == 6  # equal answers are a tie without being asked about


def test_a_judge_that_prefers_a_place_finds_ties() -> None:
    assert verdicts(FakeJudge(lambda first, second: "A"), ["p"], ["one"], ["two"]) == [0.5]


def test_a_verdict_that_is_missing_leaves_the_row_unscored() -> None:
    found = verdicts(
        FakeJudge(lambda first, second: None if first == "one" else "A"), ["p", "p"], ["one", "x"], ["two", "y"]
    )
    assert math.isnan(found[0])
    assert found[1] == 0.5


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("A", 1.0),
        (" B.", 0.0),
        ("**C**", 0.5),
        ("Answer B", 0.0),
        ("Letter: A", 1.0),
        ("B is better", 0.0),
        ("A better one is B", math.nan),
        ("Both", math.nan),
        ("", math.nan),
        (None, math.nan),
    ],
)
def test_letters_are_read(said: str | None, value: float) -> None:
    assert read(said) == pytest.approx(value, nan_ok=True)


def test_a_tuned_model_is_compared_by_the_sweeps_judge(tmp_path: Path) -> None:
    def say(body: Mapping[str, Any]) -> str:
        first, _ = answers(body["messages"][-1]["content"])
        return "A" if first == "good" else "B"

    save_model(tmp_path / "model")
    rows = [{"prompt": f"{i}=", "chosen": "good", "rejected": "bad"} for i in range(4)]
    data = {"path": str(write_rows(tmp_path / "rows.jsonl", rows)), "type": "preference"}
    config = {
        "type": "dpo",
        "base_model": str(tmp_path / "model"),
        "datasets": {"train": data, "tune": {"fraction": 0.5}},
        "max_steps": 1,
        "sequence_len": 32,
    }
    asked = {"type": "win_rate", "max_new_tokens": 4}
    with FakeEndpoint(say).serving() as server, open_memo(tmp_path / "memo") as memo:
        judge = {"type": "openai", "base_url": server.address, "model": "fake"}
        services = Services(memo=lambda: memo)
        source = ModelSource(str(tmp_path / "model"))
        found = {}
        for against in ("chosen", "reference"):
            entries = ({**asked, "against": against},)
            job = EvaluationJob(config, source, "train", entries, services=services, judge=judge)
            [found[against]] = DPOPipeline().evaluate(job)
    assert found["chosen"].value == 0.0
    assert found["chosen"].key == "train/win_rate"
    assert found["reference"].value == 0.5  # an untouched model answers as its reference does


def test_without_a_judge_it_is_refused(tmp_path: Path) -> None:
    text = DPO + "evaluate: [win_rate]\n"
    assert "'win_rate' asks a judge; write judge:" in problems(tmp_path, text)["evaluate[0]"]
    metric = DPO.replace("metric: reward_accuracy", "metric: win_rate")
    assert any("'win_rate' asks a judge" in said for said in problems(tmp_path, metric).values())
    loaded = load(tmp_path, text + JUDGE)
    assert loaded.judge is not None
    found = problems(tmp_path, DPO.replace("type: dpo", "type: sft").replace("reward_accuracy", "loss") + JUDGE)
    assert "a judge grades answers of rag and dpo, and sft asks none" in found["judge"]
