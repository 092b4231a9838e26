r"""Recursive splitting: the coarsest separator that makes pieces small enough, and neighbours merged up to the size.

The algorithm is that of LangChain's RecursiveCharacterTextSplitter with `keep_separator="end"` and without stripping,
but over offsets, so that a chunk is never looked for in its document afterwards, where text that repeats would be found
at a wrong place. Beside it: `\n` also stands for `\r\n`, and a piece that no separator makes small enough is cut.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from pipelines.rag.base import Chunk, Document
from pipelines.rag.chunk import Embed, Range, chunks_of, windows
from pipelines.rag.stages import Recursive


class RecursiveChunker:
    """Implements `Chunker`."""

    def __init__(self, config: Recursive, embed: Embed | None = None) -> None:
        self.config = config
        self._patterns = [
            re.compile(re.escape(separator).replace("\\\n", "\\r?\\n")) if separator else None
            for separator in config.separators
        ]

    def chunk(self, document: Document) -> list[Chunk]:
        """See `Chunker`."""
        text = document.text
        return chunks_of(document, self._split(text, 0, len(text), self._patterns))

    def _split(self, text: str, start: int, end: int, patterns: Sequence[re.Pattern[str] | None]) -> list[Range]:
        size, overlap = self.config.size, self.config.overlap
        if end - start <= size:
            return [(start, end)] if start < end else []
        for number, pattern in enumerate(patterns):
            if pattern is None:
                break
            pieces = _pieces(text, start, end, pattern)
            if len(pieces) > 1:
                return self._merged(text, pieces, patterns[number + 1 :])
        return windows(start, end, size, overlap)

    def _merged(self, text: str, pieces: list[Range], finer: Sequence[re.Pattern[str] | None]) -> list[Range]:
        """Small neighbours joined, large pieces split by finer separators."""
        found: list[Range] = []
        small: list[Range] = []
        for piece in pieces:
            if piece[1] - piece[0] <= self.config.size:
                small.append(piece)
                continue
            found += joined(small, self.config.size, self.config.overlap)
            small = []
            found += self._split(text, *piece, finer)
        return found + joined(small, self.config.size, self.config.overlap)


def joined(pieces: Sequence[Range], size: int, overlap: int) -> list[Range]:
    """Neighbours joined up to `size`; a range begins with those last pieces of the one before that hold `overlap` at most."""
    found: list[Range] = []
    held: list[Range] = []
    for piece in pieces:
        if held and piece[1] - held[0][0] > size:
            found.append((held[0][0], held[-1][1]))
            while held and (held[-1][1] - held[0][0] > overlap or piece[1] - held[0][0] > size):
                held.pop(0)
        held.append(piece)
    if held:
        found.append((held[0][0], held[-1][1]))
    return found


def _pieces(text: str, start: int, end: int, pattern: re.Pattern[str]) -> list[Range]:
    """The text cut after every separator."""
    edges = [start, *(found.end() for found in pattern.finditer(text, start, end)), end]
    return [(a, b) for a, b in pairwise(edges) if a < b]
