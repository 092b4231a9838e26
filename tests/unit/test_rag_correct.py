"""The corrective loop: the branch table, other searches, strips with exact offsets, and what it is worth on planted answers."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.answers import Answered, Passage, Question, Span, Tools
from evaluators.config import RetrievalConfig
from evaluators.retrieval import RetrievalEvaluator
from pipelines.calls import Calls
from pipelines.memo import Cost
from pipelines.rag import RERANKERS
from pipelines.rag.base import Chunk, passage_of
from pipelines.rag.config import RagConfig
from pipelines.rag.context import cut
from pipelines.rag.correct import Corrector, action_of, by_grade, recomposed, strips
from pipelines.rag.correct_build import build_corrector
from pipelines.rag.stages import ContextBudget, Corrective, CrossEncoder

QUESTION = "What does the deposit cost?"
NAN = math.nan


def passage(text: str, document: str = "a", start: int = 0, score: float = 0.0) -> Passage:
    return Passage(document, start, start + len(text), text, score)


class WordGrader:
    """Grades a text by the marks in it: `(7)` is 0.7, the best mark counts; `(?)` can't be graded."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        assert question == QUESTION
        self.asked.extend(passages)
        return [self._grade(text) for text in passages]

    @staticmethod
    def _grade(text: str) -> float:
        marks = [int(text[i + 1]) / 10 for i in range(len(text) - 2) if text[i] == "(" and text[i + 1].isdigit()]
        return NAN if "(?)" in text else max(marks, default=0.0)


class Library:
    """Another search: a fixed list, of which the first n are found; it keeps what it was asked."""

    def __init__(self, *passages: Passage) -> None:
        self.passages = passages
        self.asked: list[tuple[str, int]] = []

    def __call__(self, question: str, n: int) -> list[Passage]:
        self.asked.append((question, n))
        return list(self.passages[:n])


def config(**settings: object) -> Corrective:
    return Corrective.model_validate(
        {
            "type": "corrective",
            "grader": {"type": "cross_encoder", "model": "m"},
            "upper": 0.6,
            "lower": 0.3,
            **settings,
        }
    )


def texts(passages: Sequence[Passage]) -> list[str]:
    return [one.text for one in passages]


@pytest.mark.parametrize(
    ("grades", "action"),
    [
        ((0.9, 0.1), "correct"),
        ((0.6,), "correct"),
        ((0.59, 0.2), "ambiguous"),
        ((0.3,), "ambiguous"),
        ((0.29, 0.1), "incorrect"),
        ((), "incorrect"),
        ((NAN, 0.7), "correct"),
        ((NAN, 0.1), "incorrect"),
        ((NAN, NAN), "ungraded"),
    ],
)
def test_branch_table(grades: tuple[float, ...], action: str) -> None:
    assert action_of(grades, upper=0.6, lower=0.3) == action


def test_correct_uses_what_was_retrieved_and_searches_no_more() -> None:
    library = Library(passage("Out (9).", "x"))
    ranked = [passage("Low (1).", "a"), passage("Mid (4).", "b"), passage("High (8).", "c")]
    found = Corrector(config(), WordGrader(), library).correct(QUESTION, ranked)
    assert (found.action, found.searches, library.asked) == ("correct", 0, [])
    assert texts(found.context) == ["High (8).", "Mid (4)."]
    assert texts(found.ranked) == ["High (8).", "Mid (4).", "Low (1)."]
    assert [one.score for one in found.ranked] == [0.8, 0.4, 0.1]


def test_ambiguous_uses_both() -> None:
    library = Library(passage("Out (9).", "x"), passage("Bad (0).", "y"))
    ranked = [passage("Low (1).", "a"), passage("Mid (4).", "b")]
    found = Corrector(config(), WordGrader(), library).correct(QUESTION, ranked)
    assert (found.action, found.searches) == ("ambiguous", 1)
    assert library.asked == [(QUESTION, 6)]
    assert texts(found.context) == ["Out (9).", "Mid (4)."]
    assert texts(found.ranked) == ["Out (9).", "Mid (4).", "Low (1).", "Bad (0)."]


def test_incorrect_is_replaced() -> None:
    library = Library(passage("Low (1).", "a"), passage("Out (5).", "x"), passage("Bad (0).", "y"))
    ranked = [passage("None (0).", "b"), passage("Low (1).", "a")]
    found = Corrector(config(), WordGrader(), library).correct(QUESTION, ranked)
    assert found.action == "incorrect"
    assert texts(found.context) == ["Out (5)."]
    assert texts(found.ranked) == ["Out (5).", "Bad (0).", "Low (1).", "None (0)."]


def test_context_is_never_empty() -> None:
    ranked = [passage("None (0).", "a"), passage("Low (1).", "b")]
    nothing = Corrector(config(), WordGrader(), Library()).correct(QUESTION, ranked)
    assert texts(nothing.context) == ["Low (1).", "None (0)."]
    worse = Corrector(config(), WordGrader(), Library(passage("Bad (0).", "x"))).correct(QUESTION, ranked)
    assert texts(worse.context) == ["Bad (0)."]
    assert Corrector(config(), WordGrader(), Library()).correct(QUESTION, []).context == ()


