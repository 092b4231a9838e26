"""Generated answers against references: exact match, and JSON objects field by field."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from evaluators import first_rows
from evaluators.answers import Answered, Tools, question_set
from evaluators.base import (
    Direction,
    Example,
    GenerationRequest,
    ItemSet,
    LanguageModel,
    Score,
    Split,
    summarise,
)
from evaluators.config import ExactMatchConfig, JSONFieldsConfig


class ExactMatchEvaluator:
    """Share of rows whose greedy answer equals the reference, outer blanks aside.

    An item is 1 or 0. With `answer_regex` an answer in which it finds nothing is wrong, and a reference in which it finds
    nothing is unscored; so are rows without a prompt. `normalize` is the rule of SQuAD's scorer (Rajpurkar et al. 2016,
    arXiv 1606.05250); where it leaves nothing of either text, the texts are compared as they stand.

    Example:
        >>> ExactMatchEvaluator(ExactMatchConfig(answer_regex="#### (.*)")).judge("2 + 2 = 4 #### 4", "#### 4")
        1.0
    """

    metrics: Mapping[str, Direction] = ExactMatchConfig.metrics

    def __init__(self, config: ExactMatchConfig) -> None:
        self.config = config
        self._regex = re.compile(config.answer_regex) if config.answer_regex is not None else None

    def evaluate(self, model: LanguageModel, rows: Sequence[Example], split: Split) -> tuple[Score, ...]:
        """One score, `exact_match`."""
        rows = first_rows(rows, self.config.limit)
        answers = generated(model, rows, self.config.max_new_tokens)
        items = [
            math.nan if answer is None else self.judge(answer, row.completion)
            for row, answer in zip(rows, answers, strict=True)
        ]
        return (summarise("exact_match", split, "maximize", _item_set(rows), items),)

    def evaluate_answers(self, answered: Sequence[Answered], split: Split, tools: Tools) -> tuple[Score, ...]:
        """The same of answers to questions; without an answer or a reference a question is unscored."""
        items = [
            math.nan
            if one.answer is None or one.question.answer is None
            else self.judge(one.answer, one.question.answer)
            for one in answered
        ]
        return (summarise("exact_match", split, "maximize", question_set(answered), items),)

    def judge(self, answer: str, reference: str) -> float:
        """1, 0, or NaN when the reference can't be read."""
        right = self._extract(reference)
        if right is None:
            return math.nan
        given = self._extract(answer)
        return float(given is not None and (given == right or self._same(given, right)))

    def _extract(self, text: str) -> str | None:
        if self._regex is None:
            return text.strip()
        matches = list(self._regex.finditer(text))
        if not matches:
            return None
        found: str | None = matches[-1].group(1 if self._regex.groups else 0)
        return None if found is None else found.strip()

    def _same(self, given: str, right: str) -> bool:
        if not self.config.normalize:
            return False
        words = normalized(right)
        return words != "" and normalized(given) == words


class JSONFieldsEvaluator:
    """A generated JSON object against the reference object, field by field.

    `json_fields` is the share of the reference's fields that the answer has right; `json_fields.exact` asks for the same
    object, nothing missing and nothing more, in any order; `json_fields.valid` for a JSON object at all. The whole
    answer must be JSON (outer blanks aside), as for a program that reads it: anything else is wrong, and scores 0. A row
    whose reference is no JSON object with fields is unscored. Numbers compare by value, `true` is not 1.
    """

    metrics: Mapping[str, Direction] = JSONFieldsConfig.metrics

    def __init__(self, config: JSONFieldsConfig) -> None:
        self.config = config

    def evaluate(self, model: LanguageModel, rows: Sequence[Example], split: Split) -> tuple[Score, ...]:
        """Three scores: share of fields right, exact objects, answers that parse."""
        rows = first_rows(rows, self.config.limit)
        answers = generated(model, rows, self.config.max_new_tokens)
        judged = [
            (math.nan,) * 3 if answer is None else judge_json(answer, row.completion)
            for row, answer in zip(rows, answers, strict=True)
        ]
        item_set = _item_set(rows)
        return tuple(
            summarise(name, split, direction, item_set, [items[i] for items in judged])
            for i, (name, direction) in enumerate(self.metrics.items())
        )


def judge_json(answer: str, reference: str) -> tuple[float, float, float]:
    """(share of the reference's fields right, same object, is an object); all NaN when the reference is no object."""
    right = _json_object(reference)
    if not right:
        return math.nan, math.nan, math.nan
    given = _json_object(answer)
    if given is None:
        return 0.0, 0.0, 0.0
    fields = sum(key in given and _equal(given[key], value) for key, value in right.items())
    return fields / len(right), float(_equal(given, right)), 1.0


def generated(model: LanguageModel, rows: Sequence[Example], max_new_tokens: int) -> list[str | None]:
    """The greedy answer to each row's prompt, handed over as it stands; None for a row without a prompt."""
    requests = {
        i: GenerationRequest(row.prompt, max_new_tokens) for i, row in enumerate(rows) if row.prompt is not None
    }
    texts: list[str | None] = [None] * len(rows)
    if requests:
        for i, generation in zip(requests, model.generate(list(requests.values())), strict=True):
            texts[i] = generation.text
    return texts


def normalized(text: str) -> str:
    """Lower case, without punctuation, English articles and extra blanks, in SQuAD's order."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _item_set(rows: Sequence[Example]) -> ItemSet:
    return ItemSet(ids=tuple(row.id for row in rows), groups=tuple(row.group for row in rows))


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text.strip(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _equal(a: Any, b: Any) -> bool:
    """JSON equality: numbers by value, booleans apart from numbers, order only in lists."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, bool) == isinstance(b, bool) and a == b
