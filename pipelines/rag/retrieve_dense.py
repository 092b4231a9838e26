"""Retrieval by vectors: nearest neighbours, their fusion with BM25, and maximal marginal relevance.

Reciprocal rank fusion (Cormack, Clarke & Buettcher 2009) sums 1 / (k + rank) over the lists that have a chunk, ranks from 1.
Weighted scores are scaled to 0..1 over each list (its best is 1, its worst 0; a list of equal scores is all 1), and a chunk
that a list lacks has 0 there. MMR (Carbonell & Goldstein 1998) takes, one after another, the chunk with the largest
relevance * sim(question, chunk) - (1 - relevance) * max sim(chunk, taken), with cosines throughout; its scores are that
objective when a chunk was taken, so they tell the order and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.calls import Calls
from pipelines.rag.base import Chunk, Hit, VectorStore
from pipelines.rag.embed import build_embedder
from pipelines.rag.index import build_store, prepared, scores_of, store_recall
from pipelines.rag.retrieve import Search, chunks_hash, kept
from pipelines.rag.retrieve_bm25 import BM25Retriever
from pipelines.rag.stages import FaissFlat
from pipelines.versions import library_versions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.rag.stages import MMR, Dense, Hybrid


class DenseRetriever:
    """Nearest vectors.

    Args:
        config: embedding model and store.
        chunks: of the whole corpus.
        calls: the lease's way to the embedding model.

    Attributes:
        identity: everything the lists depend on but the question.
        prefix: whether the store is exact.
    """

    def __init__(self, config: Dense | Hybrid | MMR, chunks: Sequence[Chunk], calls: Calls) -> None:
        self._store_config = config.store
        self._chunks = chunks
        self.embedder = build_embedder(config.embedding_model, calls)
        kind = config.store.type
        self.identity: Mapping[str, Any] = {
            "type": "dense",
            "chunks": chunks_hash(chunks),
            "embedding": dict(self.embedder.identity),
            "store": config.store.model_dump(mode="json"),
            "versions": library_versions("chromadb" if kind == "chroma" else "faiss-cpu"),
        }
        self.prefix = kind == "faiss_flat" or getattr(config.store, "ef_search", None) == "exact"

    def ready(self, questions: Sequence[str]) -> Search:
        """See `Maker.ready`."""
        if not self._chunks:
            return lambda k: [[] for _ in questions]
        store, queries = self.store, self.embedder.queries(questions)
        return lambda k: store.search(queries, k)

    def store_recall(self, questions: Sequence[str], k: int) -> float | None:
        """See `Maker.store_recall`; 1 for an exact store, None where there is nothing to find."""
        if self.prefix:
            return 1.0
        if not self._chunks or not questions:
            return None
        flat = build_store(FaissFlat(distance=self._store_config.distance), self.vectors)
        return store_recall(self.store, flat, self.embedder.queries(questions), k)

    @property
    def store(self) -> VectorStore:
        """The filled store, built when it is first needed."""
        store: VectorStore = kept(
            "store",
            self.identity,
            lambda: build_store(self._store_config, self.vectors),
            lambda made: made.nbytes,
        )
        return store

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(chunks, dimension) of all chunks, as the model gives them; shared by all stores."""
        found: NDArray[np.float32] = kept(
            "vectors",
            {name: self.identity[name] for name in ("chunks", "embedding")},
            lambda: self.embedder.documents([chunk.text for chunk in self._chunks]),
            lambda made: made.nbytes,
        )
        return found


class HybridRetriever:
    """BM25 and nearest vectors, fused. The lists that are fused are of one length, so every k has the same list."""

    prefix = True

    def __init__(self, config: Hybrid, chunks: Sequence[Chunk], calls: Calls) -> None:
        self._config = config
        self._dense = DenseRetriever(config, chunks, calls)
        self._words = BM25Retriever(config.bm25, chunks, calls)
        self.identity: Mapping[str, Any] = {
            "type": "hybrid",
            "dense": dict(self._dense.identity),
            "bm25": dict(self._words.identity),
            "fusion": config.fusion.model_dump(mode="json"),
            "candidates": config.candidates,
        }

    def ready(self, questions: Sequence[str]) -> Search:
        """See `Maker.ready`; at most twice `candidates` hits."""
        near, words, count = self._dense.ready(questions), self._words.ready(questions), self._config.candidates

        def search(k: int) -> list[list[Hit]]:
            pairs = zip(near(count), words(count), strict=True)
            return [fused(self._config.fusion, *pair)[:k] for pair in pairs]

        return search

    def store_recall(self, questions: Sequence[str], k: int) -> float | None:
        """See `Maker.store_recall`; over the candidates."""
        return self._dense.store_recall(questions, self._config.candidates)