def test_nothing_without_a_grade_is_corrected() -> None:
    ranked = [passage("(?) one", "a", score=2.0), passage("(?) two", "b", score=1.0)]
    library = Library(passage("Out (9).", "x"))
    found = Corrector(config(), WordGrader(), library, top_k=1).correct(QUESTION, ranked)
    assert (found.action, library.asked) == ("ungraded", [])
    assert found.ranked == tuple(ranked)
    assert found.context == tuple(ranked[:1])


def test_passage_without_a_grade_stands_behind_the_others_whole() -> None:
    ranked = [passage("(?) a. b. c. d.", "a"), passage("High (8).", "b")]
    found = Corrector(config(), WordGrader(), Library()).correct(QUESTION, ranked)
    assert texts(found.context) == ["High (8).", "(?) a. b. c. d."]


def test_rounds_go_wider_with_other_words_until_one_is_good() -> None:
    far = [passage(f"No (0) {number}.", f"x{number}") for number in range(12)]
    library = Library(*far, passage("Out (9).", "y"))
    asked = []

    def rewrite(question: str) -> str | None:
        asked.append(question)
        return question + "!" if len(asked) < 3 else " "

    ranked = [passage("Low (1).", "a"), passage("Low (2).", "b")]
    found = Corrector(config(rounds=4, widen=2.0), WordGrader(), library, rewrite).correct(QUESTION, ranked)
    assert library.asked == [(QUESTION + "!", 4), (QUESTION + "!!", 8), (QUESTION + "!!", 16)]
    assert asked == [QUESTION, QUESTION + "!", QUESTION + "!!"]
    assert (found.searches, texts(found.context)) == (3, ["Out (9)."])


def test_no_passage_is_graded_twice() -> None:
    grader = WordGrader()
    library = Library(*(passage(f"No (0) {number}.", f"x{number}") for number in range(9)))
    Corrector(config(rounds=3), grader, library).correct(QUESTION, [passage("Low (1).", "a")])
    assert len(grader.asked) == len(set(grader.asked)) == 10


def test_candidates_bound_what_is_graded() -> None:
    grader = WordGrader()
    ranked = [passage("Mid (7).", "a"), passage("Low (1).", "b"), passage("High (9).", "c")]
    few = config(grader=CrossEncoder(model="m", candidates=2).model_dump())
    found = Corrector(few, grader, Library()).correct(QUESTION, ranked)
    assert grader.asked == ["Mid (7).", "Low (1)."]
    assert texts(found.ranked) == ["Mid (7).", "Low (1).", "High (9)."]
    assert texts(found.context) == ["Mid (7)."]


TEXT = "Intro one. Intro two. The deposit (8). It is due. Noise one. Noise two. Paid (4). Back. End one. End two."


def test_refined_passage_is_its_good_strips_with_their_neighbours() -> None:
    whole = passage(TEXT, start=104)
    grader = WordGrader()
    found = Corrector(config(), grader, Library()).correct(QUESTION, [whole])
    assert texts(found.context) == ["The deposit (8). It is due. ", "Paid (4). Back. "]
    assert [(one.start, one.end, one.score) for one in found.context] == [(126, 154, 0.8), (176, 192, 0.4)]
    assert all(one.text == TEXT[one.start - 104 : one.end - 104] for one in found.context)
    assert found.ranked == (passage(TEXT, start=104, score=0.8),)
    near = Corrector(config(lower=0.0), grader, Library()).correct(QUESTION, [whole])
    assert [(one.start, one.end) for one in near.context] == [(104, 104 + len(TEXT))]
    plain = Corrector(config(refine=False), grader, Library()).correct(QUESTION, [whole])
    assert texts(plain.context) == [TEXT]


def test_passage_stays_whole_where_no_strip_is_good() -> None:
    class Whole(WordGrader):
        def scores(self, question: str, passages: Sequence[str]) -> list[float]:
            return [0.9 if text == TEXT else 0.0 for text in passages]

    found = Corrector(config(), Whole(), Library()).correct(QUESTION, [passage(TEXT)])
    assert texts(found.context) == [TEXT]


def test_top_k_counts_passages_and_refines_no_more_than_it_needs() -> None:
    grader = WordGrader()
    ranked = [passage(TEXT, f"d{number}") for number in range(6)]
    found = Corrector(config(), grader, Library(), top_k=2).correct(QUESTION, ranked)
    assert [one.document for one in found.context] == ["d0", "d0", "d1", "d1"]
    assert len(grader.asked) == 6 + 2 * 5


def test_budget_is_filled_with_refined_text() -> None:
    ranked = [passage(TEXT, f"d{number}") for number in range(6)]
    found = Corrector(config(), WordGrader(), Library(), budget=ContextBudget(characters=100)).correct(QUESTION, ranked)
    assert sum(len(one.text) for one in found.context) == 100
    assert [one.document for one in found.context] == ["d0", "d0", "d1", "d1", "d2"]


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from("ab. \n\r\t!?é\U0001f469\u200d"), min_size=1, max_size=120),
    keep=st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_strips_tile_their_passage_and_recompose_exactly(text: str, keep: list[bool]) -> None:
    whole = passage(text, start=7)
    parts = strips(whole)
    assert "".join(texts(parts)) == text
    assert [one.start for one in parts] == [7, *(one.end for one in parts[:-1])]
    for one in recomposed(keep[: len(parts)], parts):
        assert one.text == text[one.start - 7 : one.end - 7]
    if text.strip():
        assert recomposed([True] * len(parts), parts) == [whole]


