"""Files in which people say how good answers are, in the shapes that `stockpot evaluate-judge` reads.

- Pairs of answers (RAGChecker's human labels, arXiv 2408.08067): `query`, `gt_answer`, `model1` and `model2` with their
  `response`, and `overall_label`, `correctness_label`, `completeness_label` from -2 to 2, model2 over model1. What is
  compared with a label is the metric of answer 2 minus that of answer 1; a pair that several people judged stands in
  several rows.
- Sentence pairs (STS): `sentence1` is the reference, `sentence2` the answer, `similarity` from 0 to 1.
- Answers: `question`, `answer`, `contexts` (passages, in order) and `label` from 0 to 1, with a `reference` where there is
  one; rows of one question, answer and contexts are several people's. The shape for metrics of contexts.
- Answerability (SQuAD 2): `question`, `context`, `answerability` 0 or 1; for the judge's own verdict, `answerability`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluators.answers import Answered, Passage, Question
from pipelines.stage import UserError

PAIR_LABELS = ("overall", "correctness", "completeness")
SHAPES = {
    "pairs": ("query", "gt_answer", "model1", "model2", *(f"{label}_label" for label in PAIR_LABELS)),
    "sentences": ("sentence1", "sentence2", "similarity"),
    "answers": ("question", "answer", "contexts", "label"),
    "answerability": ("question", "context", "answerability"),
}
"""Shape -> the keys of its rows."""


@dataclass(frozen=True)
class Judgement:
    """What one person says.

    Attributes:
        question: what judgements are clustered by.
        item: what several people may judge.
        better: place of the answer among `Labels.answered`; its metric counts.
        worse: place of the answer whose metric is subtracted; None for a label of one answer.
        labels: by name.
    """

    question: str
    item: str
    better: int
    worse: int | None
    labels: Mapping[str, float]


@dataclass
class Labels:
    """A file of judgements.

    Attributes:
        shape: a key of `SHAPES`.
        names: of the labels, the most important first.
        answered: the distinct answers.
        judgements: in the file's order.
    """

    shape: str
    names: tuple[str, ...]
    answered: list[Answered] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)

    def values(self, items: Sequence[float]) -> list[float]:
        """The metric as the labels see it, from one number an answer."""
        return [items[j.better] - (0.0 if j.worse is None else items[j.worse]) for j in self.judgements]

    def among_themselves(self, label: str) -> tuple[list[float], list[float], list[str]]:
        """(one person's label, another's, question) of every two people that judged one item, both ways round."""
        by_item: dict[str, list[Judgement]] = {}
        for judgement in self.judgements:
            by_item.setdefault(judgement.item, []).append(judgement)
        pairs = [
            (a, b) for judged in by_item.values() for i, a in enumerate(judged) for k, b in enumerate(judged) if i != k
        ]
        return [a.labels[label] for a, _ in pairs], [b.labels[label] for _, b in pairs], [a.question for a, _ in pairs]


def read_labels(path: Path, limit: int | None = None) -> Labels:
    """Read a file.

    Args:
        path: JSON lines.
        limit: rows read at most, the first ones.

    Raises:
        UserError: with the line, if it is not there or has none of the shapes.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()][:limit]
    if not numbered:
        raise UserError(f"{path} is empty; {_legal()}")
    labels: Labels | None = None
    places: dict[tuple[Any, ...], int] = {}
    for number, line in numbered:
        place = f"{path}, line {number}"
        row = _row(line, place)
        shape = next((name for name, keys in SHAPES.items() if set(keys) <= row.keys()), None)
        if shape is None or (labels is not None and shape != labels.shape):
            raise UserError(f"{place}: keys {', '.join(row)[:200]} are of no shape known here; {_legal()}")
        if labels is None:
            labels = Labels(shape, PAIR_LABELS if shape == "pairs" else (SHAPES[shape][-1],))
        try:
            _add(labels, row, places)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{place}: {error!r} where a {labels.shape} row has text and numbers; {_legal()}") from None
    assert labels is not None
    return labels


def _legal() -> str:
    return "give rows with " + ", or ".join("/".join(keys) for keys in SHAPES.values())


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}: is no JSON object; {_legal()}")
    return row


def _add(labels: Labels, row: Mapping[str, Any], places: dict[tuple[Any, ...], int]) -> None:
    """One row's answers and judgement."""

    def place(question: str, reference: str | None, answer: str | None, contexts: Sequence[str] = ()) -> int:
        key = (_text(question), reference, answer, *contexts)
        if key not in places:
            places[key] = len(labels.answered)
            passages = tuple(Passage(f"context {i}", 0, len(text), text) for i, text in enumerate(contexts))
            asked = Question(str(places[key]), question, question, answer=reference)
            labels.answered.append(Answered(asked, passages, passages, answer))
        return places[key]

    if labels.shape == "pairs":
        question, reference = row["query"], _text(row["gt_answer"])
        first, second = (place(question, reference, _text(row[model]["response"])) for model in ("model1", "model2"))
        said = {name: _number(row[f"{name}_label"], -2, 2) for name in PAIR_LABELS}
        labels.judgements.append(Judgement(question, f"{first} {second}", second, first, said))
    elif labels.shape == "sentences":
        at = place("", _text(row["sentence1"]), _text(row["sentence2"]))
        said = {"similarity": _number(row["similarity"], 0, 1)}
        labels.judgements.append(Judgement(row["sentence1"], str(at), at, None, said))
    elif labels.shape == "answers":
        given = None if row.get("reference") is None else _text(row["reference"])
        contexts = [_text(text) for text in _list(row["contexts"])]
        at = place(row["question"], given, _text(row["answer"]), contexts)
        labels.judgements.append(Judgement(row["question"], str(at), at, None, {"label": _number(row["label"], 0, 1)}))
    else:
        at = place(row["question"], None, None, [_text(row["context"])])
        said = {"answerability": _number(row["answerability"], 0, 1)}
        labels.judgements.append(Judgement(row["question"], str(at), at, None, said))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.80} is no list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return value


def _number(value: Any, low: float, high: float) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise ValueError(f"{value!r:.80} is no label from {low} to {high}")
    return float(value)
