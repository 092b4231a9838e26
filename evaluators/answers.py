"""What evaluators of retrieval and answers speak: questions with their gold, passages, and what a configuration made of them.

Only the standard library is imported. Offsets are characters `[start, end)` of a document's text as the corpus reader
gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from evaluators.base import Direction, ItemSet, Score, Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Span:
    """Characters `[start, end)` of a document."""

    document: str
    start: int
    end: int


@dataclass(frozen=True)
class Question:
    """One question with whatever gold it has.

    Attributes:
        id: as the file has it, else the hash of the row's content.
        group: the unit splits and errors go by: hash of the question, or of `group_by`.
        text: the question.
        spans: gold character spans; empty where none are given.
        documents: gold document ids, those of the spans included; empty where none are given.
        answer: the reference answer; None where there is none.
    """

    id: str
    group: str
    text: str
    spans: tuple[Span, ...] = ()
    documents: tuple[str, ...] = ()
    answer: str | None = None


@dataclass(frozen=True)
class Passage:
    """A piece of a document that was retrieved: `text` is the document's `[start, end)`, exactly.

    Attributes:
        score: of the last stage that ranked it; comparable within one list only.
    """

    document: str
    start: int
    end: int
    text: str
    score: float = 0.0


@dataclass(frozen=True)
class Answered:
    """One question through one configuration.

    Attributes:
        question: the question.
        ranked: what was retrieved and reranked, best first, before the context was cut from it.
        context: what the generator was given, in order; a refined passage is a part of a ranked one.
        answer: what was generated; None where nothing was generated.
    """

    question: Question
    ranked: tuple[Passage, ...]
    context: tuple[Passage, ...]
    answer: str | None = None


def question_set(answered: Sequence[Answered]) -> ItemSet:
    """The questions as an item set."""
    questions = [one.question for one in answered]
    return ItemSet(tuple(question.id for question in questions), groups=tuple(question.group for question in questions))


@dataclass(frozen=True)
class JudgeRequest:
    """One thing to ask a judge.

    Attributes:
        task: what is asked, for the memo and the coverage table: `statements`, `verdicts`, ...
        prompt: the whole prompt.
        max_new_tokens: of the answer.
    """

    task: str
    prompt: str
    max_new_tokens: int = 512


class Judge(Protocol):
    """A language model that grades. Calls are memoised by whoever made it; equal requests are asked once."""

    @property
    def name(self) -> str:
        """What metric cards and reports call it."""
        ...

    def ask(self, requests: Sequence[JudgeRequest]) -> list[str | None]:
        """Its answers in order; None where there was none (an endpoint that gave up)."""
        ...


class TextEmbedder(Protocol):
    """Texts to vectors, memoised by whoever made it."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dimension) float32."""
        ...


@dataclass(frozen=True)
class Tools:
    """What evaluators of answers may use beside the answers; None where the sweep file gives none.

    Attributes:
        judge: for the claim metrics.
        embed: for the similarity metrics.
        documents: document id -> its text, for evaluators that read more than the passages.
    """

    judge: Judge | None = None
    embed: TextEmbedder | None = None
    documents: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class AnswerEvaluator(Protocol):
    """Scores what a RAG configuration made of questions.

    Attributes:
        metrics: names this evaluator reports -> direction; the first is its primary.
    """

    metrics: Mapping[str, Direction]

    def evaluate_answers(self, answered: Sequence[Answered], split: Split, tools: Tools) -> tuple[Score, ...]:
        """One `Score` a metric, items aligned to `answered`.

        What can't be scored (no gold, no answer where one is needed, an unparsable verdict) is NaN, never 0.
        """
        ...
