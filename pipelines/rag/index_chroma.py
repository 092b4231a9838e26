"""Chroma, in memory: its HNSW index, given vectors; its own embedding function (which downloads a model) is never used.

Chroma has no flat index: `ef_search: exact` searches as many candidates as there are vectors, and every search is held
against brute force. Nothing of Chroma's is written to disk, so no folder of another version is ever opened.
"""

from __future__ import annotations

import uuid
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.rag.base import Hit
from pipelines.rag.index import SPARE, TOLERANCE, brute_force, hits, prepared, refuse_other_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.rag.stages import Chroma

SPACES = {"cosine": "cosine", "inner_product": "ip", "l2": "l2"}


class NotExact(RuntimeError):
    """Chroma missed a neighbour although it was to search all vectors."""


class ChromaStore:
    """A collection of its own in a client that keeps nothing.

    Args:
        config: as the file has it.
        vectors: (chunks, dimension), as `prepared` makes them.

    Raises:
        NotExact: from `search`, where `ef_search: exact` was asked for and a neighbour is missing.
    """

    def __init__(self, config: Chroma, vectors: NDArray[np.float32]) -> None:
        import chromadb
        from chromadb.config import Settings

        self.exact = config.ef_search == "exact"
        self._distance = config.distance
        self._vectors = vectors
        self._candidates = max(len(vectors), 1) if config.ef_search == "exact" else config.ef_search
        client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
        name = f"stockpot-{uuid.uuid4().hex}"
        hnsw = {
            "space": SPACES[config.distance],
            "ef_construction": config.ef_construction,
            "ef_search": self._candidates,
            "max_neighbors": config.neighbors,
            "num_threads": 1,
        }
        self._collection: Any = client.create_collection(name, configuration={"hnsw": hnsw}, embedding_function=None)
        weakref.finalize(self, _forget, client, name)
        step = client.get_max_batch_size()
        for start in range(0, len(vectors), step):
            part = vectors[start : start + step]
            ids = [str(number) for number in range(start, start + len(part))]
            self._collection.add(ids=ids, embeddings=part)

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[Hit]]:
        """See `VectorStore.search`."""
        if not len(self._vectors) or not len(queries):
            return [[] for _ in queries]
        refuse_other_size(queries, self._vectors.shape[1])
        asked = prepared(queries, self._distance)
        wanted = min(len(self._vectors), k + SPARE if self.exact else k)
        answer = self._collection.query(query_embeddings=asked, n_results=wanted, include=["distances"])
        found = [
            hits(self._scores(np.asarray(distances, dtype=np.float64)), [int(name) for name in names], k)
            for names, distances in zip(answer["ids"], answer["distances"], strict=True)
        ]
        if self.exact:
            self._verify(asked, found, k)
        return found

    def _scores(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Chroma's distances (1 - cosine, 1 - inner product, squared L2) as our scores."""
        return -distances if self._distance == "l2" else 1.0 - distances

    def _verify(self, queries: NDArray[np.float32], found: list[list[Hit]], k: int) -> None:
        for mine, true in zip(found, brute_force(self._vectors, queries, k, self._distance), strict=True):
            slack = TOLERANCE * max(1.0, abs(true[0].score)) if true else 0.0
            if len(mine) < len(true) or (true and mine[-1].score < true[-1].score - 10 * slack):
                raise NotExact(
                    f"chroma with ef_search {self._candidates} missed a neighbour of {len(self._vectors)} vectors; use faiss_flat"
                )


def _forget(client: Any, name: str) -> None:
    try:
        client.delete_collection(name)
    except Exception:  # the interpreter may be going down; nothing is on disk
        return
