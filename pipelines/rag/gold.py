"""A row of a questions file as a `Question`, and its gold held against the corpus."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evaluators.answers import Question, Span
from pipelines.data.base import BadRow
from pipelines.data.examples import lacking
from pipelines.rag.config import Questions
from pipelines.rag.corpus import CorpusText
from pipelines.rag.corpus_jsonl import short

Texts = tuple[str | None, ...]
"""What each span of a question says stands there; None where it does not say."""
UNPLACED = -1
"""Offsets of a span that is told by its text alone, until it is held against the corpus."""
_SHOWN = 80


def build_question(row: Mapping[str, Any], section: Questions) -> tuple[Question, Texts]:
    """A row as a question, its gold not yet held against the corpus.

    Raises:
        BadRow: if it is none.
    """
    text = _text(row, section.field_question, "field_question")
    answer = row.get(section.field_answer)
    if answer is not None and not isinstance(answer, str):
        raise BadRow(f"{section.field_answer!r} must be text, but is {short(answer)} (`questions.field_answer`)")
    spans = _spans(row, section)
    documents = _documents(row, section)
    named = dict.fromkeys([*documents, *(span.document for span, _ in spans)])
    group = _hash(" ".join(text.split()))
    if section.group_by is not None:
        group = _hash(_group(row, section.group_by))
    made = Question(
        id="",
        group=group,
        text=text,
        spans=tuple(span for span, _ in spans),
        documents=tuple(named),
        answer=answer if answer and answer.strip() else None,
    )
    for part in (made.text, made.answer or "", *made.documents):
        _refuse_halves(part)
    return replace(made, id=_id(row, section, made, spans)), tuple(stands for _, stands in spans)


def hold_against(
    question: Question, texts: Texts, corpus: CorpusText, *, hints: bool = True
) -> tuple[Question, list[str]]:
    """The question with the corpus's own ids in its gold, and what is wrong with its gold, a sentence each.

    Args:
        question: from `build_question`.
        texts: from `build_question`.
        corpus: what its gold must stand in.
        hints: also look for what was meant, which takes time where there are many documents.
    """
    problems: list[str] = []
    ids: dict[str, str] = {}
    for name in question.documents:
        found = corpus.find(name)
        if found is None:
            problems.append(_no_document(name, corpus, hints))
        else:
            ids[name] = found
    spans = []
    for number, (span, stands) in enumerate(zip(question.spans, texts, strict=True)):
        if span.document not in ids:
            continue
        text = corpus.texts[ids[span.document]]
        placed = replace(_placed(span, stands, text), document=ids[span.document])
        problem = _span_problem(placed, stands, text)
        if problem:
            problems.append(f"span {number} of {placed.document!r}: {problem}")
        spans.append(placed)
    documents = tuple(dict.fromkeys(ids.values()))
    return replace(question, spans=tuple(spans), documents=documents), problems


def _placed(span: Span, stands: str | None, text: str) -> Span:
    """A span that is told by its text alone with the offsets where that stands, if it stands there once."""
    if span.start != UNPLACED or stands is None:
        return span
    first = text.find(stands)
    once = first >= 0 and text.find(stands, first + 1) < 0
    return replace(span, start=first, end=first + len(stands)) if once else span


def _span_problem(span: Span, stands: str | None, text: str) -> str | None:
    if span.start == UNPLACED:
        return f"its text is {_quoted(stands or '')}{_elsewhere(stands, text)}; give start and end, or more of the text"
    if span.end > len(text):
        return (
            f"[{span.start}, {span.end}) ends outside its document, which has {len(text)} characters"
            f"{_elsewhere(stands, text)}"
        )
    there = text[span.start : span.end]
    if stands is None or there == stands:
        return None
    return f"at [{span.start}, {span.end}) stands {_quoted(there)}, but its text is {_quoted(stands)}{_elsewhere(stands, text)}"


def _elsewhere(stands: str | None, text: str) -> str:
    if not stands:
        return ""
    first = text.find(stands)
    if first >= 0 and text.find(stands, first + 1) < 0:
        return f"; that stands once, at [{first}, {first + len(stands)})"
    if first >= 0:
        return "; that stands at several places"
    if "\r" in text and stands.replace("\r\n", "\n") in text.replace("\r\n", "\n"):
        return r"; it stands there with other line ends: the document has \r\n, which counts as two characters"
    return "; that stands nowhere in the document"


def _no_document(name: str, corpus: CorpusText, hints: bool) -> str:
    if name in corpus.blank:
        return f"the document {name!r} has no text ({corpus.blank[name]}), so nothing of it can be found"
    ids = [document.id for document in corpus.documents]
    close = difflib.get_close_matches(name, ids, n=1) if hints else []
    hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(map(repr, ids[:3]))}"
    more = f", ... ({len(ids)} in all)" if not close and len(ids) > 3 else ""
    return f"the corpus has no document {name!r}; {hint}{more}"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


def _text(row: Mapping[str, Any], key: str, setting: str) -> str:
    if key not in row:
        raise BadRow(lacking(key, f"questions.{setting}", row, "key"))
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{key!r} must be a question, text with something in it, but is {short(value)}")
    return value


def _spans(row: Mapping[str, Any], section: Questions) -> list[tuple[Span, str | None]]:
    value = row.get(section.field_spans)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRow(
            f"{section.field_spans!r} must be a list of {{document, start, end, text}}, but is {short(value)} "
            "(`questions.field_spans`)"
        )
    return [_span(one, number, row, section) for number, one in enumerate(value)]


def _span(value: Any, number: int, row: Mapping[str, Any], section: Questions) -> tuple[Span, str | None]:
    if not isinstance(value, Mapping):
        raise BadRow(f"span {number} must be an object {{document, start, end, text}}, but is {short(value)}")
    document = value.get("document")
    if document is None and section.field_span_document is not None:
        if section.field_span_document not in row:
            raise BadRow(lacking(section.field_span_document, "questions.field_span_document", row, "key"))
        document = row[section.field_span_document]
    if document is None:
        raise BadRow(
            f"span {number} names no document; give it a key 'document', or say with `questions.field_span_document` which "
            f"key of the row holds it (keys: {', '.join(sorted(row))})"
        )
    stands = value.get("text")
    if stands is not None and (not isinstance(stands, str) or not stands):
        raise BadRow(f"span {number}: 'text' must be what stands there, but is {short(stands)}")
    start, end = UNPLACED, UNPLACED
    if stands is None or "start" in value or "end" in value:
        start, end = (_offset(value, key, number) for key in ("start", "end"))
        if start >= end:
            raise BadRow(f"span {number}: [{start}, {end}) holds nothing; `end` is the first character after it")
    return Span(_name(document, f"the document of span {number}"), start, end), stands


def _offset(span: Mapping[str, Any], key: str, number: int) -> int:
    value = span.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRow(f"span {number}: {key!r} must be a whole number from 0, but is {short(value)}")
    return value


def _documents(row: Mapping[str, Any], section: Questions) -> list[str]:
    value = row.get(section.field_documents)
    if value is None:
        return []
    return [_name(one, repr(section.field_documents)) for one in (value if isinstance(value, list) else [value])]


def _name(value: Any, what: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise BadRow(f"{what} must be a document's id, but is {short(value)}")
    return value


def _id(row: Mapping[str, Any], section: Questions, made: Question, told: Sequence[tuple[Span, str | None]]) -> str:
    value = row.get(section.field_id)
    if value is None:
        spans = [[span.document, span.start, span.end, *([stands] if span.start < 0 else [])] for span, stands in told]
        return _hash(json.dumps([made.text, made.answer, spans, made.documents], ensure_ascii=False))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(
            f"{section.field_id!r} must be the question's id, text or a whole number, but is {short(value)} (`questions.field_id`)"
        )
    _refuse_halves(value)
    return value


def _group(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        raise BadRow(lacking(key, "questions.group_by", row, "key"))
    value = row[key]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRow(f"{key!r} must tell the question's group (`questions.group_by`), but is {short(value)}")
    if isinstance(value, str):
        _refuse_halves(value)
        return value
    return json.dumps(value, sort_keys=True)


def _refuse_halves(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow("its text holds half of a surrogate pair (\\ud800 to \\udfff)") from None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
