"""Windows of a fixed number of characters: a cut may fall anywhere, within a word too."""

from __future__ import annotations

from pipelines.rag.base import Chunk, Document
from pipelines.rag.chunk import Embed, chunks_of, windows
from pipelines.rag.stages import FixedCharacters


class FixedCharactersChunker:
    """Implements `Chunker`. The last window ends with the document and may be shorter; none lies within the one before."""

    def __init__(self, config: FixedCharacters, embed: Embed | None = None) -> None:
        self.config = config

    def chunk(self, document: Document) -> list[Chunk]:
        """See `Chunker`."""
        return chunks_of(document, windows(0, len(document.text), self.config.size, self.config.overlap))
