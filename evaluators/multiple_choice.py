"""Multiple choice by log-likelihood: the choice that the model finds likeliest after the question.

The numbers are those of lm-evaluation-harness 0.4 (Gao et al. 2024) for `output_type: multiple_choice`: `acc` takes the
largest sum of log-probabilities, `acc_norm` the largest sum a character, `acc_bytes` a byte; the first of equals counts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.base import Direction, Example, ItemSet, LanguageModel, Score, Split, UserError, summarise
from evaluators.benchmark_config import MultipleChoiceConfig


@dataclass(frozen=True)
class Question:
    """A row: the text before the choices, the choices, and the place of the right one."""

    text: str
    choices: tuple[str, ...]
    gold: int

    @property
    def id(self) -> str:
        """16 hex digits of its content's hash."""
        body = json.dumps([self.text, self.choices, self.gold])
        return hashlib.sha256(body.encode()).hexdigest()[:16]

    @property
    def group(self) -> str:
        """Questions of one text are one unit of the error."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


class MultipleChoiceEvaluator:
    """Share of questions whose right choice is the likeliest; a split without a file has no score.

    All choices go to the model in one call, which reads each question's text once (`pipelines.continuations`).

    Example:
        >>> judge(["yes", "no"], [-2.0, -3.0], gold=0)
        (1.0, 1.0, 1.0)
    """

    metrics: Mapping[str, Direction] = MultipleChoiceConfig.metrics

    def __init__(self, config: MultipleChoiceConfig) -> None:
        self.config = config
        self.samples: list[dict[str, Any]] = []

    def evaluate(self, model: LanguageModel, rows: Sequence[Example], split: Split) -> tuple[Score, ...]:
        """Three scores; `rows` are not looked at.

        Raises:
            UserError: if the split's file can't be read.
        """
        path = {"tune": self.config.tune, "select": self.config.select, "test": self.config.test}.get(split)
        if path is None:
            return ()
        questions = read_questions(Path(path), self.config.limit)
        pairs = [(q.text, self.config.delimiter + choice) for q in questions for choice in q.choices]
        found = iter(model.loglikelihood(pairs))
        sums = [[next(found)[0] for _ in q.choices] for q in questions]
        judged = [judge(q.choices, own, q.gold) for q, own in zip(questions, sums, strict=True)]
        self.samples = [
            {"question": q.text, "choices": q.choices, "gold": q.gold, "log_likelihoods": own, "acc": acc}
            for q, own, (acc, _, _) in zip(questions, sums, judged, strict=True)
        ]
        item_set = ItemSet(tuple(q.id for q in questions), groups=tuple(q.group for q in questions))
        return tuple(
            summarise(name, split, direction, item_set, [items[place] for items in judged])
            for place, (name, direction) in enumerate(self.metrics.items())
        )


def judge(choices: Sequence[str], sums: Sequence[float], gold: int) -> tuple[float, float, float]:
    """Whether the right choice has the largest sum of log-probabilities; the same a character and a byte. NaN without finite sums."""
    if any(math.isnan(one) for one in sums):
        return (math.nan,) * 3
    characters = [one / max(1, len(choice)) for one, choice in zip(sums, choices, strict=True)]
    octets = [one / max(1, len(choice.encode())) for one, choice in zip(sums, choices, strict=True)]
    acc, norm, per_byte = (
        float(max(range(len(kind)), key=kind.__getitem__) == gold) for kind in (sums, characters, octets)
    )
    return acc, norm, per_byte


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """The rows of a JSONL file, the first `limit` of them by hash order.

    Raises:
        UserError: naming the line that is no question with choices and the right one among them.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"multiple_choice: {path} can't be read: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(_question(json.loads(line)))
            except ValueError as error:
                raise UserError(f"multiple_choice: {path} line {number}: {error}") from error
    if not found:
        raise UserError(f"multiple_choice: {path} has no rows")
    if limit is None or limit >= len(found):
        return found
    ranked = sorted(range(len(found)), key=lambda place: (found[place].id, place))
    return [found[place] for place in sorted(ranked[:limit])]


def _question(row: Any) -> Question:
    """A row, checked.

    Raises:
        ValueError: with what is wrong with it.
    """
    keys = set(row) if isinstance(row, dict) else set()
    if not {"question", "choices", "gold"} <= keys:
        raise ValueError(
            'is no mapping of question, choices and gold: {"question": "...", "choices": ["...", "..."], "gold": 0}'
        )
    text, choices, gold = row["question"], row["choices"], row["gold"]
    if not isinstance(text, str):
        raise ValueError("question is no text")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one for one in choices):
        raise ValueError("choices is no list of two texts or more")
    if isinstance(gold, str) and gold in choices:
        gold = choices.index(gold)
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        raise ValueError(f"gold is {json.dumps(gold)}, which is none of the {len(choices)} choices (0 is the first)")
    return Question(text, tuple(choices), gold)