class MMRRetriever:
    """Near to the question, and unlike what was taken before. The pool is of one size, so every k has the same list."""

    prefix = True

    def __init__(self, config: MMR, chunks: Sequence[Chunk], calls: Calls) -> None:
        self._config = config
        self._chunks = chunks
        self._dense = DenseRetriever(config, chunks, calls)
        self.identity: Mapping[str, Any] = {
            "type": "mmr",
            "dense": dict(self._dense.identity),
            "relevance": config.relevance,
            "candidates": config.candidates,
        }

    def ready(self, questions: Sequence[str]) -> Search:
        """See `Maker.ready`; at most `candidates` hits."""
        near = self._dense.ready(questions)
        if not self._chunks:
            return near
        vectors, queries = self._dense.vectors, prepared(self._dense.embedder.queries(questions), "cosine")

        def search(k: int) -> list[list[Hit]]:
            found = []
            for query, pool in zip(queries, near(self._config.candidates), strict=True):
                chunks = [hit.chunk for hit in pool]
                picked = marginal(query, prepared(vectors[chunks], "cosine"), k, self._config.relevance)
                found.append([Hit(chunks[place], score) for place, score in picked])
            return found

        return search

    def store_recall(self, questions: Sequence[str], k: int) -> float | None:
        """See `Maker.store_recall`; over the candidates."""
        return self._dense.store_recall(questions, self._config.candidates)


def fused(fusion: Any, dense: Sequence[Hit], words: Sequence[Hit]) -> list[Hit]:
    """Two lists as one, best first, ties in the order of chunks."""
    scores: dict[int, float] = {}
    if fusion.type == "rrf":
        for ranked in (dense, words):
            for rank, hit in enumerate(ranked, 1):
                scores[hit.chunk] = scores.get(hit.chunk, 0.0) + 1.0 / (fusion.k + rank)
    else:
        for ranked, weight in ((dense, fusion.dense), (words, 1.0 - fusion.dense)):
            for hit, scaled in zip(ranked, _scaled(ranked), strict=True):
                scores[hit.chunk] = scores.get(hit.chunk, 0.0) + weight * scaled
    return [Hit(chunk, score) for chunk, score in sorted(scores.items(), key=lambda item: (-item[1], item[0]))]


def _scaled(ranked: Sequence[Hit]) -> list[float]:
    if not ranked:
        return []
    low, high = min(hit.score for hit in ranked), max(hit.score for hit in ranked)
    return [1.0 if high == low else (hit.score - low) / (high - low) for hit in ranked]


def marginal(
    query: NDArray[np.float32], pool: NDArray[np.float32], k: int, relevance: float
) -> list[tuple[int, float]]:
    """MMR's choice from a pool, in the order in which they are taken: (place in the pool, the objective then).

    Args:
        query: (dimension,) of length 1.
        pool: (n, dimension) of length 1, nearest first; the earlier one wins a tie.
        k: places at most.
        relevance: the paper's lambda.
    """
    near = scores_of(pool, query, "cosine")
    left = np.ones(len(pool), dtype=bool)
    closest = np.zeros(len(pool))
    taken: list[tuple[int, float]] = []
    for _ in range(min(k, len(pool))):
        objective = np.where(left, relevance * near - (1 - relevance) * closest, -np.inf)
        best = int(np.argmax(objective))
        among = scores_of(pool, pool[best], "cosine")
        closest = np.maximum(closest, among) if taken else among
        taken.append((best, float(objective[best])))
        left[best] = False
    return taken
