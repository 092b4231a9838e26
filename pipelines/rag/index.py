"""Vector stores: one way to build and to search them, whatever lies behind, and what an approximate one misses.

Scores are higher for the nearer: the cosine, the inner product, or minus the squared L2 distance. Under `cosine` vectors
are normalised here, in front of every store, so that all stores mean the same; a vector of zeros stays one, and is at
cosine 0 to everything. Ties are in the order of chunks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.rag import STORES, load_stage
from pipelines.rag.base import Hit, VectorStore
from pipelines.stage import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPARE = 32
"""Neighbours asked for beyond k, so that ties at the end of a list are put in order too."""
TOLERANCE = 1e-5
"""Scores that differ by less (relative to the largest) count as equal when recall is measured."""


def build_store(config: Any, vectors: NDArray[np.float32]) -> VectorStore:
    """The store that `store:` names, filled.

    Args:
        config: a `pipelines.rag.stages.StoreConfig`.
        vectors: (chunks, dimension) float32.
    """
    store: VectorStore = load_stage(STORES, config.type)(config, prepared(vectors, config.distance))
    return store


def prepared(vectors: NDArray[np.float32], distance: str) -> NDArray[np.float32]:
    """Vectors as a store holds them: of length 1 under cosine, else as they are."""
    found = np.ascontiguousarray(vectors, dtype=np.float32)
    if distance != "cosine":
        return found
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 0)


def refuse_other_size(queries: NDArray[np.float32], dimension: int) -> None:
    """An embedding of another size than the index.

    Raises:
        UserError: naming both.
    """
    if queries.shape[1] != dimension:
        raise UserError(
            f"a question's embedding has {queries.shape[1]} numbers, but the index holds vectors of {dimension}; "
            "they must come from one model"
        )


def hits(scores: Iterable[float], chunks: Iterable[int], k: int) -> list[Hit]:
    """The k best, ties in the order of chunks; what a store could not fill (chunk below 0) is left out."""
    found = [Hit(int(chunk), float(score)) for chunk, score in zip(chunks, scores, strict=True) if chunk >= 0]
    return sorted(found, key=lambda hit: (-hit.score, hit.chunk))[:k]


def brute_force(vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, distance: str) -> list[list[Hit]]:
    """The true neighbours, in float64, of vectors and queries as `prepared` makes them."""
    x, q = vectors.astype(np.float64), queries.astype(np.float64)
    scores = q @ x.T
    if distance == "l2":
        scores = 2 * scores - (x**2).sum(axis=1)[None, :] - (q**2).sum(axis=1)[:, None]
    return [hits(row, range(len(row)), k) for row in scores]


def store_recall(store: VectorStore, exact: VectorStore, queries: NDArray[np.float32], k: int) -> float:
    """Share of the k nearest that a store finds, over all queries; one as near as the k-th nearest counts, whichever it is.

    Args:
        store: an approximate store.
        exact: an exact one over the same vectors and distance.
        queries: (n, dimension).
        k: neighbours.
    """
    found = wanted = 0
    for near, true in zip(store.search(queries, k), exact.search(queries, k), strict=True):
        if not true:
            continue
        slack = TOLERANCE * max(1.0, max(abs(hit.score) for hit in true))
        found += sum(hit.score >= true[-1].score - slack for hit in near)
        wanted += len(true)
    return found / wanted if wanted else float("nan")
