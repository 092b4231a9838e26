"""Chunks: laws that every chunker keeps on every text, and what each one cuts."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.rag import CHUNKERS
from pipelines.rag.base import Chunk, Chunker, Document
from pipelines.rag.chunk import build_chunker, chunk_documents
from pipelines.rag.stages import FixedCharacters

BUILD: dict[str, Callable[[], Chunker]] = {
    "fixed_characters": lambda: build_chunker(FixedCharacters(size=16)),
    "fixed_characters+overlap": lambda: build_chunker(FixedCharacters(size=20, overlap=19)),
}
PLAIN = ("fixed_characters",)
"""Those without an overlap."""

NASTY = (
    "",
    " \n\t\r\n ",
    "x",
    "One. Two! Three? Four",
    "Dr. A. Smith paid 3.5 euros, e.g. for tea. Then he left.\n\nNew paragraph without end",
    "line\r\nline\r\n\r\nparagraph\r\rold mac\rline",
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\ttab\ttab\n",
    "# Title\ntext text\n- one\n- two\n  - three\n\n```\ncode. code\n```\n",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466" * 8 + "\U0001f1e9\U0001f1ea e\u0301\u0301 a\u0308",
    "\ufeffmark\u00a0no break\u2028line\u2029paragraph\x0bvertical\x0cform\x85next",
    "\u6628\u5929\u4e0b\u96e8\u3002\u4eca\u5929\u6674\u3002\u771f\u597d\uff01" * 6,
    "\u0645\u0631\u062d\u0628\u0627. \u05e9\u05dc\u05d5\u05dd\u061f " * 5,
    "z" * 300,
    "word " * 100,
    "\n" * 50 + "a" + "\n" * 50,
    "a.b.c... d?!? \"e.\" (f.) 'g!' h\u2026 i",
)
characters = st.text(
    st.one_of(
        st.sampled_from(" \n\r\t.!?|#-\"'\u3002\u2028\x0c\u200d\u0301\ufeff\x85aA1\U0001f469\u00df"),
        st.characters(exclude_categories=("Cs",)),
    ),
    max_size=300,
)


def check(chunks: list[Chunk], text: str) -> None:
    """The contract of `Chunker`, and that only blanks are lost."""
    held = [False] * len(text)
    for chunk in chunks:
        assert chunk.document == "d"
        assert 0 <= chunk.start < chunk.end <= len(text)
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.text.strip()
        held[chunk.start : chunk.end] = [True] * (chunk.end - chunk.start)
    assert all(a.start < b.start and a.end < b.end for a, b in itertools.pairwise(chunks))
    assert all(inside or character.isspace() for inside, character in zip(held, text, strict=True))


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("text", NASTY)
def test_contract_on_nasty_texts(name: str, text: str) -> None:
    check(BUILD[name]().chunk(Document("d", text)), text)


@pytest.mark.parametrize("name", BUILD)
@settings(max_examples=60, deadline=None)
@given(text=characters)
def test_contract_on_any_text(name: str, text: str) -> None:
    chunks = BUILD[name]().chunk(Document("d", text))
    check(chunks, text)
    assert BUILD[name]().chunk(Document("d", text)) == chunks


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=60, deadline=None)
@given(text=characters)
def test_chunks_without_overlap_tile_the_document(name: str, text: str) -> None:
    chunks = BUILD[name]().chunk(Document("d", text))
    edges = [(0, 0), *((chunk.start, chunk.end) for chunk in chunks), (len(text), len(text))]
    assert all(not text[a[1] : b[0]].strip() and a[1] <= b[0] for a, b in itertools.pairwise(edges))


def test_every_chunker_is_held_to_the_contract() -> None:
    assert {name.partition("+")[0] for name in BUILD} == set(CHUNKERS)
    assert set(PLAIN) == set(CHUNKERS)


def test_corpus_is_cut_document_by_document() -> None:
    documents = [Document("a", "x" * 20), Document("b", "  "), Document("c", "y" * 16)]
    chunks = chunk_documents(build_chunker(FixedCharacters(size=16)), documents)
    assert [(chunk.document, chunk.start, chunk.end) for chunk in chunks] == [("a", 0, 16), ("a", 16, 20), ("c", 0, 16)]


def test_fixed_characters_leave_no_window_inside_another() -> None:
    chunks = build_chunker(FixedCharacters(size=20, overlap=10)).chunk(Document("d", "x" * 40))
    assert [(chunk.start, chunk.end) for chunk in chunks] == [(0, 20), (10, 30), (20, 40)]
