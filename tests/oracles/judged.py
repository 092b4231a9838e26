"""Writes judged.json: ragas's six metrics by a judge that answers from a table, for tests/unit/test_ragas.py.

ragas is no dependency of the project (it brings LangChain and older pins). In an environment of its own:

    python3.11 -m venv oracle
    oracle/bin/pip install ragas==0.4.3 'langchain-community<0.4'
    oracle/bin/python tests/oracles/judged.py

A case holds all that a judge and an embedder would say of it, drawn at random, so that the metrics' arithmetic alone is
compared and no prompt: the statements of both texts, which the context supports (and which of them the judge passes over),
which the other text has, which passages are useful, the questions made from the answer, and each text's vector. A value is a number, null for NaN, or "refused"
where ragas raises.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from pathlib import Path
from typing import Any

from ragas.embeddings.base import BaseRagasEmbedding
from ragas.llms.base import InstructorBaseRagasLLM
from ragas.metrics.collections import (
    AnswerCorrectness,
    AnswerRelevancy,
    ContextPrecision,
    ContextRecall,
    Faithfulness,
    SemanticSimilarity,
)

QUESTIONS = 3
"""Made from an answer, as ragas's `strictness` says."""


class TableJudge(InstructorBaseRagasLLM):
    """Answers ragas's prompts from a case."""

    def __init__(self, case: dict[str, Any]) -> None:
        self._case = case
        self._made = iter(case["made"])

    def generate(self, prompt: str, response_model: Any) -> Any:
        """What the case says, as the model that ragas asks for."""
        asked = json.loads(prompt.rpartition("\ninput: ")[2].removesuffix("Output: "))
        return response_model.model_validate(getattr(self, f"_{response_model.__name__}")(asked))

    async def agenerate(self, prompt: str, response_model: Any) -> Any:
        """As `generate`."""
        return self.generate(prompt, response_model)

    def _StatementGeneratorOutput(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"statements": self._case["statements"][asked["answer"]]}

    def _NLIStatementOutput(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["context"] == "\n".join(self._case["contexts"])
        supported = self._case["supported"]
        return {
            "statements": [
                {"statement": one, "reason": "", "verdict": int(one in supported)}
                for one in asked["statements"]
                if one not in self._case["passed_over"]
            ]
        }

    def _ContextRecallOutput(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["context"] == "\n".join(self._case["contexts"])
        supported = self._case["supported"]
        return {
            "classifications": [
                {"statement": one, "reason": "", "attributed": int(one in supported)}
                for one in self._case["statements"][asked["answer"]]
                if one not in self._case["passed_over"]
            ]
        }

    def _ContextPrecisionOutput(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["answer"] == self._case["reference"]
        return {"reason": "", "verdict": int(asked["context"] in self._case["useful"])}

    def _ClassificationWithReason(self, asked: dict[str, Any]) -> dict[str, Any]:
        matched = self._case["matched"]

        def told(statements: list[str], found: bool) -> list[dict[str, str]]:
            return [{"statement": one, "reason": ""} for one in statements if (one in matched) == found]

        answer, reference = asked["answer"], asked["ground_truth"]
        return {"TP": told(answer, True), "FP": told(answer, False), "FN": told(reference, False)}

    def _AnswerRelevanceOutput(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["response"] == self._case["answer"]
        question, noncommittal = next(self._made)
        return {"question": question, "noncommittal": int(noncommittal)}


class TableEmbedding(BaseRagasEmbedding):
    """Vectors from a case."""

    def __init__(self, case: dict[str, Any]) -> None:
        super().__init__()
        self._vectors = case["vectors"]

    def embed_text(self, text: str, **kwargs: Any) -> list[float]:
        """The text's vector."""
        return list(self._vectors[text])

    async def aembed_text(self, text: str, **kwargs: Any) -> list[float]:
        """As `embed_text`."""
        return self.embed_text(text)


def values(case: dict[str, Any]) -> dict[str, Any]:
    """ragas's metrics of a case, by our names."""
    judge, embedding = TableJudge(case), TableEmbedding(case)
    question, answer = {"user_input": case["question"]}, {"response": case["answer"]}
    reference, contexts = {"reference": case["reference"]}, {"retrieved_contexts": case["contexts"]}
    asked = {
        "faithfulness": (Faithfulness(llm=judge), {**question, **answer, **contexts}),
        "context_recall": (ContextRecall(llm=judge), {**question, **contexts, **reference}),
        "context_precision": (ContextPrecision(llm=judge), {**question, **reference, **contexts}),
        "answer_correctness": (
            AnswerCorrectness(llm=judge, embeddings=embedding),
            {**question, **answer, **reference},
        ),
        "answer_correctness.f1": (
            AnswerCorrectness(llm=judge, weights=[1.0, 0.0]),
            {**question, **answer, **reference},
        ),
        "answer_relevancy": (
            AnswerRelevancy(llm=judge, embeddings=embedding, strictness=QUESTIONS),
            {**question, **answer},
        ),
        "answer_similarity": (SemanticSimilarity(embeddings=embedding), {**reference, **answer}),
    }
    return {name: value(metric, inputs) for name, (metric, inputs) in asked.items()}


def value(metric: Any, inputs: dict[str, Any]) -> float | str | None:
    """One metric's value."""
    try:
        found = float(asyncio.run(metric.ascore(**inputs)).value)
    except ValueError:
        return "refused"
    return None if math.isnan(found) else found


def drawn(random_: random.Random, **sizes: int) -> dict[str, Any]:
    """A case: its texts, and what is said of them.

    Args:
        random_: what draws.
        sizes: how many statements the `answer` and the `reference` have, and how many `contexts` there are.
    """
    counts = {part: sizes.get(part, random_.randint(1, 5)) for part in ("answer", "reference", "contexts")}
    statements = {side: [f"{side} claim {n}." for n in range(counts[side])] for side in ("answer", "reference")}
    contexts = [f"Passage {n}." for n in range(counts["contexts"])]
    every = [one for side in statements.values() for one in side]

    def some(of: list[str]) -> list[str]:
        chance = random_.random()
        return [one for one in of if random_.random() < chance]

    made = [(f"Made question {n}?", random_.random() < 0.4) for n in range(QUESTIONS)]
    texts = ["Which one is asked?", "The answer.", "The reference.", *(question for question, _ in made)]
    return {
        "question": texts[0],
        "answer": texts[1],
        "reference": texts[2],
        "contexts": contexts,
        "statements": {texts[1]: statements["answer"], texts[2]: statements["reference"]},
        "supported": some(every),
        "passed_over": [],
        "matched": some(every),
        "useful": some(contexts),
        "made": made,
        "vectors": {text: [round(random_.gauss(0.5, 1), 3) for _ in range(4)] for text in texts},
    }


def edges(random_: random.Random) -> dict[str, dict[str, Any]]:
    """Cases at which definitions part, by name."""
    cases = {
        "nothing_supported": {**drawn(random_), "supported": [], "matched": [], "useful": []},
        "an_evasive_answer": drawn(random_),
        "an_answer_without_statements": drawn(random_, answer=0, reference=3),
        "a_reference_without_statements": drawn(random_, answer=3, reference=0),
        "no_statements_at_all": drawn(random_, answer=0, reference=0),
        "no_passages": drawn(random_, contexts=0),
        "a_vector_of_zeros": drawn(random_),
        "a_blank_answer": drawn(random_, answer=0, reference=3),
        "a_question_was_not_made": drawn(random_),
        "a_verdict_was_not_given": drawn(random_, answer=3, reference=3),
    }
    evasive = cases["an_evasive_answer"]
    evasive["made"] = [(question, True) for question, _ in evasive["made"]]
    cases["a_vector_of_zeros"]["vectors"]["The answer."] = [0.0] * 4
    blank = cases["a_blank_answer"]
    blank["answer"] = ""
    blank["statements"][""] = []
    blank["vectors"][""] = blank["vectors"][" "] = blank["vectors"]["The answer."]
    unmade = cases["a_question_was_not_made"]
    unmade["made"][1] = ("", False)
    cases["a_verdict_was_not_given"]["passed_over"] = ["answer claim 1.", "reference claim 2."]
    return cases


def main() -> None:
    """Write the file beside this one."""
    random_ = random.Random(0)
    drawn_cases = [drawn(random_) for _ in range(24)]
    edge_cases = edges(random_)
    for case in (*drawn_cases, *edge_cases.values()):
        case["values"] = values(case)
    place = Path(__file__).with_suffix(".json")
    text = json.dumps({"drawn": drawn_cases, "edges": edge_cases}, separators=(",", ":"))
    place.write_text(text.replace('{"question"', '\n{"question"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
