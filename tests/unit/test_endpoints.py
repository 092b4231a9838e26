"""Which endpoints a sweep file names, wherever they stand."""

from __future__ import annotations

from pathlib import Path

from sweeps.endpoints import endpoints_of
from sweeps.load import load_text

FILE = """
name: far
pipeline:
  type: rag
  corpus: corpus
  questions: questions.jsonl
  chunk: {type: fixed_characters}
  retrieve: {type: bm25}
  generate: {type: openai, base_url: "http://a/v1", model: m, api_key: MY_KEY, temperature: 0.5}
parameters: {PARAMETERS}
metric: token_f1
method: METHOD
budget: {trials: 4}
env: {MY_KEY: "${MY_KEY}", OTHER: "${OTHER}"}
"""


def found(folder: Path, parameters: str, method: str = "grid") -> list[tuple[str, str]]:
    (folder / "corpus").mkdir(exist_ok=True)
    (folder / "corpus" / "a.txt").write_text("A text.")
    row = '{"question": "Who?", "answer": "Ann", "documents": ["a.txt"]}\n'
    (folder / "questions.jsonl").write_text(row)
    text = FILE.replace("PARAMETERS", parameters).replace("METHOD", method)
    return sorted((one["base_url"], one["model"]) for one in endpoints_of(load_text(text.encode(), folder)))


def test_the_pipelines_own_is_named_once(tmp_path: Path) -> None:
    assert found(tmp_path, "chunk.size: [100, 200]") == [("http://a/v1", "m")]


def test_swept_ones_are_all_named(tmp_path: Path) -> None:
    assert found(tmp_path, "generate.base_url: ['http://a/v1', 'http://b/v1'], generate.model: [m, n]") == [
        (url, model) for url in ("http://a/v1", "http://b/v1") for model in ("m", "n")
    ]


def test_draws_of_an_endless_space_are_looked_at(tmp_path: Path) -> None:
    assert found(tmp_path, "generate.temperature: {min: 0.1, max: 1.0}, generate.model: [m, n]", "random") == [
        ("http://a/v1", "m"),
        ("http://a/v1", "n"),
    ]


def test_a_file_without_endpoints_has_none(tmp_path: Path) -> None:
    text = (
        FILE.replace("PARAMETERS", "chunk.size: [100, 200]")
        .replace("METHOD", "grid")
        .replace("token_f1", "span_recall")
    )
    lines = [line for line in text.splitlines() if "generate" not in line]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("A text.")
    (tmp_path / "questions.jsonl").write_text('{"question": "Who?", "documents": ["a.txt"]}\n')
    assert endpoints_of(load_text("\n".join(lines).encode(), tmp_path)) == []
