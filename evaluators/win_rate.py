"""Win rate: a judge compares the model's own answers with others, in both orders."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from evaluators import first_rows
from evaluators.answers import Judge, JudgeRequest
from evaluators.base import (
    Direction,
    Example,
    GenerationRequest,
    LanguageModel,
    Messages,
    PreferenceModel,
    Score,
    Split,
    summarise,
)
from evaluators.config import WinRateConfig
from evaluators.preference import item_set

PROMPT = """\
Two assistants answered the same request. Which answer is better? Judge by how well it does what is asked: right, complete,
to the point. Length alone is no merit. Write one letter and nothing else: A if the first is better, B if the second is, C if
they are equally good.

Request:
{request}

Answer A:
{first}

Answer B:
{second}

Letter:"""
"""What the judge is asked; raise `evaluators.answers.VERSION` when it changes."""
_LETTER = re.compile(r"\W*(?i:answer\s+|letter:?\s*)?([ABC])(?=\s*$|[.,:;)\]*\"']|\s+is\b)")
_FIRST = {"A": 1.0, "B": 0.0, "C": 0.5}


class WinRateEvaluator:
    """Share of rows whose answer the judge finds better than the chosen one, or than the reference's.

    Judges prefer a place (Zheng et al. 2023, arXiv 2306.05685): each pair is asked about twice, with the answers exchanged,
    and a row's score is the mean of both verdicts: 1, 0.75, 0.5, 0.25 or 0. Equal answers are a tie without being asked
    about. A row of which either verdict is missing or unreadable is unscored.

    Example:
        >>> WinRateEvaluator(WinRateConfig(against="reference")).evaluate(model, rows, "tune")[0].key
        'tune/win_rate'
    """

    metrics: Mapping[str, Direction] = WinRateConfig.metrics

    def __init__(self, config: WinRateConfig) -> None:
        self.config = config

    def evaluate(self, model: LanguageModel, rows: Sequence[Example], split: Split) -> tuple[Score, ...]:
        """One score, `win_rate`.

        Raises:
            TypeError: if the model is not one that is tuned by preferences, or has no judge; the door has checked it.
        """
        judge = model.judge() if isinstance(model, PreferenceModel) else None
        if not isinstance(model, PreferenceModel) or judge is None:
            raise TypeError(f"a model tuned by preferences and a judge are needed, but got {type(model).__name__}")
        kept = first_rows(rows, self.config.limit)
        requests = [GenerationRequest(row.prompt or "", self.config.max_new_tokens) for row in kept]
        own = [answer.text for answer in model.generate(requests)]
        if self.config.against == "reference":
            others = [answer.text for answer in model.reference_answers(requests)]
        else:
            others = [row.completion for row in kept]
        items = verdicts(judge, [row.prompt for row in kept], own, others)
        return (summarise("win_rate", split, "maximize", item_set(kept), items),)


def verdicts(
    judge: Judge, prompts: Sequence[str | Messages | None], own: Sequence[str], others: Sequence[str]
) -> list[float]:
    """How each of `own` does against the other answer to its prompt: 1 better, 0 worse; NaN where the judge gave no verdict."""
    found = [0.5] * len(own)
    asked: dict[int, tuple[JudgeRequest, JudgeRequest]] = {}
    for place, (prompt, mine, other) in enumerate(zip(prompts, own, others, strict=True)):
        if mine.strip() != other.strip():
            request = as_text(prompt)
            both = (
                PROMPT.format(request=request, first=first, second=second)
                for first, second in ((mine, other), (other, mine))
            )
            asked[place] = tuple(JudgeRequest("win_rate", text, max_new_tokens=8) for text in both)  # type: ignore[assignment]
    answers = iter(judge.ask([request for both in asked.values() for request in both]))
    for place in asked:
        first, second = next(answers), next(answers)
        found[place] = (read(first) + 1.0 - read(second)) / 2
    return found


def read(answer: str | None) -> float:
    """1 where the first answer is better, 0 where the second one is, one half for a tie, NaN for no verdict."""
    found = _LETTER.match(answer or "")
    return math.nan if found is None else _FIRST[found[1]]


def as_text(prompt: str | Messages | None) -> str:
    """A prompt as the judge reads it: a text, or a chat by its roles."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
