"""Markdown and plain text: a file is a document, character by character as it stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.data.text import not_utf8
from pipelines.rag.base import Document
from pipelines.rag.config import Corpus
from pipelines.stage import UserError


def read_text(path: str, name: str, section: Corpus) -> Iterator[tuple[Document, str]]:
    """See `pipelines.rag.corpus.Reader`."""
    yield Document(name, decoded(path, read_bytes(path))), path


def read_bytes(path: str) -> bytes:
    """A file.

    Raises:
        UserError: if it can't be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"corpus: {path}: can't be read ({error.strerror})") from None


def decoded(path: str, raw: bytes) -> str:
    """Bytes as UTF-8 text, line ends and a byte order mark as they stand.

    Raises:
        UserError: if they are no text, with the line.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"corpus: {path}, line {line}: {not_utf8(raw)}; or move the file out of the corpus") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(
            f"corpus: {path}, line {line}: holds a zero byte, so it is no text file; move it out of the corpus"
        )
    return text
