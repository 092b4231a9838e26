"""Claim metrics of answers and of what was retrieved, by a judge and by embeddings.

The definitions are those of ragas 0.4 (Es et al. 2023, arXiv 2309.15217); texts are broken down into statements once, and
all metrics share them (`evaluators.judge`). With s the statements of a text and sup(s) those that the context supports:

- `faithfulness` sup(s) / s of the answer.
- `context_recall` sup(s) / s of the reference answer.
- `context_precision` average precision of the verdicts "useful for the reference answer" on the passages in order:
  sum of P@k v_k / sum of v_k, 0 where no passage is useful. It says nothing about gold that was not retrieved.
- `answer_correctness.f1` 2 TP / (2 TP + FP + FN): TP and FP are the answer's statements that the reference supports or not,
  FN the reference's that the answer lacks. `answer_correctness` is `weight` F1 + (1 - `weight`) similarity.
- `answer_relevancy` mean cosine of the question and of questions made from the answer alone, 0 where the answer is
  noncommittal on all of them.
- `answer_similarity` cosine of answer and reference.

The context is what the generator is given. Unscored (NaN): no answer or no reference where one is needed, an answer of the
judge that can't be read, an embedding of zeros, and no statements to take a share of. An empty answer is 0 by correctness, relevancy and
similarity, and unscored by faithfulness: it claims nothing. No passages are 0 by precision, recall and faithfulness.

Otherwise than ragas's `metrics.collections`, case by case beside its own values in `tests/unit/test_ragas.py`: where one text
has no statements the other's are all unmatched, and without any on either side correctness is unscored (there 1 both times); a
verdict or a question that the judge leaves out makes the question unscored (there the rest counts); no passages, an empty
answer and an embedding of zeros are as above (there an error, the embedding of a blank, and 0 in correctness); sums are exact
(there + 1e-10), and one request makes all questions of an answer, as equal requests would be answered alike at temperature 0
(there three).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evaluators.answers import Answered, Judge, TextEmbedder, Tools, question_set
from evaluators.base import Direction, Score, Split, summarise
from evaluators.config import (
    AnswerCorrectnessConfig,
    AnswerRelevancyConfig,
    AnswerSimilarityConfig,
    ContextPrecisionConfig,
    ContextRecallConfig,
    FaithfulnessConfig,
)
from evaluators.judge import Verdicts, matched, questions_for, statements_of, supported, useful


class FaithfulnessEvaluator:
    """Share of the answer's statements that the context supports."""

    metrics: Mapping[str, Direction] = FaithfulnessConfig.metrics

    def __init__(self, config: FaithfulnessConfig) -> None:
        self.config = config

    def evaluate_answers(self, answered: Sequence[Answered], split: Split, tools: Tools) -> tuple[Score, ...]:
        """See `AnswerEvaluator`."""
        texts = [None if one.answer is None else (one.question.text, one.answer) for one in answered]
        return _scores(self.metrics, answered, split, _supported_share(_judge(tools), answered, texts))


class ContextRecallEvaluator:
    """Share of the reference's statements that the context supports."""

    metrics: Mapping[str, Direction] = ContextRecallConfig.metrics

    def __init__(self, config: ContextRecallConfig) -> None:
        self.config = config

    def evaluate_answers(self, answered: Sequence[Answered], split: Split, tools: Tools) -> tuple[Score, ...]:
        """See `AnswerEvaluator`."""
        texts = [_referenced(one) for one in answered]
        return _scores(self.metrics, answered, split, _supported_share(_judge(tools), answered, texts))


class ContextPrecisionEvaluator:
    """Average precision of the useful passages."""

    metrics: Mapping[str, Direction] = ContextPrecisionConfig.metrics

    def __init__(self, config: ContextPrecisionConfig) -> None:
        self.config = config

    def evaluate_answers(self, answered: Sequence[Answered], split: Split, tools: Tools) -> tuple[Score, ...]:
        """See `AnswerEvaluator`."""
        texts = [_referenced(one) for one in answered]
        asked = [
            (*pair, passage)
            for one, pair in zip(answered, texts, strict=True)
            if pair is not None
            for passage in one.context
        ]
        said = iter(useful(_judge(tools), asked))
        verdicts = [
            None if pair is None else [next(said) for _ in one.context]
            for one, pair in zip(answered, texts, strict=True)
        ]
        return _scores(self.metrics, answered, split, [average_precision(one) for one in verdicts])


class AnswerCorrectnessEvaluator:
    """F1 over statements, and that with the similarity mixed in."""

    metrics: Mapping[str, Direction] = AnswerCorrectnessConfig.metrics

    def __init__(self, config: AnswerCorrectnessConfig) -> None:
        self.config = config

    def evaluate_answers(self, answered: Sequence[Answered], split: Split, tools: Tools) -> tuple[Score, ...]:
        """See `AnswerEvaluator`."""
        judge, pairs = _judge(tools), [_compared(one) for one in answered]
        texts = [
            None if pair is None else (one.question.text, pair[0]) for one, pair in zip(answered, pairs, strict=True)
        ]
        references = [_referenced(one) if pair else None for one, pair in zip(answered, pairs, strict=True)]
        found = statements_of(judge, [*texts, *references])
        given, right = found[: len(answered)], found[len(answered) :]
        verdicts = matched(
            judge,
            [
                None if mine is None or theirs is None else (one.question.text, mine, theirs)
                for one, mine, theirs in zip(answered, given, right, strict=True)
            ],
        )
        f1 = [math.nan if both is None else statement_f1(*both) for both in verdicts]
        f1 = [0.0 if pair is not None and not pair[0].strip() else one for one, pair in zip(f1, pairs, strict=True)]
        weight = self.config.weight
        alike = _similarities(_embed(tools), pairs) if weight < 1 else [0.0] * len(pairs)
        mixed = [weight * one + (1 - weight) * cosine for one, cosine in zip(f1, alike, strict=True)]
        return _scores(self.metrics, answered, split, mixed, f1)


