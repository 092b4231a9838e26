"""Chroma, in memory: its HNSW index, given vectors; its own embedding function (which downloads a model) is never used.

Chroma has no flat index: `ef_search: exact` searches as many candidates as there are vectors, and every search is held
against FAISS Flat. Nothing of Chroma's is written to disk, so no folder of another version is ever opened.

Chroma takes the vectors of one `add` in an order of its own, so two builds of an approximate index differ, and so may what
they miss; a list that was found once stays in the memo. Only one `add` a vector would give the same index again, at about
fifty times the time.
"""

from __future__ import annotations

import uuid
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.rag.base import Hit
from pipelines.rag.index import approximate, exact, prepared, recall_of, refuse_other_size
from pipelines.rag.index_faiss import FlatStore
from pipelines.rag.stages import FaissFlat
from pipelines.stage import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.rag.stages import Chroma

SPACES = {"cosine": "cosine", "inner_product": "ip", "l2": "l2"}


class ChromaStore:
    """A collection of its own in a client that keeps nothing.

    Args:
        config: as the file has it.
        vectors: (chunks, dimension), as `prepared` makes them.
    """

    def __init__(self, config: Chroma, vectors: NDArray[np.float32]) -> None:
        import chromadb
        from chromadb.config import Settings

        self.exact = config.ef_search == "exact"
        self._distance = config.distance
        self._vectors = vectors
        self._truth = FlatStore(FaissFlat(distance=config.distance), vectors) if self.exact else None
        client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
        name = f"stockpot-{uuid.uuid4().hex}"
        hnsw = {
            "space": SPACES[config.distance],
            "ef_construction": config.ef_construction,
            "ef_search": max(len(vectors), 1) if config.ef_search == "exact" else config.ef_search,
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

    @property
    def nbytes(self) -> int:
        """About what it takes in memory."""
        return (4 if self.exact else 3) * self._vectors.nbytes

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[Hit]]:
        """See `VectorStore.search`.

        Raises:
            UserError: where `ef_search: exact` was asked for and a neighbour is missing, and when the queries are of
                another size than the vectors.
        """
        if not len(self._vectors) or not len(queries):
            return [[] for _ in queries]
        refuse_other_size(queries, self._vectors.shape[1])
        asked = prepared(queries, self._distance)
        if self._truth is None:
            return approximate(self.neighbours, self._vectors, asked, k, self._distance)
        found = exact(self.neighbours, self._vectors, asked, k, self._distance)
        recall = recall_of(found, self._truth.search(queries, k))
        if recall < 1:
            raise UserError(
                f"store: chroma with ef_search: exact found {recall:.2%} of the {k} nearest of {len(self._vectors):,} chunks, "
                "so it is not exact; raise neighbors and ef_construction, or take faiss_flat"
            )
        return found

    def neighbours(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What Chroma finds for prepared queries: chunks (n, k), -1 where there is none, and its own scores (n, k)."""
        answer = self._collection.query(query_embeddings=queries, n_results=k, include=["distances"])
        chunks = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf)
        for row, (names, distances) in enumerate(zip(answer["ids"], answer["distances"], strict=True)):
            chunks[row, : len(names)] = [int(name) for name in names]
            scores[row, : len(names)] = self._scores(np.asarray(distances, dtype=np.float64))
        return chunks, scores

    def _scores(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Chroma's distances (1 - cosine, 1 - inner product, squared L2) as our scores."""
        return -distances if self._distance == "l2" else 1.0 - distances


def _forget(client: Any, name: str) -> None:
    try:
        client.delete_collection(name)
    except Exception:  # the interpreter may be going down; nothing is on disk
        return
