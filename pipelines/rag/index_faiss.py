"""FAISS stores: Flat (exact), HNSW (a graph, Malkov & Yashunin, arXiv 1603.09320) and IVF (lists around centroids).

HNSW and IVF are built by one thread, IVF with a seed, so that the same vectors give the same index, bit by bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.rag.base import Hit
from pipelines.rag.index import approximate, exact, prepared, refuse_other_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.rag.stages import FaissFlat, FaissHNSW, FaissIVF


class _FaissStore:
    """Searches an index of FAISS."""

    exact = False

    def __init__(self, index: Any, vectors: NDArray[np.float32], distance: str) -> None:
        self.index = index
        self._vectors = vectors
        self._distance = distance

    @property
    def nbytes(self) -> int:
        """About what it takes in memory."""
        return 2 * self._vectors.nbytes

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[Hit]]:
        """See `VectorStore.search`.

        Raises:
            UserError: when the queries are of another size than the vectors.
        """
        if not len(self._vectors) or not len(queries):
            return [[] for _ in queries]
        refuse_other_size(queries, self._vectors.shape[1])
        find = exact if self.exact else approximate
        return find(self.neighbours, self._vectors, prepared(queries, self._distance), k, self._distance)

    def neighbours(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What FAISS finds for prepared queries: chunks (n, k), -1 where there is none, and its own scores (n, k)."""
        with _one_thread():
            scores, chunks = self.index.search(queries, k)
        return chunks, (-1.0 if self._distance == "l2" else 1.0) * scores.astype(np.float64)


class FlatStore(_FaissStore):
    """Every vector is looked at."""

    exact = True

    def __init__(self, config: FaissFlat, vectors: NDArray[np.float32]) -> None:
        import faiss

        index = faiss.IndexFlat(max(1, vectors.shape[1]), _metric(config.distance))
        if len(vectors):
            index.add(vectors)
        super().__init__(index, vectors, config.distance)


class HNSWStore(_FaissStore):
    """A graph of near vectors."""

    def __init__(self, config: FaissHNSW, vectors: NDArray[np.float32]) -> None:
        import faiss

        index = faiss.IndexHNSWFlat(max(1, vectors.shape[1]), config.neighbors, _metric(config.distance))
        index.hnsw.efConstruction = config.ef_construction
        index.hnsw.efSearch = config.ef_search
        if len(vectors):
            with _one_thread():
                index.add(vectors)
        super().__init__(index, vectors, config.distance)


class IVFStore(_FaissStore):
    """Lists around centroids, of which the nearest are searched; never more lists than vectors."""

    def __init__(self, config: FaissIVF, vectors: NDArray[np.float32]) -> None:
        import faiss

        count, dimension, metric = len(vectors), max(1, vectors.shape[1]), _metric(config.distance)
        lists = max(1, min(count, config.lists or round(4 * math.sqrt(count))))
        self._quantizer = faiss.IndexFlat(dimension, metric)
        index = faiss.IndexIVFFlat(self._quantizer, dimension, lists, metric)
        index.cp.seed = config.seed
        index.cp.min_points_per_centroid = 1
        index.nprobe = min(config.probes, lists)
        if count:
            with _one_thread():
                index.train(vectors)
                index.add(vectors)
        super().__init__(index, vectors, config.distance)


def _metric(distance: str) -> int:
    import faiss

    metric: int = faiss.METRIC_L2 if distance == "l2" else faiss.METRIC_INNER_PRODUCT
    return metric


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread of FAISS: a trial has a fraction of a core, and what several threads build differs from run to run."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
