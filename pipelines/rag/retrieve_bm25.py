"""BM25 over words (Robertson & Zaragoza 2009), by bm25s (Lù 2024, arXiv 2407.03618): exact.

Words are lower-cased runs of two or more letters, digits and underscores, without English stop words where these are left
out; there is no stemming. Chunks that share no word with the question are not hits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.calls import Calls
from pipelines.rag.base import Chunk, Hit
from pipelines.rag.retrieve import chunks_hash, kept, versions

if TYPE_CHECKING:
    from pipelines.rag.stages import Terms


class BM25Retriever:
    """Scores every chunk for every question.

    Args:
        config: how words are weighed.
        chunks: of the whole corpus.
        calls: not asked; here as in every retriever.

    Attributes:
        identity: everything the lists depend on but the question.
        prefix: always true.
    """

    prefix = True

    def __init__(self, config: Terms, chunks: Sequence[Chunk], calls: Calls) -> None:
        self._config = config
        self._chunks = chunks
        terms = {name: getattr(config, name) for name in ("k1", "b", "variant", "stopwords")}
        self.identity: Mapping[str, Any] = {
            "type": "bm25",
            "chunks": chunks_hash(chunks),
            **terms,
            "versions": versions("bm25s"),
        }

    def retrieve(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.retrieve`."""
        if not self._chunks:
            return [[] for _ in questions]
        index = kept("bm25", self.identity, self._build)
        return [self._search(index, words, k) for words in self._words(questions)]

    def _build(self) -> Any:
        import bm25s

        index = bm25s.BM25(k1=self._config.k1, b=self._config.b, method=self._config.variant)
        index.index(self._words([chunk.text for chunk in self._chunks]), show_progress=False)
        return index

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        import bm25s

        stopwords = "en" if self._config.stopwords == "english" else []
        found: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords=stopwords, return_ids=False, show_progress=False, lower=True
        )
        return found

    def _search(self, index: Any, words: Sequence[str], k: int) -> list[Hit]:
        known = [word for word in words if word in index.vocab_dict]
        if not known:
            return []
        scores = np.asarray(index.get_scores(known), dtype=np.float64)
        order = np.lexsort((np.arange(len(scores)), -scores))[:k]
        return [Hit(int(place), float(scores[place])) for place in order if scores[place] != 0]
