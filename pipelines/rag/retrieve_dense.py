"""Retrieval by vectors: nearest neighbours, their fusion with BM25, and maximal marginal relevance.

Reciprocal rank fusion (Cormack, Clarke & Buettcher 2009) sums 1 / (k + rank) over the lists that have a chunk, ranks from 1.
Weighted scores are scaled to 0..1 over each list (its best is 1, its worst 0; a list of equal scores is all 1), and a chunk
that a list lacks has 0 there. MMR (Carbonell & Goldstein 1998) takes, one after another, the chunk with the largest
relevance * sim(question, chunk) - (1 - relevance) * max sim(chunk, taken), with cosines throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.calls import Calls
from pipelines.rag.base import Chunk, Hit, VectorStore
from pipelines.rag.embed import build_embedder
from pipelines.rag.index import build_store, prepared
from pipelines.rag.retrieve import chunks_hash, kept, versions
from pipelines.rag.retrieve_bm25 import BM25Retriever

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.rag.stages import MMR, Dense, Hybrid

LIBRARIES = {"chroma": ("chromadb",)}


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
            "versions": versions("numpy", *LIBRARIES.get(kind, ("faiss-cpu",))),
        }
        self.prefix = kind == "faiss_flat" or getattr(config.store, "ef_search", None) == "exact"

    def retrieve(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.retrieve`."""
        if not self._chunks or not questions:
            return [[] for _ in questions]
        return self.store.search(self.embedder.queries(questions), k)

    @property
    def store(self) -> VectorStore:
        """The filled store, built when it is first needed."""
        store: VectorStore = kept("store", self.identity, lambda: build_store(self._store_config, self.vectors))
        return store

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(chunks, dimension) of all chunks."""
        return self.embedder.documents([chunk.text for chunk in self._chunks])


class HybridRetriever:
    """BM25 and nearest vectors, fused."""

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
        self.prefix = self._dense.prefix

    def retrieve(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.retrieve`; at most twice `candidates` hits."""
        pairs = zip(
            self._dense.retrieve(questions, self._config.candidates),
            self._words.retrieve(questions, self._config.candidates),
            strict=True,
        )
        return [fused(self._config.fusion, dense, words)[:k] for dense, words in pairs]


class MMRRetriever:
    """Near to the question, and unlike what was taken before."""

    def __init__(self, config: MMR, chunks: Sequence[Chunk], calls: Calls) -> None:
        self._config = config
        self._dense = DenseRetriever(config, chunks, calls)
        self.identity: Mapping[str, Any] = {
            "type": "mmr",
            "dense": dict(self._dense.identity),
            "relevance": config.relevance,
            "candidates": config.candidates,
        }
        self.prefix = self._dense.prefix

    def retrieve(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.retrieve`; at most `candidates` hits."""
        pools = self._dense.retrieve(questions, self._config.candidates)
        if not any(pools):
            return pools
        vectors = kept("vectors", self._dense.identity, lambda: prepared(self._dense.vectors, "cosine"))
        queries = prepared(self._dense.embedder.queries(questions), "cosine")
        return [
            marginal(query, vectors, [hit.chunk for hit in pool], k, self._config.relevance)
            for query, pool in zip(queries, pools, strict=True)
        ]


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
    query: NDArray[np.float32], vectors: NDArray[np.float32], pool: Sequence[int], k: int, relevance: float
) -> list[Hit]:
    """MMR's choice from a pool of chunks, in the order in which they are taken; the score is the objective.

    Args:
        query: (dimension,) of length 1.
        vectors: (chunks, dimension) of length 1.
        pool: chunks to choose among, nearest first; the earlier one wins a tie.
        k: chunks at most.
        relevance: the paper's lambda.
    """
    places = list(pool)
    near = vectors[places].astype(np.float64) @ query.astype(np.float64)
    among = vectors[places].astype(np.float64) @ vectors[places].astype(np.float64).T
    taken: list[Hit] = []
    left = np.ones(len(places), dtype=bool)
    closest = np.full(len(places), 0.0)
    for _ in range(min(k, len(places))):
        objective = np.where(left, relevance * near - (1 - relevance) * closest, -np.inf)
        best = int(np.argmax(objective))
        taken.append(Hit(places[best], float(objective[best])))
        left[best] = False
        closest = among[best] if len(taken) == 1 else np.maximum(closest, among[best])
    return taken
