"""FAISS stores: Flat (exact), HNSW (a graph, Malkov & Yashunin, arXiv 1603.09320) and IVF (lists around centroids).

HNSW and IVF are built by one thread, IVF with a seed, so that the same vectors give the same index on every machine.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.rag.base import Hit
from pipelines.rag.index import SPARE, hits, prepared, refuse_other_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.rag.stages import FaissFlat, FaissHNSW, FaissIVF


class _FaissStore:
    """Searches an index of FAISS and speaks our scores."""

    exact = False

    def __init__(self, index: Any, distance: str) -> None:
        self._index = index
        self._distance = distance

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[Hit]]:
        """See `VectorStore.search`."""
        if not self._index.ntotal or not len(queries):
            return [[] for _ in queries]
        refuse_other_size(queries, self._index.d)
        wanted = min(self._index.ntotal, k + SPARE)
        scores, chunks = self._index.search(prepared(queries, self._distance), wanted)
        sign = -1.0 if self._distance == "l2" else 1.0
        return [hits(sign * row, places, k) for row, places in zip(scores, chunks, strict=True)]


class FlatStore(_FaissStore):
    """Every vector is looked at."""

    exact = True

    def __init__(self, config: FaissFlat, vectors: NDArray[np.float32]) -> None:
        import faiss

        index = faiss.IndexFlat(vectors.shape[1], _metric(config.distance))
        index.add(vectors)
        super().__init__(index, config.distance)


class HNSWStore(_FaissStore):
    """A graph of near vectors."""

    def __init__(self, config: FaissHNSW, vectors: NDArray[np.float32]) -> None:
        import faiss

        index = faiss.IndexHNSWFlat(vectors.shape[1], config.neighbors, _metric(config.distance))
        index.hnsw.efConstruction = config.ef_construction
        index.hnsw.efSearch = config.ef_search
        with _one_thread():
            index.add(vectors)
        super().__init__(index, config.distance)


class IVFStore(_FaissStore):
    """Lists around centroids, of which the nearest are searched."""

    def __init__(self, config: FaissIVF, vectors: NDArray[np.float32]) -> None:
        import faiss

        count = len(vectors)
        lists = min(count, config.lists or max(1, round(4 * math.sqrt(count)))) or 1
        metric = _metric(config.distance)
        quantizer = faiss.IndexFlat(vectors.shape[1], metric)
        index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], lists, metric)
        index.cp.seed = config.seed
        index.cp.min_points_per_centroid = 1
        index.nprobe = min(config.probes, lists)
        with _one_thread():
            if count:
                index.train(vectors)
            index.add(vectors)
        self.quantizer = quantizer
        super().__init__(index, config.distance)


def _metric(distance: str) -> int:
    import faiss

    metric: int = faiss.METRIC_L2 if distance == "l2" else faiss.METRIC_INNER_PRODUCT
    return metric


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
