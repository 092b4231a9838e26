"""JSONL: a row is a document with an id of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipelines.data.base import BadRow, Record
from pipelines.data.examples import lacking
from pipelines.data.json_rows import JSONReader
from pipelines.rag.base import Document
from pipelines.rag.config import Corpus
from pipelines.stage import UserError


def read_rows(path: str, name: str, section: Corpus) -> Iterator[tuple[Document, str]]:
    """See `pipelines.rag.corpus.Reader`."""
    reader = JSONReader(path)
    for record in reader.records():
        place = reader.where(record.line)
        yield _document(record, place, section), place


def _document(record: Record, place: str, section: Corpus) -> Document:
    row = record.value
    if isinstance(row, BadRow):
        raise UserError(f"corpus: {place}: {row}")
    for key, setting in ((section.field_id, "field_id"), (section.field_text, "field_text")):
        if key not in row:
            raise UserError(f"corpus: {place}: {lacking(key, f'corpus.{setting}', row, 'key')}")
    text = row[section.field_text]
    if not isinstance(text, str):
        raise UserError(f"corpus: {place}: {section.field_text!r} must be text, but is {short(text)}")
    return Document(_id(row[section.field_id], place, section), text)


def _id(value: Any, place: str, section: Corpus) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise UserError(
            f"corpus: {place}: {section.field_id!r} must be the document's id (text or a whole number), but is {short(value)}"
        )
    return value


def short(value: Any) -> str:
    """A value for a message."""
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
