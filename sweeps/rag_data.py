"""Corpus and questions of a RAG sweep: read once before it starts, pinned by their hashes, and refused when changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config import RagConfig
from sweeps.local import absolute_path

SECTIONS = ("corpus", "questions")
HELD_OUT = ("select", "test")


def pin_rag(config: Mapping[str, Any], folder: Path, pins: Mapping[str, str]) -> dict[str, Any]:
    """A configuration with the hashes of its corpus and questions filled in; a bare path becomes a section.

    Args:
        config: as written, or complete.
        folder: the sweep file's.
        pins: absolute path -> SHA-256.
    """
    pinned = dict(config)
    for name in SECTIONS if pins else ():
        section = pinned.get(name)
        if isinstance(section, str):
            section = {"path": section}
        if isinstance(section, Mapping):
            pinned[name] = _pinned(section, folder, pins)
    return pinned


def _pinned(section: Mapping[str, Any], folder: Path, pins: Mapping[str, str]) -> dict[str, Any]:
    made = dict(section)
    content = pins.get(str(absolute_path(str(section.get("path", "")), folder)))
    if content is not None:
        made["content_hash"] = content
    for name in HELD_OUT:
        if isinstance(made.get(name), Mapping) and "path" in made[name]:
            made[name] = _pinned(made[name], folder, pins)
    return made


def read_rag(config: RagConfig) -> tuple[dict[str, str], list[str]]:
    """Read corpus and questions as trials will.

    Args:
        config: paths absolute.

    Returns:
        (absolute path -> SHA-256, warnings for the user).

    Raises:
        UserError: on anything that can't be used: a missing corpus, a span outside its document, two questions of one id.
    """
    from pipelines.rag.corpus import load_corpus
    from pipelines.rag.questions import load_questions, question_hash

    corpus = load_corpus(config.corpus_section)
    splits = load_questions(config.questions_section, corpus, config.seed_data)
    pins = {config.corpus_section.path: corpus.hash}
    questions = config.questions_section
    for held in (questions, questions.select, questions.test):
        path = getattr(held, "path", None)
        if path is not None:
            pins[path] = question_hash(path)
    return pins, [*corpus.warnings, *splits.warnings]


def needs_rag(config: RagConfig) -> dict[str, Any]:
    """What `check --data` says of a RAG sweep, JSON: its corpus, its questions, and what each split can show.

    Args:
        config: paths absolute.

    Raises:
        UserError: as `read_rag`.
    """
    from pipelines.rag.corpus import load_corpus
    from pipelines.rag.questions import load_questions
    from sweeps.splitsizes import smallest

    corpus = load_corpus(config.corpus_section)
    questions = load_questions(config.questions_section, corpus, config.seed_data)
    splits: dict[str, Any] = {}
    for name in ("tune", "select", "test"):
        found = getattr(questions, name)
        if found or name == "tune":
            groups = len({question.group for question in found})
            splits[name] = {"rows": len(found), "exact": True, "groups": groups, **smallest(groups, exact=True)}
    gold = [question for split in ("tune", "select", "test") for question in getattr(questions, split)]
    return {
        "memory": None,
        "disk": None,
        "splits": splits,
        "warnings": [],
        "rows": {name: split["rows"] for name, split in splits.items()},
        "duplicates": None,
        "corpus": {
            "documents": len(corpus.documents),
            "characters": sum(len(document.text) for document in corpus.documents),
        },
        "gold": {
            "spans": sum(bool(question.spans) for question in gold),
            "documents": sum(bool(question.documents) for question in gold),
            "answers": sum(question.answer is not None for question in gold),
        },
    }