def test_neighbours_have_the_better_grade_of_both() -> None:
    parts = [passage("ab", start=0, score=0.4), passage("cd", start=2, score=0.9), passage("ef", start=4, score=0.5)]
    assert recomposed([True, True, True], parts) == [passage("abcdef", score=0.9)]


def test_by_grade_keeps_the_order_of_equals() -> None:
    marked = [passage(text, score=score) for text, score in zip("abcd", (0.1, NAN, 0.5, 0.1), strict=True)]
    assert texts(by_grade(marked)) == ["c", "a", "d", "b"]


def planted(random_: random.Random, number: int) -> tuple[Question, list[Passage], list[Passage]]:
    """(question, a list of 20 with the answer somewhere among distractors, or not in it; all passages)."""
    answer = passage(f"Topic {number} begins. Some words. The answer ({random_.randint(6, 9)}). It ends. Tail.", "gold")
    near = [passage(f"Near {i} ({random_.randint(0, 3)}). And more. Words. Again.", f"n{i}") for i in range(39)]
    everything = [*near]
    everything.insert(random_.randrange(40), answer)
    start = answer.text.index("The answer")
    gold = (Span("gold", start, answer.text.index(" It ends")),)
    return Question(str(number), str(number), QUESTION, gold, ("gold",)), everything[:20], everything


def test_corrected_context_is_at_least_as_precise_as_plain_with_planted_distractors() -> None:
    random_ = random.Random(0)
    plain, corrected = [], []
    for number in range(60):
        question, ranked, everything = planted(random_, number)
        plain.append(Answered(question, tuple(ranked), tuple(cut(ranked, 5))))
        found = Corrector(config(), WordGrader(), Library(*everything), top_k=5).correct(QUESTION, ranked)
        corrected.append(Answered(question, found.ranked, found.context))
    evaluator = RetrievalEvaluator(RetrievalConfig(k=(5,)))
    before, after = (
        {score.name: score for score in evaluator.evaluate_answers(some, "tune", Tools())}
        for some in (plain, corrected)
    )
    for name in ("span_precision", "span_recall", "span_iou", "span_mrr", "span_map", "document_precision"):
        items = after[name].items, before[name].items
        assert items[0] is not None
        assert items[1] is not None
        assert (items[0] >= items[1]).all(), name
    assert after["span_recall"].value == 1
    assert after["span_precision"].value > 2 * before["span_precision"].value
    assert after["span_recall.at_5"].value == 1


def test_rewriting_needs_a_generator() -> None:
    section = {"corpus": "c", "questions": "q", "retrieve": {"type": "bm25"}, "correct": config(rewrite="generator")}
    with pytest.raises(ValueError, match="asks `generate`, which is none"):
        RagConfig.model_validate(section)
    RagConfig.model_validate({**section, "generate": {"type": "local", "base_model": "m"}})


class AskingGrader:
    """A grader that asks a model, as the real ones do."""

    def __init__(self, config: CrossEncoder, calls: Calls) -> None:
        self._calls = calls

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        items = [[question, text] for text in passages]
        return [float(value) for value in self._calls.ask("rerank", {"kind": "grader"}, "scores", items)]


class MarkHost:
    """A host whose one model grades by marks."""

    def ask(
        self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]
    ) -> list[tuple[bytes, Cost]]:
        return [(str(WordGrader._grade(text)).encode(), Cost(0.5, 10)) for _, text in items]


def test_all_that_the_loop_asks_is_its_own_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RERANKERS, "cross_encoder", f"{__name__}:AskingGrader")
    chunks = [Chunk(f"d{i}", 0, len(text), text) for i, text in enumerate(
        ("deposit cost (1)", "deposit rent (2)", "lift (0)", "the deposit does cost this much (9)", "heat (0)")
    )]  # fmt: skip
    calls = Calls(MarkHost(), None, "owner")
    section = {
        "corpus": "c", "questions": "q", "retrieve": {"type": "bm25", "top_k": 2},
        "correct": config(grader=CrossEncoder(model="m", candidates=2).model_dump()),
    }  # fmt: skip
    corrector = build_corrector(RagConfig.model_validate(section), chunks, calls)
    ranked = [passage_of(chunk, 0.0) for chunk in chunks[:2]]
    found = corrector.correct(QUESTION, ranked)
    assert (found.action, found.searches) == ("incorrect", 1)
    assert texts(found.context) == [chunks[3].text]
    assert set(calls.usage) == {"correct"}
    usage = calls.usage["correct"]
    # Two passages, the other search, and the passages that it found beyond them.
    graded = usage.calls - 1
    assert graded >= 3
    assert usage.spent.tokens == 10 * graded
    assert calls.under("other").usage is calls.usage
