"""Semantic chunks: cut where neighbouring sentences differ most in meaning.

Every sentence is embedded with `window` neighbours on each side; d_i is the cosine distance between windows i and i + 1.
A document is cut after sentence i where d_i is above a threshold, as LangChain's SemanticChunker (langchain-experimental
0.4) defines it after Kamradt's "5 Levels of Text Splitting":

- percentile: the `amount`-th percentile of d (95),
- standard_deviation: mean + `amount` x standard deviation of d (3),
- interquartile: mean + `amount` x (75th - 25th percentile) of d (1.5),
- gradient: where the gradient of d (central differences) is above its own `amount`-th percentile (95).

Sentences are those of `pipelines.rag.sentences`, not of LangChain's regular expression; of a document with two sentences,
whose gradient is not defined, LangChain makes two chunks and this one. `size` then bounds chunks: a larger one is cut
between sentences, a larger sentence anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pipelines.rag.base import Chunk, Document
from pipelines.rag.chunk import Embed, Range, chunks_of, windows
from pipelines.rag.chunk_sentences import packed
from pipelines.rag.sentences import sentences
from pipelines.rag.stages import Semantic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AMOUNTS = {"percentile": 95.0, "standard_deviation": 3.0, "interquartile": 1.5, "gradient": 95.0}
"""LangChain's defaults."""


class SemanticChunker:
    """Implements `Chunker`."""

    def __init__(self, config: Semantic, embed: Embed | None = None) -> None:
        if embed is None:
            raise ValueError("a semantic chunker must be given an embedder, but got None")
        self.config = config
        self._embed = embed

    def chunk(self, document: Document) -> list[Chunk]:
        """See `Chunker`."""
        return self.chunk_all([document])

    def chunk_all(self, documents: Iterable[Document]) -> list[Chunk]:
        """The chunks of many documents, all windows embedded at once."""
        listed = list(documents)
        cut = [sentences(document.text) for document in listed]
        texts = [text for document, pieces in zip(listed, cut, strict=True) for text in self._windows(document, pieces)]
        vectors = self._embed(texts) if texts else None
        found: list[Chunk] = []
        place = 0
        for document, pieces in zip(listed, cut, strict=True):
            if len(pieces) < 2 or vectors is None:
                found += chunks_of(document, self._bounded(pieces))
                continue
            inside = breakpoints(
                distances(vectors[place : place + len(pieces)]), self.config.breakpoint, self.config.amount
            )
            place += len(pieces)
            found += chunks_of(document, [part for group in _groups(pieces, inside) for part in self._bounded(group)])
        return found

    def _windows(self, document: Document, pieces: Sequence[Range]) -> list[str]:
        if len(pieces) < 2:
            return []
        reach, last = self.config.window, len(pieces) - 1
        edges = [(max(0, i - reach), min(last, i + reach)) for i in range(len(pieces))]
        return [document.text[pieces[a][0] : pieces[b][1]].strip() for a, b in edges]

    def _bounded(self, pieces: Sequence[Range]) -> list[Range]:
        """One chunk of neighbouring sentences, or as many as its size needs."""
        if not pieces:
            return []
        if self.config.size is None:
            return [(pieces[0][0], pieces[-1][1])]
        size = self.config.size
        return [part for start, end in packed(pieces, size) for part in windows(start, end, size, 0)]


def distances(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n - 1,) cosine distances between neighbours of (n, dimension); a zero vector is at distance 1 from all."""
    import numpy as np

    wide = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(wide, axis=1)
    products = (wide[:-1] * wide[1:]).sum(axis=1)
    scale = norms[:-1] * norms[1:]
    cosines = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    return np.asarray(1 - cosines)


def breakpoints(d: NDArray[np.float64], kind: str, amount: float | None = None) -> list[int]:
    """The sentences after which is cut, ascending.

    Args:
        d: (n - 1,) distances between neighbouring sentences.
        kind: `percentile`, `standard_deviation`, `interquartile` or `gradient`.
        amount: as the kind means it; `AMOUNTS` by default.
    """
    import numpy as np

    amount = AMOUNTS[kind] if amount is None else amount
    if len(d) < (2 if kind == "gradient" else 1):
        return []
    compared = d
    if kind == "gradient":
        compared = np.gradient(d)
    if kind in ("percentile", "gradient"):
        threshold = float(np.percentile(compared, amount))
    elif kind == "standard_deviation":
        threshold = float(d.mean() + amount * d.std())
    else:
        low, high = np.percentile(d, [25, 75])
        threshold = float(d.mean() + amount * (high - low))
    return [int(i) for i in np.flatnonzero(compared > threshold)]


def _groups(pieces: Sequence[Range], after: Sequence[int]) -> list[Sequence[Range]]:
    edges = [0, *(i + 1 for i in after), len(pieces)]
    return [pieces[a:b] for a, b in pairwise(edges) if a < b]
