"""The six claim metrics against ragas's own values, with a judge and an embedder that answer from a table.

`tests/oracles/judged.py` made the values, with ragas 0.4.3. Where a judge has said everything, ours are ragas's. `OURS` has
every place where they are not, and why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators import build_evaluator
from evaluators.answers import Answered, Passage, Question, Tools
from evaluators.config import EVALUATOR_CONFIGS, name_of
from tests.unit.rag_judging import TableJudge

ORACLE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "oracles" / "judged.json").read_text())
CLAIM_METRICS = [
    name_of(config)
    for config in EVALUATOR_CONFIGS
    if (config.judged or config.embeds) and "preference" not in config.subjects
]
NAN = math.nan
OURS: dict[str, dict[str, float]] = {
    # ragas calls it a perfect match where either text has no statements; a claim that the other lacks is wrong or missing
    "an_answer_without_statements": {"answer_correctness.f1": 0.0},
    "a_reference_without_statements": {"answer_correctness.f1": 0.0},
    "no_statements_at_all": {"answer_correctness.f1": NAN, "answer_correctness": NAN},
    # ragas raises, and its summary leaves the question out: a retriever that finds nothing would be judged by the rest alone
    "no_passages": {"faithfulness": 0.0, "context_recall": 0.0, "context_precision": 0.0},
    # ragas raises or embeds a blank: silence would score by what a blank's vector is
    "a_blank_answer": {
        "faithfulness": NAN,
        "answer_correctness.f1": 0.0,
        "answer_correctness": 0.0,
        "answer_relevancy": 0.0,
        "answer_similarity": 0.0,
    },
    # ragas takes 0 for a cosine that there is not (in correctness; in similarity it is NaN there, too)
    "a_vector_of_zeros": {"answer_correctness": NAN},
    # ragas goes on with what the judge did say: a judge that gives up on hard claims would raise the score
    "a_question_was_not_made": {"answer_relevancy": NAN},
    "a_verdict_was_not_given": {"faithfulness": NAN, "context_recall": NAN},
}
"""Edge case -> metric -> our value where it is not ragas's; the mixed correctness follows from its F1."""


def measured(case: Mapping[str, Any]) -> dict[str, float]:
    """Our metrics of a case, by name."""
    texts = case["contexts"]
    passages = tuple(Passage("d", place, place + 1, text) for place, text in enumerate(texts))
    question = Question("q", "q", case["question"], answer=case["reference"])
    row = Answered(question, passages, passages, case["answer"])
    tools = Tools(judge_of(case), lambda texts: np.array([case["vectors"][text] for text in texts], np.float32))
    found = [
        score
        for name in CLAIM_METRICS
        for score in build_evaluator({"type": name}).evaluate_answers([row], "tune", tools)
    ]
    return {score.name: float(score.items[0]) for score in found}


def judge_of(case: Mapping[str, Any]) -> TableJudge:
    """Says what the case says."""

    def verdicts(statements: Mapping[str, str], true: list[str], passed_over: tuple[str, ...] | list[str] = ()) -> Any:
        return [
            {"number": int(number), "reason": "", "verdict": int(statement in true)}
            for number, statement in statements.items()
            if statement not in passed_over
        ]

    def supported(asked: Any) -> str:
        assert asked["context"] == "\n".join(case["contexts"])
        return json.dumps({"verdicts": verdicts(asked["statements"], case["supported"], case["passed_over"])})

    def matched(asked: Any) -> str:
        return json.dumps({side: verdicts(asked[side], case["matched"]) for side in ("answer", "reference")})

    def useful(asked: Any) -> str:
        assert asked["answer"] == case["reference"]
        return json.dumps({"verdict": int(asked["passage"] in case["useful"])})

    def questions(asked: Any) -> str:
        made = [{"question": text, "noncommittal": int(evades)} for text, evades in case["made"]]
        return json.dumps({"questions": made[: asked["questions"]]})

    def statements(asked: Any) -> str:
        return json.dumps({"statements": case["statements"][asked["answer"]]})

    return TableJudge(statements=statements, supported=supported, matched=matched, useful=useful, questions=questions)


@pytest.mark.parametrize("at", range(len(ORACLE["drawn"])))
def test_metrics_are_ragas_s(at: int) -> None:
    case = ORACLE["drawn"][at]
    assert measured(case) == pytest.approx(case["values"], abs=1e-6)


def test_the_cases_tell_metrics_apart() -> None:
    """Values that were all 0 or all 1 would be met by many a formula."""
    for name in ORACLE["drawn"][0]["values"]:
        assert len({round(case["values"][name], 6) for case in ORACLE["drawn"]}) >= 6, name


@pytest.mark.parametrize("name", ORACLE["edges"])
def test_where_they_part_it_is_on_purpose(name: str) -> None:
    case = ORACLE["edges"][name]
    ours = dict(OURS.get(name, {}))
    if "answer_correctness.f1" in ours:
        similarity = case["values"]["answer_similarity"]
        ours.setdefault("answer_correctness", 0.75 * ours["answer_correctness.f1"] + 0.25 * similarity)
    theirs = {metric: NAN if value is None else value for metric, value in case["values"].items()}
    assert measured(case) == pytest.approx({**theirs, **ours}, abs=1e-6, nan_ok=True)
    for metric, value in ours.items():
        assert theirs[metric] != pytest.approx(value, nan_ok=True), f"{metric} is ragas's, too: nothing to explain"


def test_every_difference_has_its_case() -> None:
    assert set(OURS) < set(ORACLE["edges"])
