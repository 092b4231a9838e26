"""From documents to chunks: what builds a chunker, and what all of them share.

Without an overlap chunks tile their document: blanks between two sentences belong to the chunk before them, so that no
way to cut loses characters of a gold span. Only chunks that would be blank are left out.

Example:
    >>> chunker = build_chunker(FixedCharacters(size=16, overlap=4))
    >>> [chunk.text for chunk in chunker.chunk(Document("a", "The deposit is 300 euros."))]
    ['The deposit is 3', 'is 300 euros.']
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.rag import CHUNKERS, load_stage
from pipelines.rag.base import Chunk, Chunker, Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Range = tuple[int, int]
"""Characters `[start, end)`."""
Embed = Callable[[Sequence[str]], "NDArray[np.float32]"]
"""Texts to (n, dimension) vectors."""


def build_chunker(config: Any, embed: Embed | None = None) -> Chunker:
    """The chunker that `chunk:` names.

    Args:
        config: one of `pipelines.rag.stages.ChunkConfig`.
        embed: for semantic chunks: the vectors of texts by `config.embedding_model`.

    Raises:
        UserError: if a tokenizer can't be found or read.
    """
    chunker: Chunker = load_stage(CHUNKERS, config.type)(config, embed)
    return chunker


def chunk_documents(chunker: Chunker, documents: Iterable[Document]) -> list[Chunk]:
    """The chunks of a corpus, document by document; a chunker that asks a model is given all documents at once."""
    together: Callable[[Iterable[Document]], list[Chunk]] | None = getattr(chunker, "chunk_all", None)
    if together is not None:
        return together(documents)
    return [chunk for document in documents for chunk in chunker.chunk(document)]


def chunks_of(document: Document, ranges: Iterable[Range]) -> list[Chunk]:
    """Ranges of a document as chunks; blank ones are left out."""
    slices = ((start, end, document.text[start:end]) for start, end in ranges)
    return [Chunk(document.id, start, end, text) for start, end, text in slices if text.strip()]


def windows(start: int, end: int, size: int, overlap: int) -> list[Range]:
    """Windows of `size` over `[start, end)`, each beginning `overlap` before the end of the one before; the last one is shorter."""
    found = []
    while start < end:
        found.append((start, min(start + size, end)))
        if start + size >= end:
            break
        start += size - overlap
    return found