class AnswerRelevancyEvaluator:
    """How near questions made from the answer are to the one that was asked."""

    metrics: Mapping[str, Direction] = AnswerRelevancyConfig.metrics

    def __init__(self, config: AnswerRelevancyConfig) -> None:
        self.config = config

    def evaluate_answers(self, answered: Sequence[Answered], split: Split, tools: Tools) -> tuple[Score, ...]:
        """See `AnswerEvaluator`."""
        answers = [one.answer if one.answer and one.answer.strip() else None for one in answered]
        made = questions_for(_judge(tools), answers, self.config.questions)
        pairs = [
            (one.question.text, question)
            for one, found in zip(answered, made, strict=True)
            for question in (found[0] if found is not None else ())
        ]
        cosines = iter(_similarities(_embed(tools), pairs))
        items = []
        for one, found in zip(answered, made, strict=True):
            if found is None:
                items.append(math.nan if one.answer is None or one.answer.strip() else 0.0)
                continue
            near = sum(next(cosines) for _ in found[0]) / len(found[0])
            items.append(0.0 if all(found[1]) else near)
        return _scores(self.metrics, answered, split, items)


class AnswerSimilarityEvaluator:
    """Cosine of answer and reference."""

    metrics: Mapping[str, Direction] = AnswerSimilarityConfig.metrics

    def __init__(self, config: AnswerSimilarityConfig) -> None:
        self.config = config

    def evaluate_answers(self, answered: Sequence[Answered], split: Split, tools: Tools) -> tuple[Score, ...]:
        """See `AnswerEvaluator`."""
        return _scores(
            self.metrics, answered, split, _similarities(_embed(tools), [_compared(one) for one in answered])
        )


def average_precision(verdicts: Sequence[bool | None] | None) -> float:
    """Of verdicts in rank order; NaN where one is missing.

    Example:
        >>> average_precision([True, False, True])
        0.8333333333333333
    """
    if verdicts is None or any(verdict is None for verdict in verdicts):
        return math.nan
    hits, total = 0, 0.0
    for rank, verdict in enumerate(verdicts, 1):
        if verdict:
            hits += 1
            total += hits / rank
    return total / hits if hits else 0.0


def statement_f1(answer: Verdicts, reference: Verdicts) -> float:
    """F1 of the answer's statements (True: in the reference) and the reference's (True: in the answer); NaN without any.

    Example:
        >>> statement_f1((True, False), (True, False, False))
        0.4
    """
    hits, wrong, missing = sum(answer), len(answer) - sum(answer), len(reference) - sum(reference)
    if not answer and not reference:
        return math.nan
    return 2 * hits / (2 * hits + wrong + missing) if hits else 0.0


def _supported_share(
    judge: Judge, answered: Sequence[Answered], texts: Sequence[tuple[str, str] | None]
) -> list[float]:
    """Share of each text's statements that its question's context supports."""
    statements = statements_of(judge, texts)
    verdicts = supported(
        judge, [None if s is None else (one.context, s) for one, s in zip(answered, statements, strict=True)]
    )
    return [sum(one) / len(one) if one else math.nan for one in verdicts]


def _referenced(one: Answered) -> tuple[str, str] | None:
    """(question, reference answer); None without a reference."""
    reference = one.question.answer
    return None if reference is None or not reference.strip() else (one.question.text, reference)


def _compared(one: Answered) -> tuple[str, str] | None:
    """(answer, reference); None where one of them is missing."""
    reference = one.question.answer
    return None if one.answer is None or reference is None or not reference.strip() else (one.answer, reference)


def _similarities(embed: TextEmbedder, pairs: Sequence[tuple[str, str] | None]) -> list[float]:
    """Cosine of each pair: 0 where the first text is blank, NaN where there is no pair or an embedding is all zeros."""
    import numpy as np

    texts = list(dict.fromkeys(text for pair in pairs if pair is not None and pair[0].strip() for text in pair))
    places = {text: place for place, text in enumerate(texts)}
    vectors = np.asarray(embed(texts), dtype=np.float64) if texts else np.zeros((0, 1))
    lengths = np.linalg.norm(vectors, axis=1)

    def cosine(pair: tuple[str, str] | None) -> float:
        if pair is None:
            return math.nan
        if not pair[0].strip():
            return 0.0
        a, b = places[pair[0]], places[pair[1]]
        if not lengths[a] or not lengths[b]:
            return math.nan
        return float(vectors[a] @ vectors[b] / (lengths[a] * lengths[b]))

    return [cosine(pair) for pair in pairs]


def _scores(
    metrics: Mapping[str, Direction], answered: Sequence[Answered], split: Split, *columns: Sequence[float]
) -> tuple[Score, ...]:
    items = question_set(answered)
    return tuple(
        summarise(name, split, direction, items, column)
        for (name, direction), column in zip(metrics.items(), columns, strict=True)
    )


def _judge(tools: Tools) -> Judge:
    assert tools.judge is not None, "a judged metric was given no judge; the door has checked it"
    return tools.judge


def _embed(tools: Tools) -> TextEmbedder:
    assert tools.embed is not None, "a similarity was given no embedder; the door has checked it"
    return tools.embed
