"""Retrieval metrics: by hand, by laws, and against ranx where they must agree with it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators import build_evaluator
from evaluators.answers import Answered, Passage, Question, Span, Tools
from evaluators.base import Score
from evaluators.config import RetrievalConfig
from evaluators.retrieval import RetrievalEvaluator, first_characters, judge_documents, judge_spans

TEXT = "".join(chr(97 + number % 26) for number in range(400))


def passage(document: str, start: int, end: int) -> Passage:
    return Passage(document, start, end, TEXT[start:end])


def question(*spans: tuple[str, int, int], documents: tuple[str, ...] | None = None, name: str = "q") -> Question:
    named = tuple(dict.fromkeys(span[0] for span in spans)) if documents is None else documents
    return Question(name, f"g {name}", "What?", tuple(Span(*span) for span in spans), named)


def scores(gold: Question, *passages: Passage) -> dict[str, float]:
    return {score.name: score.value for score in evaluate([Answered(gold, (), passages)])}


def evaluate(answered: Sequence[Answered], **settings: tuple[int, ...]) -> tuple[Score, ...]:
    return RetrievalEvaluator(RetrievalConfig(**settings)).evaluate_answers(answered, "tune", Tools())


def test_characters_by_hand() -> None:
    gold = question(("a", 100, 150), ("a", 200, 250))
    found = scores(gold, passage("a", 120, 220), passage("a", 110, 130), passage("b", 100, 150))
    # Gold held: 110..150 and 200..220; retrieved: a 110..220 and b 100..150; gold or retrieved: 160 + the 40 missed.
    assert found["span_recall"] == pytest.approx(60 / 100)
    assert found["span_precision"] == pytest.approx(60 / 160)
    assert found["span_iou"] == pytest.approx(60 / 200)


def test_gold_spans_that_overlap_count_once() -> None:
    gold = question(("a", 100, 150), ("a", 140, 160))
    assert scores(gold, passage("a", 100, 150))["span_recall"] == pytest.approx(50 / 60)


def test_ranks_by_hand() -> None:
    gold = question(("a", 0, 40), ("b", 0, 60))
    found = scores(gold, passage("c", 0, 50), passage("a", 0, 100), passage("b", 0, 20), passage("b", 20, 60))
    assert found["span_mrr"] == pytest.approx(1 / 2)
    # Gains 0, 40, 20, 40; the ideal holds b's 60, then a's 40.
    dcg = 40 / math.log2(3) + 20 / math.log2(4) + 40 / math.log2(5)
    assert found["span_ndcg"] == pytest.approx(dcg / (60 / math.log2(2) + 40 / math.log2(3)))
    # a's span is found at rank 2 (1 of 2 relevant); b's at rank 4 (a, and b's both passages: 3 of 4).
    assert found["span_map"] == pytest.approx((1 / 2 + 3 / 4) / 2)


@pytest.mark.parametrize(
    ("start", "end", "relevant"),
    [(0, 125, True), (0, 124, False), (145, 155, True), (145, 156, False), (150, 160, False), (110, 112, True)],
)
def test_relevant_is_half_of_a_span_or_half_gold(start: int, end: int, relevant: bool) -> None:
    gold = question(("a", 100, 150))
    assert scores(gold, passage("a", start, end))["span_mrr"] == float(relevant)


def test_a_span_is_found_when_exactly_half_of_it_is_held() -> None:
    gold = question(("a", 0, 100))
    assert scores(gold, passage("a", 0, 50))["span_map"] == 1
    assert scores(gold, passage("a", 0, 49))["span_map"] == 0


def test_a_span_in_small_pieces_is_found_when_half_of_it_is_held() -> None:
    gold = question(("a", 0, 100))
    found = scores(gold, *(passage("a", start, start + 20) for start in range(0, 100, 20)))
    assert found["span_mrr"] == 1
    assert found["span_map"] == 1
    assert found["span_recall"] == 1
    assert 0 < found["span_ndcg"] < 1


def test_same_passage_twice_adds_nothing_but_a_rank() -> None:
    gold = question(("a", 0, 50), ("b", 0, 50))
    once = scores(gold, passage("a", 0, 50), passage("b", 0, 50))
    twice = scores(gold, passage("a", 0, 50), passage("a", 0, 50), passage("b", 0, 50))
    assert once["span_ndcg"] == 1
    assert twice["span_ndcg"] < 1
    for name in ("span_recall", "span_precision", "span_iou", "document_ndcg", "document_precision"):
        assert once[name] == twice[name] == 1


def test_documents_by_hand() -> None:
    recall, precision, mrr, ndcg, average = judge_documents(("a", "b", "c"), ["x", "a", "x", "a", "b"])
    assert (recall, precision, mrr) == (2 / 3, 2 / 3, 1 / 2)
    assert average == pytest.approx((1 / 2 + 2 / 3) / 3)
    gain, ideal = 1 / math.log2(3) + 1 / 2, 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg == pytest.approx(gain / ideal)


def test_nothing_retrieved_is_zero_and_no_gold_is_unscored() -> None:
    assert set(scores(question(("a", 0, 10))).values()) == {0.0}
    bare = scores(question(documents=("a",)), passage("a", 0, 10))
    assert all(math.isnan(value) for name, value in bare.items() if name.startswith("span_"))
    assert {value for name, value in bare.items() if name.startswith("document_")} == {1.0}
    assert all(map(math.isnan, scores(question()).values()))


def test_first_characters_cuts_the_last_passage() -> None:
    ranked = (passage("a", 0, 100), passage("b", 50, 150))
    assert first_characters(ranked, 130) == (ranked[0], passage("b", 50, 80))
    assert first_characters(ranked, 100) == ranked[:1]
    assert first_characters(ranked, 500) == ranked
    assert first_characters(ranked, 1) == (passage("a", 0, 1),)
    assert first_characters((), 5) == ()


ranges = st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.integers(1, 60)).map(
    lambda one: (one[0], one[1], one[1] + one[2])
)


@given(st.lists(ranges, min_size=1, max_size=5), st.lists(ranges, max_size=8))
def test_character_metrics_are_those_of_sets_of_characters(
    gold: list[tuple[str, int, int]], found: list[tuple[str, int, int]]
) -> None:
    def characters(some: list[tuple[str, int, int]]) -> set[tuple[str, int]]:
        return {(document, place) for document, start, end in some for place in range(start, end)}

    wanted, held = characters(gold), characters(found)
    got = scores(question(*gold), *(passage(*one) for one in found))
    assert got["span_recall"] == pytest.approx(len(wanted & held) / len(wanted))
    assert got["span_precision"] == pytest.approx(len(wanted & held) / len(held) if held else 0)
    assert got["span_iou"] == pytest.approx(len(wanted & held) / len(wanted | held))
    assert all(0 <= value <= 1 + 1e-12 for value in got.values())


@given(st.lists(ranges, min_size=1, max_size=5), st.lists(ranges, max_size=8), st.randoms(use_true_random=False))
def test_no_list_beats_one_whole_document_after_the_other(
    gold: list[tuple[str, int, int]], found: list[tuple[str, int, int]], random: object
) -> None:
    sizes: dict[str, set[int]] = {}
    for document, start, end in gold:
        sizes.setdefault(document, set()).update(range(start, end))
    best = sorted(sizes, key=lambda document: -len(sizes[document]))
    ideal = scores(question(*gold), *(passage(document, 0, 130) for document in best))
    for name in ("span_recall", "span_mrr", "span_ndcg", "span_map", "document_ndcg", "document_map"):
        assert ideal[name] == pytest.approx(1)
        assert scores(question(*gold), *(passage(*one) for one in found))[name] <= 1 + 1e-12


ORACLE = json.loads((Path(__file__).resolve().parents[1] / "oracles" / "retrieval.json").read_text(encoding="utf-8"))


def test_documents_agree_with_ranx() -> None:
    assert len(ORACLE["documents"]) >= 50
    for case in ORACLE["documents"]:
        found = dict(
            zip(
                ("recall", "precision", "mrr", "ndcg", "map"),
                judge_documents(case["gold"], case["retrieved"]),
                strict=True,
            )
        )
        assert found == pytest.approx(case["values"])


def test_spans_agree_with_ranx_where_a_passage_is_a_span() -> None:
    """One span a document, and its length as its grade: then passages are what ranx calls documents."""
    assert len(ORACLE["spans"]) >= 50
    for case in ORACLE["spans"]:
        gold = question(*((document, 50, 50 + length) for document, length in case["gold"].items()))
        lengths = {**dict.fromkeys(case["ranked"], 30), **case["gold"]}
        found = scores(gold, *(passage(document, 50, 50 + lengths[document]) for document in case["ranked"]))
        for name in ("mrr", "ndcg", "map"):
            assert found[f"span_{name}"] == pytest.approx(case["values"][name])


def test_evaluator_reports_every_cut_alike_and_aligns_its_items() -> None:
    gold = (question(("a", 0, 100), name="one"), question(documents=(), name="two"))
    ranked = (passage("b", 0, 100), passage("a", 0, 50), passage("a", 50, 100))
    answered = [Answered(one, ranked, ranked[:1]) for one in gold]
    found = evaluate(answered, k=(2,), characters=(175,))
    by_name = {score.name: score for score in found}
    assert len(by_name) == 11 * 3
    assert set(by_name) == set(RetrievalConfig(k=(2,), characters=(175,)).reports())
    for name, value in (("", 0.0), (".at_2", 0.5), (".at_175_characters", 0.75)):
        score = by_name[f"span_recall{name}"]
        assert score.value == value
        assert (score.n, score.unscored, score.key) == (1, 1, f"tune/span_recall{name}")
        assert score.item_set is not None
        assert score.item_set.ids == ("one", "two")
        assert score.item_set.groups == ("g one", "g two")
        assert score.items is not None
        assert math.isnan(score.items[1])
    assert by_name["document_precision.at_2"].value == 0.5


@given(
    st.lists(ranges, min_size=1, max_size=4),
    st.lists(ranges, max_size=9),
    st.integers(0, 5),
    st.integers(1, 9),
    st.integers(1, 200),
    st.sampled_from(("beginning", "cut", "other")),
)
def test_cuts_that_share_a_walk_are_scored_as_alone(
    gold: list[tuple[str, int, int]],
    found: list[tuple[str, int, int]],
    k: int,
    at: int,
    characters: int,
    kind: str,
) -> None:
    ranked = tuple(passage(*one) for one in found)
    context = {"beginning": ranked[:k], "cut": first_characters(ranked, 40 * k + 1), "other": ranked[1 : k + 1]}[kind]
    one = Answered(question(*gold), ranked, context)
    by_name = {score.name: score.value for score in evaluate([one], k=(at,), characters=(characters,))}
    names = [name for name in RetrievalConfig.metrics if name.startswith("span_")]
    cuts = {"": context, f".at_{at}": ranked[:at], f".at_{characters}_characters": first_characters(ranked, characters)}
    for cut, passages in cuts.items():
        alone = judge_spans(one.question, passages)
        assert [by_name[name + cut] for name in names] == pytest.approx(list(alone), abs=1e-6)


def test_table_builds_it() -> None:
    assert isinstance(build_evaluator({"type": "retrieval", "k": [5]}), RetrievalEvaluator)
