"""Chunks: laws that every chunker keeps on every text, and what each one cuts."""

from __future__ import annotations

import atexit
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.rag import CHUNKERS
from pipelines.rag.base import Chunk, Chunker, Document
from pipelines.rag.chunk import build_chunker, chunk_documents
from pipelines.rag.chunk_recursive import RecursiveChunker
from pipelines.rag.chunk_semantic import AMOUNTS, breakpoints, distances
from pipelines.rag.sentences import sentences
from pipelines.rag.stages import FixedCharacters, FixedTokens, Recursive, Semantic, Sentences


def spelled(texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors by letters: texts that share letters are near, and a text without letters is zero."""
    found = np.zeros((len(texts), 26), np.float32)
    for row, text in enumerate(texts):
        for character in text.lower():
            if "a" <= character <= "z":
                found[row, ord(character) - 97] += 1
    return found


def semantic(**settings: object) -> Chunker:
    return build_chunker(Semantic.model_validate({"type": "semantic", **settings}), spelled)


@lru_cache
def byte_level() -> str:
    """The folder of a byte-level BPE tokenizer, as GPT-2's kin have it: a character may be several tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["the word and the line. " * 9], trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet)
    )
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made.save(f"{folder}/tokenizer.json")
    return folder


@lru_cache
def word_pieces() -> str:
    """The folder of a word-piece tokenizer, as BERT's kin have it: blanks are no tokens, letters are folded."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = {character: number for number, character in enumerate("abcdefghijklmnopqrstuvwxyz.,!?0123456789|#-")}
    words = {**letters, **{f"##{one}": number + len(letters) for one, number in letters.items()}, "[UNK]": 999}
    made = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made.save(f"{folder}/tokenizer.json")
    return folder


BUILD: dict[str, Callable[[], Chunker]] = {
    "fixed_characters": lambda: build_chunker(FixedCharacters(size=16)),
    "fixed_characters+overlap": lambda: build_chunker(FixedCharacters(size=20, overlap=19)),
    "fixed_tokens": lambda: build_chunker(FixedTokens(tokenizer=byte_level(), size=8)),
    "fixed_tokens+overlap": lambda: build_chunker(FixedTokens(tokenizer=byte_level(), size=8, overlap=7)),
    "fixed_tokens+words": lambda: build_chunker(FixedTokens(tokenizer=word_pieces(), size=8)),
    "fixed_tokens+words+overlap": lambda: build_chunker(FixedTokens(tokenizer=word_pieces(), size=9, overlap=4)),
    "sentences": lambda: build_chunker(Sentences(size=40)),
    "sentences+overlap": lambda: build_chunker(Sentences(size=60, overlap=2)),
    "recursive": lambda: build_chunker(Recursive(size=24)),
    "recursive+overlap": lambda: build_chunker(Recursive(size=24, overlap=12)),
    "recursive+one": lambda: build_chunker(Recursive(size=24, separators=("\n\n",))),
    "semantic": lambda: semantic(),
    "semantic+size": lambda: semantic(size=24, window=0),
    "semantic+gradient": lambda: semantic(breakpoint="gradient", amount=50.0),
    "semantic+interquartile": lambda: semantic(breakpoint="interquartile", amount=0.1),
    "semantic+deviation": lambda: semantic(breakpoint="standard_deviation", amount=0.5, window=2),
}
PLAIN = tuple(name for name in BUILD if not name.endswith("+overlap"))
"""Those without an overlap."""
SIZES = {"fixed_characters": 16, "recursive": 24, "recursive+overlap": 24, "recursive+one": 24, "semantic+size": 24}
"""Characters that no chunk may pass."""

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
    assert {name.partition("+")[0] for name in PLAIN} == set(CHUNKERS)


@pytest.mark.parametrize("name", SIZES)
@settings(max_examples=60, deadline=None)
@given(text=characters)
def test_no_chunk_passes_its_size(name: str, text: str) -> None:
    assert all(len(chunk.text) <= SIZES[name] for chunk in BUILD[name]().chunk(Document("d", text)))


def test_corpus_is_cut_document_by_document() -> None:
    documents = [Document("a", "x" * 20), Document("b", "  "), Document("c", "y" * 16)]
    chunks = chunk_documents(build_chunker(FixedCharacters(size=16)), documents)
    assert [(chunk.document, chunk.start, chunk.end) for chunk in chunks] == [("a", 0, 16), ("a", 16, 20), ("c", 0, 16)]


def test_fixed_characters_leave_no_window_inside_another() -> None:
    chunks = build_chunker(FixedCharacters(size=20, overlap=10)).chunk(Document("d", "x" * 40))
    assert [(chunk.start, chunk.end) for chunk in chunks] == [(0, 20), (10, 30), (20, 40)]


def texts(chunker: Chunker, text: str) -> list[str]:
    return [chunk.text for chunk in chunker.chunk(Document("d", text))]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Dr. Who paid 3.5 euros. He left.", ["Dr. Who paid 3.5 euros. ", "He left."]),
        ("J. R. Smith (e.g. him) said \"No!\" Then? Nothing\u2026 ok", ["J. R. Smith (e.g. him) said \"No!\" ", "Then? ", "Nothing\u2026 ", "ok"]),
        ("hard\nwrapped line. second\r\nline", ["hard\nwrapped line. ", "second\r\nline"]),
        ("# Head\ntext\n\nnext\r\n\r\nlast", ["# Head\n", "text\n\n", "next\r\n\r\n", "last"]),
        ("Do:\n1. Pay\n2. Go. Now\n- x\n  y\n* z", ["Do:\n", "1. Pay\n", "2. Go. ", "Now\n", "- x\n  y\n", "* z"]),
        ("| a. | b |\n|--|--|\n| 1 | 2 |\nend", ["| a. | b |\n", "|--|--|\n", "| 1 | 2 |\n", "end"]),
        ("\u4eca\u5929\u3002\u660e\u5929\uff01\u597d", ["\u4eca\u5929\u3002", "\u660e\u5929\uff01", "\u597d"]),
        ("page one\x0cpage two", ["page one\x0c", "page two"]),
        ("In 1999. Then it was at 5 p.m. on a day", ["In 1999. ", "Then it was at 5 p.m. on a day"]),
        ("\n\n  one. ", ["\n\n  one. "]),
        ("   ", ["   "]),
        ("", []),
    ],
)  # fmt: skip
def test_sentences(text: str, wanted: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == wanted


@pytest.mark.parametrize("text", ["." * 100_000, "a. " * 30_000, " " * 100_000, "\n" * 100_000, '"' * 100_000])
def test_sentences_of_long_monotone_texts_take_no_square_of_time(text: str) -> None:
    ranges = sentences(text)
    assert ranges[-1][1] == len(text)
    assert ranges[0][0] == 0


def test_sentences_fill_chunks_and_are_shared_where_they_fit() -> None:
    text = "One is here. Two is here. Three is longer than others. Four. Five."
    assert texts(build_chunker(Sentences(size=30)), text) == [
        "One is here. Two is here. ", "Three is longer than others. ", "Four. Five.",
    ]  # fmt: skip
    assert texts(build_chunker(Sentences(size=42, overlap=1)), text) == [
        "One is here. Two is here. ", "Two is here. Three is longer than others. ",
        "Three is longer than others. Four. Five.",
    ]  # fmt: skip
    assert texts(build_chunker(Sentences(size=16, overlap=1)), text)[2] == "Three is longer than others. "


def test_tokens_of_a_window_and_what_windows_share() -> None:
    text = "the word and the line. " * 6
    from pipelines.rag.tokens import token_starts

    starts = [*token_starts(byte_level(), text), len(text)]
    chunks = build_chunker(FixedTokens(tokenizer=byte_level(), size=10, overlap=4)).chunk(Document("d", text))
    assert [(chunk.start, chunk.end) for chunk in chunks[:2]] == [(0, starts[10]), (starts[6], starts[16])]


def test_recursive_tries_separators_from_coarse_to_fine() -> None:
    text = "One two three.\n\nFour five six. Seven eight nine ten.\nEleven\r\n\r\nTwelve"
    assert texts(build_chunker(Recursive(size=30)), text) == [
        "One two three.\n\n", "Four five six. ", "Seven eight nine ten.\n", "Eleven\r\n\r\n", "Twelve",
    ]  # fmt: skip


ORACLES = Path(__file__).resolve().parents[1] / "oracles"


def test_recursive_agrees_with_langchain() -> None:
    cases = json.loads((ORACLES / "chunks.json").read_text(encoding="utf-8"))["recursive"]
    assert len(cases) >= 20
    for case in cases:
        config = Recursive.model_validate({"type": "recursive", **case["settings"]})
        assert [chunk.text for chunk in RecursiveChunker(config).chunk(Document("d", case["text"]))] == case["chunks"]


def test_breakpoints_agree_with_langchain() -> None:
    cases = json.loads((ORACLES / "chunks.json").read_text(encoding="utf-8"))["semantic"]
    assert {case["kind"] for case in cases} == set(AMOUNTS)
    for case in cases:
        found = breakpoints(np.array(case["distances"]), case["kind"], case["amount"])
        assert found == case["breakpoints"], case["kind"]


def test_breakpoints_by_hand() -> None:
    d = np.array([0.1, 0.1, 0.1, 0.9, 0.1, 0.1])
    assert breakpoints(d, "percentile") == [3]
    assert breakpoints(d, "standard_deviation", 2.0) == [3]
    assert breakpoints(d, "standard_deviation") == []
    assert breakpoints(d, "interquartile") == [3]
    assert breakpoints(d, "gradient") == [2]
    assert breakpoints(d[:1], "gradient") == breakpoints(d[:0], "percentile") == breakpoints(d[:1], "percentile") == []


def test_distances_are_cosines_and_a_zero_vector_is_far_from_all() -> None:
    found = distances(np.array([[1, 0], [2, 0], [0, 3], [0, 0], [1, 1]], np.float32))
    assert found == pytest.approx([0, 1, 1, 1])


def test_semantic_cuts_where_the_subject_changes_and_asks_once_for_a_corpus() -> None:
    text = "aaa aab. aab aaa. aaa baa. zzz yzz. zzz zzy. zyz zzz."
    chunker = semantic(window=0, amount=90.0)
    assert texts(chunker, text) == ["aaa aab. aab aaa. aaa baa. ", "zzz yzz. zzz zzy. zyz zzz."]
    asked: list[int] = []

    def counted(some: Sequence[str]) -> NDArray[np.float32]:
        asked.append(len(some))
        return spelled(some)

    documents = [Document("a", text), Document("b", "alone."), Document("c", " "), Document("e", text)]
    together = chunk_documents(build_chunker(Semantic(window=0, amount=90.0), counted), documents)
    assert asked == [12]
    assert together == [chunk for document in documents for chunk in chunker.chunk(document)]


def test_windows_of_sentences_reach_their_neighbours() -> None:
    asked: list[str] = []

    def kept(some: Sequence[str]) -> NDArray[np.float32]:
        asked.extend(some)
        return spelled(some)

    build_chunker(Semantic(window=1), kept).chunk(Document("d", "One. Two. Three. Four."))
    assert asked == ["One. Two.", "One. Two. Three.", "Two. Three. Four.", "Three. Four."]


def test_semantic_without_an_embedder_is_the_author_s_mistake() -> None:
    with pytest.raises(ValueError, match="must be given an embedder"):
        build_chunker(Semantic())


@pytest.mark.parametrize("name", [name for name in BUILD if not name.startswith("fixed_tokens")])
def test_contract_on_real_documents(name: str, shared_data: Path) -> None:
    for path in sorted((shared_data / "spans" / "corpora").glob("*.md")):
        text = path.read_bytes().decode()[:30_000]
        check(BUILD[name]().chunk(Document("d", text)), text)
