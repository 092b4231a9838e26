"""Words shared by answer and reference, and exact match on answers to questions."""

import math

import pytest

from evaluators import build_evaluator
from evaluators.answer_words import word_overlap
from evaluators.answers import Answered, Question, Tools


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("1931", "1931", (1, 1, 1)),
        ("in the year 1931", "1931", (0.5, 1 / 3, 1)),
        ("The cat!", "a cat", (1, 1, 1)),
        ("cat cat", "cat", (2 / 3, 0.5, 1)),
        ("dog", "cat", (0, 0, 0)),
        ("", "cat", (0, 0, 0)),
        ("the", "a", (1, 1, 1)),
        ("red and blue lamps", "blue lamps are red", (0.75, 0.75, 0.75)),
    ],
)
def test_words_are_counted_as_squad_does(answer, reference, expected):
    assert word_overlap(answer, reference) == pytest.approx(expected)


def answered(answer, reference, name="q"):
    return Answered(Question(name, name, "What?", answer=reference), (), (), answer)


def test_what_lacks_an_answer_or_a_reference_is_unscored():
    rows = [answered("1931", "1931"), answered(None, "1931", "r"), answered("1931", None, "s"), answered("", "x", "t")]
    f1, precision, recall = build_evaluator({"type": "token_f1"}).evaluate_answers(rows, "tune", Tools())
    assert (f1.name, precision.name, recall.name) == ("token_f1", "token_f1.precision", "token_f1.recall")
    assert (f1.value, f1.n, f1.unscored) == (0.5, 2, 2)
    assert [math.isnan(item) for item in f1.items] == [False, True, True, False]
    assert f1.item_set.ids == ("q", "r", "s", "t")


def test_exact_match_judges_answers_as_it_judges_rows():
    evaluator = build_evaluator({"type": "exact_match", "normalize": True})
    rows = [answered("The 1931.", "1931"), answered("no", "yes", "r"), answered(None, "x", "s")]
    [score] = evaluator.evaluate_answers(rows, "test", Tools())
    assert (score.key, score.value, score.n, score.unscored) == ("test/exact_match", 0.5, 2, 1)
