"""The handbook of the RAG demo: its questions are what the source makes of it, and every gold span is its text."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "examples" / "handbook"
QUESTIONS = ROOT / "examples" / "handbook_questions.jsonl"


@pytest.fixture(scope="module")
def builder() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location(
        "build_handbook_questions", ROOT / "tools" / "handbook" / "build_questions.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]


def pages() -> list[Path]:
    return [path for path in CORPUS.rglob("*") if path.is_file()]


def read(document: str) -> str:
    with (CORPUS / document).open(encoding="utf-8", newline="") as file:
        return file.read()


def test_committed_questions_are_what_the_source_makes(builder: ModuleType) -> None:
    assert QUESTIONS.read_text(encoding="utf-8") == builder.lines()


def test_every_span_is_its_text_and_every_document_exists() -> None:
    for row in rows():
        for span in row["spans"]:
            assert Path(span["document"]).suffix in (".md", ".txt")
            assert read(span["document"])[span["start"] : span["end"]] == span["text"] != ""
        assert row["documents"] == sorted({span["document"] for span in row["spans"]})


def test_there_are_enough_pages_and_questions() -> None:
    questions = rows()
    assert len(pages()) >= 40
    assert {path.suffix for path in pages()} == {".md", ".txt", ".html"}
    assert all(2500 <= len(read(str(path.relative_to(CORPUS)))) <= 6000 for path in pages())
    assert len(questions) >= 100
    assert len({row["id"] for row in questions}) == len({row["question"] for row in questions}) == len(questions)
    assert all(1 <= len(row["answer"].split()) <= 15 for row in questions)
    assert sum(len(row["spans"]) > 1 for row in questions) >= len(questions) // 5


def test_links_between_pages_lead_somewhere() -> None:
    import re

    for path in pages():
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).is_file(), f"{path.name} links to {target}"


def test_a_quote_is_found_across_line_ends_and_must_stand_once(builder: ModuleType) -> None:
    text = "Stop at the\r\n   board. Stop at\nthe gate."
    assert builder.locate("at the board.", text) == (5, 22)
    for quote, times in (("at the", 2), ("the bridge", 0), ("  ", 0)):
        with pytest.raises(builder.QuoteError, match=f"stands {times} times"):
            builder.locate(quote, text)


def test_overlapping_places_count_as_several(builder: ModuleType) -> None:
    with pytest.raises(builder.QuoteError, match="stands 2 times"):
        builder.locate("ho ho", "ho ho ho")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "hard"}, "kind 'hard' is not one of plain"),
        ({"kind": "two"}, "needs two spans, has 1"),
        ({"answer": 900}, "answer is 900, write it in quotes"),
        ({"spans": [["page.html", "ten"]]}, "page.html is not a .md or .txt document"),
        ({"spans": [["gone.md", "ten"]]}, "gone.md is not a .md or .txt document"),
        ({"spans": [["page.md", "eleven"]]}, "q1, page.md: stands 0 times"),
    ],
)
def test_faults_of_the_source_are_named(
    builder: ModuleType, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "page.md").write_text("Wait ten minutes.", encoding="utf-8")
    (tmp_path / "page.html").write_text("<p>Wait ten minutes.</p>", encoding="utf-8")
    entry = {"id": "q1", "kind": "plain", "question": "How long?", "answer": "ten", "spans": [["page.md", "ten"]]}
    assert builder.resolve(entry, tmp_path)["spans"] == [{"document": "page.md", "start": 5, "end": 8, "text": "ten"}]
    with pytest.raises(builder.QuoteError, match=message):
        builder.resolve(entry | change, tmp_path)
