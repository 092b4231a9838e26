"""Whole sentences, as many as fit."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.rag.base import Chunk, Document
from pipelines.rag.chunk import Embed, Range, chunks_of
from pipelines.rag.sentences import sentences
from pipelines.rag.stages import Sentences


class SentencesChunker:
    """Implements `Chunker`. Where `overlap` sentences and the next one are larger than `size`, fewer are shared."""

    def __init__(self, config: Sentences, embed: Embed | None = None) -> None:
        self.config = config

    def chunk(self, document: Document) -> list[Chunk]:
        """See `Chunker`."""
        pieces = sentences(document.text)
        return chunks_of(document, packed(pieces, self.config.size, self.config.overlap))


def packed(pieces: Sequence[Range], size: int, overlap: int = 0) -> list[Range]:
    """Neighbouring pieces joined while they fit into `size` characters; a larger piece stands alone.

    Args:
        pieces: ranges that tile a text.
        size: characters of a range.
        overlap: pieces at the end of a range that the next one begins with, at most.
    """
    found: list[Range] = []
    first = 0
    while first < len(pieces):
        last = first + 1
        while last < len(pieces) and pieces[last][1] - pieces[first][0] <= size:
            last += 1
        found.append((pieces[first][0], pieces[last - 1][1]))
        if last == len(pieces):
            break
        shared = max(first + 1, last - overlap)
        while shared < last and pieces[last][1] - pieces[shared][0] > size:
            shared += 1
        first = shared
    return found
