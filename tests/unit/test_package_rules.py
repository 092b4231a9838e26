"""Packages that are not installed are told before anything runs, each at the value that wants it."""

from pathlib import Path

import pytest
from sweep_files import SFT, folder_with_data, problems

from pipelines.config import RagConfig
from sweeps import package_rules
from sweeps.package_rules import needed


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without extras."""
    extras = ("wordllama", "sentence_transformers", "bitsandbytes")
    found = package_rules.importlib.util.find_spec
    monkeypatch.setattr(
        package_rules.importlib.util, "find_spec", lambda name, *more: None if name in extras else found(name, *more)
    )


RAG = """
name: handbook
pipeline:
  type: rag
  corpus: data
  questions: data/questions.jsonl
  chunk: {type: fixed_characters}
  retrieve: {type: bm25}
parameters:
  retrieve:
    choose:
      bm25: {}
      dense: {embedding_model: [wordllama]}
  rerank: [{type: none}, {type: maxsim, model: some/model}]
metric: span_recall
"""


def test_each_value_that_wants_a_package_is_told_with_its_install_line(tmp_path: Path, bare: None) -> None:
    folder_with_data(tmp_path)
    row = '{"id": "q", "question": "What?", "spans": []}\n'
    (tmp_path / "data" / "questions.jsonl").write_text(row)
    found = problems(tmp_path, RAG)
    said = "\n".join(f"{place}: {text}" for place, text in found.items())
    assert (
        "embedding_model: wordllama needs the package wordllama, which is not installed: pip install 'stockpot[rag]'"
        in said
    )
    assert "rerank: maxsim needs the package sentence-transformers, which is not installed" in said
    assert len(found) == 2
    assert all(place.startswith("parameters") for place in found)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("  optimizer: adamw_8bit\n", "optimizer: adamw_8bit needs the package bitsandbytes"),
        ("  adapter: lora\n  load_in_4bit: true\n", "load_in_4bit: true needs the package bitsandbytes"),
    ],
)
def test_eight_and_four_bits_want_bitsandbytes(tmp_path: Path, bare: None, lines: str, said: str) -> None:
    found = problems(tmp_path, SFT.replace("pipeline:\n", f"pipeline:\n{lines}"))
    assert any(said in text and "stockpot[bitsandbytes]" in text for text in found.values()), found


def test_vectors_inside_other_stages_are_found() -> None:
    config = RagConfig.model_validate(
        {
            "type": "rag",
            "corpus": "c",
            "questions": "q.jsonl",
            "chunk": {"type": "semantic"},
            "retrieve": {"type": "hybrid", "embedding_model": "some/model"},
            "answer_embedding": {"type": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"},
        }
    )
    assert [(need.path, need.package) for need in needed(config)] == [
        ("chunk.embedding_model", "wordllama"),
        ("retrieve.embedding_model", "sentence_transformers"),
    ]
