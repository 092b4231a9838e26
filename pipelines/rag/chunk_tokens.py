"""Windows of a fixed number of tokens of a named tokenizer.

A document is tokenized once, whole; a window ends where the next token begins, so blanks that no token holds belong to the
window before them. Cut apart, a window's text may have a token more or less than `size`: words at its edges can be split
otherwise than in the whole document.
"""

from __future__ import annotations

from pipelines.rag.base import Chunk, Document
from pipelines.rag.chunk import Embed, chunks_of, windows
from pipelines.rag.stages import FixedTokens
from pipelines.rag.tokens import load_tokenizer, token_starts


class FixedTokensChunker:
    """Implements `Chunker`."""

    def __init__(self, config: FixedTokens, embed: Embed | None = None) -> None:
        load_tokenizer(config.tokenizer)
        self.config = config

    def chunk(self, document: Document) -> list[Chunk]:
        """See `Chunker`."""
        starts = token_starts(self.config.tokenizer, document.text)
        if not starts:
            return chunks_of(document, [(0, len(document.text))])
        edges = [0, *starts[1:], len(document.text)]
        ranges: list[tuple[int, int]] = []
        for first, last in windows(0, len(starts), self.config.size, self.config.overlap):
            start, end = edges[first], edges[last]
            # Where a character is many tokens, a window can begin or end with the one before it.
            if ranges and start <= ranges[-1][0]:
                start, _ = ranges.pop()
            if start < end and (not ranges or end > ranges[-1][1]):
                ranges.append((start, end))
        return chunks_of(document, ranges)
