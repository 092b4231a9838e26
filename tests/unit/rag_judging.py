"""A judge that answers from a table, and an embedder over letters: deterministic, and they note what they are asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.answers import JudgeRequest


class TableJudge:
    """Breaks texts at full stops; a statement is supported where the context holds it; a table may say otherwise.

    Attributes:
        said: task -> function of the input that gives the answer's text (or None) instead.
        batches: tasks of each `ask`.
        prompts: all prompts in order.
    """

    name = "table"

    def __init__(self, **said: Callable[[Any], str | None]) -> None:
        self.said = said
        self.batches: list[list[str]] = []
        self.prompts: list[str] = []

    def ask(self, requests: Sequence[JudgeRequest]) -> list[str | None]:
        self.batches.append([request.task for request in requests])
        self.prompts += [request.prompt for request in requests]
        return [self._answer(request) for request in requests]

    def _answer(self, request: JudgeRequest) -> str | None:
        content = json.loads(request.prompt.rpartition("Input: ")[2])
        task = request.task.partition("/")[0]
        own = self.said.get(task)
        return own(content) if own is not None else json.dumps(getattr(self, f"_{task}")(content))

    def _statements(self, content: Mapping[str, Any]) -> Any:
        return {"statements": [part.strip() for part in content["answer"].split(".") if part.strip()]}

    def _supported(self, content: Mapping[str, Any]) -> Any:
        return {"verdicts": verdicts(text in content["context"] for text in content["statements"].values())}

    def _matched(self, content: Mapping[str, Any]) -> Any:
        answer, reference = list(content["answer"].values()), list(content["reference"].values())
        return {
            "answer": verdicts(text in reference for text in answer),
            "reference": verdicts(text in answer for text in reference),
        }

    def _useful(self, content: Mapping[str, Any]) -> Any:
        return {"reason": "", "verdict": int(content["answer"] in content["passage"])}

    def _questions(self, content: Mapping[str, Any]) -> Any:
        return {"questions": [{"question": content["answer"], "noncommittal": 0}] * content["questions"]}


def verdicts(values: Any) -> list[dict[str, Any]]:
    """Numbered verdicts as a judge gives them."""
    return [{"number": number, "reason": "", "verdict": int(value)} for number, value in enumerate(values, 1)]


def letters(texts: Sequence[str]) -> NDArray[np.float32]:
    """How often each of a to z stands in a text."""
    return np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)
