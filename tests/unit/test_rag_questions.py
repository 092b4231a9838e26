"""Questions: their gold against the corpus, their splits and order, and every kind of broken row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluators.answers import Span
from pipelines.rag.config import Corpus, Questions, RagConfig
from pipelines.rag.corpus import CorpusText, load_corpus
from pipelines.rag.questions import QuestionSplits, count_tune, load_questions, question_hash
from pipelines.stage import UserError

TEXT = "The deposit is 300 euros.\r\nIt is paid back. It is paid back. \U0001f4b6 End."


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusText:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "rent.md").write_bytes(TEXT.encode())
    (folder / "blank.md").write_text("")
    return load_corpus(Corpus(path=str(folder)))


def write(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def load(
    tmp_path: Path, rows: Sequence[Mapping[str, Any] | str], corpus: CorpusText | None, **settings: Any
) -> QuestionSplits:
    path = write(tmp_path / "questions.jsonl", rows)
    return load_questions(Questions(path=path, **settings), corpus, seed=0)


def refusal(
    tmp_path: Path, rows: Sequence[Mapping[str, Any] | str], corpus: CorpusText | None = None, **settings: Any
) -> str:
    with pytest.raises(UserError) as error:
        load(tmp_path, rows, corpus, **settings)
    return str(error.value)


def many(n: int) -> list[dict[str, Any]]:
    return [{"id": f"q{number}", "question": f"Question {number}?", "topic": number // 3} for number in range(n)]


def test_row_with_every_kind_of_gold(tmp_path: Path, corpus: CorpusText) -> None:
    span = {"document": "rent", "start": 15, "end": 24, "text": "300 euros"}
    row = {"id": 3, "question": "How much?", "answer": "300", "spans": [span], "documents": "rent.md"}
    (question,) = load(tmp_path, [row], corpus).tune
    assert question.id == "3"
    assert question.text == "How much?"
    assert question.answer == "300"
    assert question.spans == (Span("rent.md", 15, 24),)
    assert question.documents == ("rent.md",)


def test_gold_is_what_a_row_has(tmp_path: Path, corpus: CorpusText) -> None:
    rows = [
        {"question": "a?", "spans": None, "documents": [], "answer": " "},
        {"question": "b?", "spans": [{"document": "rent.md", "start": 0, "end": 3}]},
        {"question": "c?", "documents": ["rent", "rent.md"]},
    ]
    splits = load(tmp_path, rows, corpus)
    found = {question.text: question for question in splits.tune}
    assert (found["a?"].spans, found["a?"].documents, found["a?"].answer) == ((), (), None)
    assert found["b?"].documents == ("rent.md",)
    assert found["c?"].documents == ("rent.md",)
    assert any("1 questions have neither gold nor a reference answer" in warning for warning in splits.warnings)


def test_without_a_corpus_gold_stays_as_it_is_written(tmp_path: Path) -> None:
    (question,) = load(tmp_path, [{"question": "a?", "documents": "nowhere"}], None).tune
    assert question.documents == ("nowhere",)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"start": 60, "end": 75}, "span 0 of 'rent.md': [60, 75) ends outside its document, which has 67 characters"),
        (
            {"start": 60, "end": 75, "text": "300 euros"},
            "which has 67 characters; that stands once, at [15, 24)",
        ),
        (
            {"start": 14, "end": 23, "text": "300 euros"},
            "at [14, 23) stands ' 300 euro', but its text is '300 euros'; that stands once, at [15, 24)",
        ),
        ({"start": 0, "end": 16, "text": "It is paid back."}, "that stands at several places"),
        ({"start": 0, "end": 6, "text": "euros.\nIt"}, r"the document has \r\n, which counts as two characters"),
        ({"start": 0, "end": 3, "text": "nix"}, "that stands nowhere in the document"),
    ],
)
def test_span_that_is_not_what_stands_there(
    tmp_path: Path, corpus: CorpusText, span: dict[str, Any], message: str
) -> None:
    assert len(TEXT) == 67
    row = {"id": "q7", "question": "a?", "spans": [{"document": "rent", **span}]}
    found = refusal(tmp_path, [{"question": "b?"}, row], corpus)
    assert "questions.jsonl, line 2 (question 'q7')" in found
    assert message in found


def test_span_told_by_its_text_alone_is_looked_for(tmp_path: Path, corpus: CorpusText) -> None:
    rows = [{"question": "a?", "spans": [{"document": "rent", "text": text}]} for text in ("300 euros", "euros.\r\nIt")]
    found = [span for question in load(tmp_path, rows, corpus).tune for span in question.spans]
    assert sorted((span.start, span.end) for span in found) == [(15, 24), (19, 29)]
    unplaced = load(tmp_path, rows, None).tune
    assert len({question.id for question in unplaced}) == 2
    for text, message in (
        ("It is paid back.", "its text is 'It is paid back.'; that stands at several places; give start and end"),
        ("nix", "that stands nowhere in the document"),
    ):
        row = {"question": "b?", "spans": [{"document": "rent", "text": text}]}
        assert message in refusal(tmp_path, [*rows, row], corpus)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"documents": "rnt.md"}, "the corpus has no document 'rnt.md'; did you mean 'rent.md'?"),
        ({"documents": "/x/y/z"}, "the corpus has no document '/x/y/z'; it has 'rent.md'"),
        ({"documents": "blank.md"}, "the document 'blank.md' has no text"),
        ({"spans": [{"document": "other", "start": 0, "end": 1}]}, "the corpus has no document 'other'"),
    ],
)
def test_gold_that_is_not_in_the_corpus(tmp_path: Path, corpus: CorpusText, row: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path, [{"question": "a?", **row}], corpus)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1, 2]", "an object is wanted"),
        ('{"question": ', "not JSON"),
        ({"query": "a?"}, "has no key 'question'"),
        ({"question": "  "}, "'question' must be a question"),
        ({"question": 3}, "'question' must be a question"),
        ({"question": "a?", "answer": 42}, "'answer' must be text, but is 42"),
        ({"question": "a?", "id": ""}, "'id' must be the question's id"),
        ({"question": "a?", "id": 1.5}, "'id' must be the question's id"),
        ({"question": "a?", "spans": {"start": 0}}, "'spans' must be a list"),
        ({"question": "a?", "spans": [[0, 3]]}, "span 0 must be an object"),
        ({"question": "a?", "spans": [{"start": 0, "end": 3}]}, "span 0 names no document"),
        ({"question": "a?", "spans": [{"document": "d", "start": 0}]}, "span 0: 'end' must be a whole number"),
        ({"question": "a?", "spans": [{"document": "d", "start": -1, "end": 3}]}, "span 0: 'start' must be"),
        ({"question": "a?", "spans": [{"document": "d", "start": True, "end": 3}]}, "span 0: 'start' must be"),
        ({"question": "a?", "spans": [{"document": "d", "start": 3, "end": 3}]}, "[3, 3) holds nothing"),
        ({"question": "a?", "spans": [{"document": "d", "start": 0, "end": 3, "text": 1}]}, "'text' must be what"),
        ({"question": "a?", "spans": [{"document": "d", "text": ""}]}, "'text' must be what"),
        ({"question": "a?", "spans": [{"document": "d", "end": 3, "text": "x"}]}, "span 0: 'start' must be"),
        ({"question": "a?", "documents": [{"id": "x"}]}, "'documents' must be a document's id"),
        ('{"question": "a\\ud800"}', "half of a surrogate pair"),
        ({"question": "b?", "id": "first"}, "its id 'first' is that of"),
        ({"question": "ok?"}, "ok"),
    ],
)
def test_bad_row_is_named_by_file_and_line(tmp_path: Path, row: Any, message: str) -> None:
    rows = [{"question": "First?", "id": "first"}, row]
    if message == "ok":
        assert len(load(tmp_path, rows, None).tune) == 2
        return
    found = refusal(tmp_path, rows)
    assert "questions.jsonl, line 2" in found
    assert message in found


def test_all_mistakes_at_once_the_first_five_in_words(tmp_path: Path, corpus: CorpusText) -> None:
    rows = [{"question": f"{number}?", "documents": f"no{number}"} for number in range(9)]
    found = refusal(tmp_path, rows, corpus).splitlines()
    assert [f"line {number}" in line for number, line in enumerate(found[:5], 1)] == [True] * 5
    assert found[5] == "... and 4 more like these"


def test_equal_rows_without_an_id_are_two_questions_of_one_id(tmp_path: Path) -> None:
    assert "line 2: its id" in refusal(tmp_path, [{"question": "a?"}, {"question": "a?"}])
    assert len(load(tmp_path, [{"question": "a?", "id": 1}, {"question": "a?", "id": 2}], None).tune) == 2


def test_empty_and_missing_files(tmp_path: Path) -> None:
    assert "holds no question" in refusal(tmp_path, [])
    with pytest.raises(UserError, match="can't be read"):
        load_questions(Questions(path=str(tmp_path / "absent.jsonl")), None, 0)
    with pytest.raises(UserError, match="can't be read"):
        load_questions(Questions(path=str(tmp_path)), None, 0)


def test_splits_are_stable_disjoint_and_whole(tmp_path: Path) -> None:
    shares = {"select": {"fraction": 0.2}, "test": {"fraction": 0.3}}
    splits = load(tmp_path, many(400), None, **shares)
    ids = {name: {question.id for question in splits.of(name)} for name in ("tune", "select", "test")}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 400
    assert 50 < len(ids["select"]) < 110
    assert 85 < len(ids["test"]) < 155
    more = load(tmp_path, [*many(500)[400:], *reversed(many(400))], None, **shares)
    for name, before in ids.items():
        assert {question.id for question in more.of(name)} & set.union(*ids.values()) == before


def test_order_is_one_fixed_random_sample_whatever_the_file_s_order(tmp_path: Path) -> None:
    rows = many(200)
    order = [question.id for question in load(tmp_path, rows, None).tune]
    assert [question.id for question in load(tmp_path, rows[::-1], None).tune] == order
    assert order != sorted(order)
    first = [int(name[1:]) for name in order[:50]]
    assert 70 < sum(first) / 50 < 130
    path = str(tmp_path / "questions.jsonl")
    assert [question.id for question in load_questions(Questions(path=path), None, 1).tune] != order
    fewer = [question.id for question in load(tmp_path, rows[:100], None).tune]
    assert fewer == [name for name in order if name in set(fewer)]


def test_group_by_keeps_questions_together(tmp_path: Path) -> None:
    splits = load(tmp_path, many(300), None, group_by="topic", test={"fraction": 0.5})
    groups = {name: {question.group for question in splits.of(name)} for name in ("tune", "test")}
    assert not groups["tune"] & groups["test"]
    assert sum(map(len, groups.values())) == 100
    found = refusal(tmp_path, [{"question": "a?"}], group_by="topic")
    assert "`questions.group_by` names the key" in found
    assert "must tell the question's group" in refusal(tmp_path, [{"question": "a?", "t": None}], group_by="t")


def test_blanks_make_no_other_question(tmp_path: Path) -> None:
    rows = [{"id": 1, "question": "a  b?\n"}, {"id": 2, "question": "a b?"}]
    assert len({question.group for question in load(tmp_path, rows, None).tune}) == 1


def test_files_of_their_own(tmp_path: Path) -> None:
    rows = many(120)
    test = write(tmp_path / "test.jsonl", rows[60:])
    splits = load(tmp_path, rows[:60], None, test={"path": test})
    assert (len(splits.tune), len(splits.test), splits.select) == (60, 60, ())
    assert splits.warnings[0].startswith("120 questions have neither")
    twice = write(tmp_path / "twice.jsonl", [{"id": "other", "question": " Question  3? "}])
    found = refusal(tmp_path, rows[:60], test={"path": twice})
    assert "twice.jsonl, line 1 (test): its question stands in" in found
    assert "line 4 too" in found
    same = write(tmp_path / "same.jsonl", [{"id": "q3", "question": "new?"}])
    assert "its id 'q3' is that of" in refusal(tmp_path, rows[:60], test={"path": same})
    grouped = write(tmp_path / "grouped.jsonl", [{"id": "z", "question": "new?", "topic": 1}])
    assert "its group stands in" in refusal(tmp_path, rows[:60], test={"path": grouped}, group_by="topic")


def test_limit_takes_the_first_of_the_file_and_none_of_the_others(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", many(70)[60:])
    splits = load(tmp_path, many(60), None, test={"path": test}, limit=20)
    assert {question.id for question in splits.tune} == {f"q{number}" for number in range(20)}
    assert len(splits.test) == 10


def test_empty_split_is_an_error_and_a_small_one_a_warning(tmp_path: Path) -> None:
    assert "questions.test is empty: a fraction of 0.001" in refusal(tmp_path, many(5), test={"fraction": 0.001})
    assert "is left for tune" in refusal(tmp_path, many(3), select={"fraction": 0.499}, test={"fraction": 0.5})
    warnings = load(tmp_path, many(60), None, test={"fraction": 0.3}).warnings
    assert any("test has" in warning and "±0." in warning for warning in warnings)


def test_changed_questions_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "questions.jsonl", many(3))
    pin = question_hash(path)
    assert len(load_questions(Questions(path=path, content_hash=pin), None, 0).tune) == 3
    write(tmp_path / "questions.jsonl", many(4))
    with pytest.raises(UserError, match="has changed since the sweep was begun"):
        load_questions(Questions(path=path, content_hash=pin), None, 0)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 80)
    | st.floats()
    | st.sampled_from(("", " ", "rent", "rent.md", "x", "\ud800")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("document", "start", "end", "text")), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.dictionaries(st.sampled_from(("id", "question", "answer", "spans", "documents", "t")), VALUES))
def test_any_row_is_a_question_or_refused_in_words(tmp_path: Path, corpus: CorpusText, row: dict[str, Any]) -> None:
    named = {"field_span_document": "t"} if "t" in row else {}
    found = outcome(tmp_path, {"question": "sound?", **row}, corpus, **named)
    if isinstance(found, str):
        assert "any.jsonl, line 1" in found
        return
    (question,) = found.tune
    for span in question.spans:
        assert 0 <= span.start < span.end <= len(corpus.texts[span.document])


def outcome(tmp_path: Path, row: dict[str, Any], corpus: CorpusText, **named: Any) -> QuestionSplits | str:
    path = tmp_path / "any.jsonl"
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(row), encoding="utf-8")
    pin = question_hash(str(path))
    try:
        return load_questions(Questions(path=str(path), content_hash=pin, **named), corpus, 0)
    except UserError as error:
        return str(error)


def test_count_needs_no_corpus(tmp_path: Path) -> None:
    path = write(tmp_path / "questions.jsonl", many(30))
    config = RagConfig.model_validate(
        {"corpus": str(tmp_path / "absent"), "questions": path, "retrieve": {"type": "bm25"}}
    )
    assert count_tune(config) == 30


def test_spans_data_loads_by_settings_alone(shared_data: Path) -> None:
    corpus = load_corpus(Corpus(path=str(shared_data / "spans" / "corpora")))
    questions = Questions(
        path=str(shared_data / "spans" / "questions.jsonl"), field_span_document="corpus", test={"fraction": 0.2}
    )
    splits = load_questions(questions, corpus, 0)
    assert len(splits.tune) + len(splits.test) == 276
    assert {document.id for document in corpus.documents} == {
        "chatlogs.md",
        "state_of_the_union.md",
        "wikitexts.md",
    }
    assert all(question.spans and len(question.documents) == 1 for question in splits.tune)


def test_docs_qa_data_loads_by_settings_alone(shared_data: Path) -> None:
    corpus = load_corpus(Corpus(path=str(shared_data / "docs_qa" / "documents.jsonl")))
    questions = Questions(path=str(shared_data / "docs_qa" / "questions.jsonl"), field_documents="gold")
    splits = load_questions(questions, corpus, 0)
    assert (len(corpus.documents), len(splits.tune)) == (232, 60)
    assert all(question.documents and question.answer for question in splits.tune)
