"""What the keys of a questions file mean: rows and a corpus in, part -> key out. Pure.

A key is guessed from its name and held against the rows, and a key of document ids against the corpus, so that a guess
which the rows do not bear is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.rag.corpus import CorpusText
from pipelines.stage import UserError
from sweeps.starter.base import QUESTION_PARTS

KNOWN = {
    "question": ("question", "query", "prompt", "input", "user_input", "q"),
    "answer": ("answer", "reference", "reference_answer", "ground_truth", "expected_answer", "gt_answer", "completion"),
    "spans": ("spans", "gold_spans", "passages", "evidence"),
    "documents": ("documents", "gold_documents", "document_ids", "doc_ids", "gold", "document", "doc_id", "source"),
    "id": ("id", "question_id", "qid", "_id"),
}
"""Part -> the names that it usually has, in any case, the most usual first."""
OWNERS = ("document", "corpus", "corpus_id", "document_id", "doc_id", "source", "file")
"""Names of keys that hold the document of a row's spans."""
MOSTLY = 0.5


def recognise(rows: Sequence[Mapping[str, Any]], corpus: CorpusText, given: Mapping[str, str]) -> dict[str, str]:
    """Part of a question -> its key; parts that no key fills are absent.

    Args:
        rows: some of the file.
        corpus: that the documents are of.
        given: part -> key, where the user says so.

    Raises:
        UserError: if a key that the user names is not there, or no key holds the question.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    fits: dict[str, Callable[[Any], bool]] = {
        "question": _is_text,
        "answer": _is_text,
        "spans": _is_spans,
        "documents": lambda value: all(corpus.find(name) is not None for name in _names(value)) and bool(_names(value)),
        "id": lambda value: isinstance(value, str | int),
    }
    found: dict[str, str] = {}
    for part in QUESTION_PARTS:
        if part in given:
            if given[part] not in keys:
                raise UserError(f"--field-{part}: no row has the key {given[part]!r}; there are: {_listed(keys)}")
            found[part] = given[part]
        elif (key := _guess(part, keys, rows, fits[part])) is not None:
            found[part] = key
    if "question" not in found:
        raise UserError(
            f"no key holds the question; there are: {_listed(keys)}; known names: {', '.join(KNOWN['question'])}; name it "
            "with --field-question=KEY"
        )
    return found


def span_owner(rows: Sequence[Mapping[str, Any]], spans: str, corpus: CorpusText) -> str | None:
    """The key that holds the document of a row's spans, where the spans themselves don't name one; else None.

    Args:
        rows: some of the file.
        spans: the key of the spans.
        corpus: that the documents are of.
    """
    told = [span for row in rows for span in row.get(spans) or () if isinstance(span, Mapping)]
    if not told or all("document" in span for span in told):
        return None
    keys = list(dict.fromkeys(key for row in rows for key in row))
    known = [key for name in OWNERS for key in keys if key.strip().lower() == name]
    return next(
        (key for key in known if _mostly(rows, key, lambda v: isinstance(v, str) and bool(corpus.find(v)))), None
    )


def _guess(
    part: str, keys: Sequence[str], rows: Sequence[Mapping[str, Any]], fits: Callable[[Any], bool]
) -> str | None:
    """The first key of a usual name that most rows bear. The default's own name is taken as it is: its mistakes are told."""
    if part in keys:
        return part
    named = [key for name in KNOWN[part] for key in keys if key.strip().lower() == name]
    return next((key for key in named if _mostly(rows, key, fits)), None)


def _mostly(rows: Sequence[Mapping[str, Any]], key: str, fits: Callable[[Any], bool]) -> bool:
    values = [row[key] for row in rows if row.get(key) is not None]
    return sum(map(fits, values)) > MOSTLY * len(values) if values else False


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_spans(value: Any) -> bool:
    spans = [span for span in value if isinstance(span, Mapping)] if isinstance(value, list) else []
    return bool(spans) and all("text" in span or "start" in span for span in spans)


def _names(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    return [str(name) for name in listed]


def _listed(keys: Sequence[str]) -> str:
    return (", ".join(map(repr, keys[:20])) or "none") + (f", ... {len(keys)} in all" if len(keys) > 20 else "")
