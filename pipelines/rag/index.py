"""Vector stores: one way to build and to search them, whatever lies behind, and what an approximate one misses.

Scores are higher for the nearer: the cosine, the inner product, or minus the squared L2 distance. Under `cosine` vectors
are normalised here, in front of every store, so that all stores mean the same; a vector of zeros stays one, and is at
cosine 0 to everything. A store finds candidates; their scores are computed here, in float64 and one pair at a time. So all
stores give a chunk the same score to the last bit, whatever was asked beside the question, and ties are in the order of
chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.rag import STORES, load_stage
from pipelines.rag.base import Hit, VectorStore
from pipelines.stage import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Neighbours = Callable[[NDArray[np.float32], int], tuple[NDArray[np.int64], NDArray[np.float64]]]
    """Prepared queries and k -> chunks (n, k), nearest first, -1 where there is none, and the store's own scores (n, k)."""

SPARE = 32
"""Neighbours that an exact store is asked for beyond k, so that ties at the end of a list are put in order too."""
TOLERANCE = 1e-5
"""Rounding of a store's own float32 scores, relative to the largest that lengths allow."""


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
    lengths = np.linalg.norm(found.astype(np.float64), axis=1, keepdims=True)
    return np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 0, casting="same_kind")


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


def scores_of(vectors: NDArray[np.float32], query: NDArray[np.float32], distance: str) -> NDArray[np.float64]:
    """The score of each vector for a query, both as `prepared` makes them; a row's neighbours don't change it.

    Args:
        vectors: (n, dimension).
        query: (dimension,).
        distance: how near two vectors are.
    """
    rows, asked = vectors.astype(np.float64), query.astype(np.float64)
    pairs = -((rows - asked) ** 2) if distance == "l2" else rows * asked
    scores: NDArray[np.float64] = pairs.sum(axis=1) + 0.0  # no -0
    return scores


def top(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Places of the k highest scores, best first, ties in order."""
    places = np.arange(len(scores))
    if 0 < k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= least)
    order: NDArray[np.int64] = places[np.argsort(-scores[places], kind="stable")][:k]
    return order


def approximate(
    neighbours: Neighbours, vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, distance: str
) -> list[list[Hit]]:
    """What a store finds for prepared queries, scored here."""
    wanted = min(k, len(vectors))
    found, _ = neighbours(queries, wanted)
    return [_ranked(vectors, query, places, k, distance) for query, places in zip(queries, found, strict=True)]


def exact(
    neighbours: Neighbours, vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, distance: str
) -> list[list[Hit]]:
    """The true k nearest by a store that ranks them rightly but for rounding and ties.

    More is asked for until the last one that a store gives is further away than the k-th by more than rounding.
    """
    lists: list[list[Hit]] = [[] for _ in queries]
    slack = TOLERANCE * _largest(vectors, queries, distance)
    open_places = np.arange(len(queries))
    wanted = min(len(vectors), k + SPARE)
    while len(open_places) and wanted:
        found, own = neighbours(queries[open_places], wanted)
        for at, places in zip(open_places, found, strict=True):
            lists[at] = _ranked(vectors, queries[at], places, k, distance)
        if wanted == len(vectors):
            break
        unsure = own[:, -1] >= own[:, min(k, wanted) - 1] - slack[open_places]
        open_places = open_places[unsure]
        wanted = min(len(vectors), 4 * wanted)
    return lists


def _ranked(
    vectors: NDArray[np.float32], query: NDArray[np.float32], places: NDArray[np.int64], k: int, distance: str
) -> list[Hit]:
    chunks = np.sort(places[places >= 0])
    scores = scores_of(vectors[chunks], query, distance)
    return [Hit(int(chunks[place]), float(scores[place])) for place in top(scores, k)]


def _largest(vectors: NDArray[np.float32], queries: NDArray[np.float32], distance: str) -> NDArray[np.float64]:
    """For each query, what the size of a score can't pass."""
    longest = float(np.linalg.norm(vectors, axis=1).max(initial=0.0))
    lengths = np.linalg.norm(queries, axis=1).astype(np.float64)
    return (lengths + longest) ** 2 if distance == "l2" else lengths * longest


def store_recall(store: VectorStore, truth: VectorStore, queries: NDArray[np.float32], k: int) -> float:
    """Share of the k nearest that a store finds, over all queries; one as near as the k-th nearest counts, whichever it is.

    Args:
        store: any store.
        truth: an exact one over the same vectors and distance.
        queries: (n, dimension).
        k: neighbours.

    Returns:
        NaN without queries or vectors.
    """
    return recall_of(store.search(queries, k), truth.search(queries, k))


def recall_of(found: Sequence[Sequence[Hit]], true: Sequence[Sequence[Hit]]) -> float:
    """Share of the true lists' length that is found: hits scored at least as high as the last true one."""
    wanted = sum(len(hits) for hits in true)
    right = sum(
        sum(hit.score >= hits[-1].score for hit in near) for near, hits in zip(found, true, strict=True) if hits
    )
    return right / wanted if wanted else float("nan")
