"""What a RAG configuration names on the disk: corpus, questions, models, prompts. Nothing is imported or downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps.local import MODEL_KEYS, absolute_model, absolute_path, data_problem, model_problem

MODELS = ("base_model", "model", "embedding_model", "answer_embedding", "tokenizer")
"""Keys that name a model, wherever they stand; not the `model` of an endpoint."""
FILES = ("corpus", "questions", "path")
"""Keys that name files."""
STATIC = "wordllama"

Change = Callable[[str, str], str]


def absolute_rag(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with every path made absolute; hub ids, `package://`, `sweep://` and addresses stay."""

    def place(kind: str, text: str) -> str:
        if kind == "file":
            return str(absolute_path(text, folder))
        if kind == "prompt":
            return str(absolute_path(text, folder)) if is_prompt_file(text, folder) else text
        return absolute_model(text, folder)

    changed: dict[str, Any] = _walked(config, place)
    return changed


def is_prompt_file(text: str, folder: Path) -> bool:
    """Whether a prompt is a path: one short line without a place for the question, ending in `.txt` or `.md`."""
    return "\n" not in text and "{" not in text and text.endswith((".txt", ".md", ".jinja")) and len(text) < 1000


def rag_values(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that `rag_problem` looks at."""
    for path, kind, value in _named(config, ""):
        if kind:
            yield path, value


def rag_problem(path: str, value: Any, folder: Path) -> str | None:
    """What is wrong with a value that names something on the disk, or None.

    Args:
        path: dotted path in the pipeline.
        value: as written; of a section (an embedding model under `parameters`) the models in it are looked at.
        folder: the sweep file's.
    """
    if isinstance(value, Mapping):
        problems = (rag_problem(f"{path}.{inner}", text, folder) for inner, text in rag_values(value))
        return next((problem for problem in problems if problem), None)
    if not isinstance(value, str):
        return None
    kind = _kind(path.rpartition(".")[2], {})
    if kind == "model":
        return None if value == STATIC else model_problem(value, folder)
    if kind == "file":
        return data_problem(value, folder)
    if kind == "prompt" and is_prompt_file(value, folder) and not absolute_path(value, folder).is_file():
        return f"{value!r} is not there ({absolute_path(value, folder)}); paths are relative to the sweep file"
    return None


def replaced_sources(config: Any, sources: Mapping[str, tuple[str, str]]) -> Any:
    """A configuration in which every model that names a `sweep://` source is its path, with the hash beside it.

    Args:
        config: JSON.
        sources: name -> (path, hash).
    """
    if isinstance(config, list):
        return [replaced_sources(value, sources) for value in config]
    if not isinstance(config, Mapping):
        return config
    changed = {key: replaced_sources(value, sources) for key, value in config.items()}
    for name in MODEL_KEYS:
        found = sources.get(str(changed.get(name)))
        if found is not None:
            changed |= {name: found[0], f"{name}_hash": found[1]}
    return changed


def _walked(value: Mapping[str, Any], change: Change) -> Any:
    changed: dict[str, Any] = {}
    for key, inner in value.items():
        kind = _kind(key, value)
        if isinstance(inner, Mapping):
            changed[key] = _walked(inner, change)
        elif isinstance(inner, str) and kind and inner != STATIC:
            changed[key] = change(kind, inner)
        else:
            changed[key] = inner
    return changed


def _named(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _named(inner, f"{prefix}{key}.")
        elif isinstance(inner, str):
            yield f"{prefix}{key}", _kind(key, value), inner


def _kind(key: str, section: Mapping[str, Any]) -> str:
    if key in MODELS and not (key == "model" and "base_url" in section):
        return "model"
    return "file" if key in FILES else "prompt" if key == "prompt" else ""
