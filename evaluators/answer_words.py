"""Words that an answer and its reference share, by the rule of SQuAD's scorer (Rajpurkar et al. 2016, arXiv 1606.05250).

Both texts are normalised (lower case, no punctuation, no English articles); words count as often as they stand there.
With c words in common of a in the answer and r in the reference, precision is c / a, recall c / r, and F1 their harmonic
mean. Where normalisation leaves nothing of one of the texts, all three are 1 if nothing is left of the other either, else
0: an empty answer to a question that has one is wrong. Without a reference, or without any answer, a question is unscored.

Example:
    >>> word_overlap("in the year 1931", "1931")
    (0.5, 0.3333333333333333, 1.0)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from evaluators.answers import Answered, Tools, question_set
from evaluators.base import Direction, Score, Split, summarise
from evaluators.config import TokenF1Config
from evaluators.exact import normalized


class TokenF1Evaluator:
    """F1, precision and recall over words."""

    metrics: Mapping[str, Direction] = TokenF1Config.metrics

    def __init__(self, config: TokenF1Config) -> None:
        self.config = config

    def evaluate_answers(self, answered: Sequence[Answered], split: Split, tools: Tools) -> tuple[Score, ...]:
        """Three scores; see `AnswerEvaluator`."""
        judged = [
            (math.nan,) * 3
            if one.answer is None or one.question.answer is None
            else word_overlap(one.answer, one.question.answer)
            for one in answered
        ]
        items = question_set(answered)
        return tuple(
            summarise(name, split, direction, items, [row[place] for row in judged])
            for place, (name, direction) in enumerate(self.metrics.items())
        )


def word_overlap(answer: str, reference: str) -> tuple[float, float, float]:
    """(F1, precision, recall)."""
    given, right = normalized(answer).split(), normalized(reference).split()
    if not given or not right:
        return (float(given == right),) * 3
    common = sum((Counter(given) & Counter(right)).values())
    precision, recall = common / len(given), common / len(right)
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    return f1, precision, recall
