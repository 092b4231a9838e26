"""Vector stores: laws that every store keeps, that exact ones agree to the last bit, and what approximate ones miss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines import rag
from pipelines.rag.base import Hit, VectorStore
from pipelines.rag.index import build_store, prepared, recall_of, scores_of, store_recall, top
from pipelines.rag.stages import Chroma, Distance, FaissFlat, FaissHNSW, FaissIVF
from pipelines.stage import UserError

DISTANCES: tuple[Distance, ...] = ("cosine", "inner_product", "l2")
EXACT: dict[str, Any] = {
    "faiss_flat": FaissFlat(),
    "chroma exact": Chroma(ef_search="exact"),
}
STORES: dict[str, Any] = {
    **EXACT,
    "faiss_hnsw": FaissHNSW(),
    "faiss_ivf": FaissIVF(),
    "chroma": Chroma(),
}


def vectors(count: int, dimension: int = 12, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)


def store(name: str, rows: NDArray[np.float32], distance: Distance = "cosine", **settings: Any) -> VectorStore:
    return build_store(STORES[name].model_copy(update={"distance": distance, **settings}), rows)


def truth(rows: NDArray[np.float32], queries: NDArray[np.float32], k: int, distance: str) -> list[list[Hit]]:
    """By sorting every score, in plain Python."""
    found = []
    for query in prepared(queries, distance):
        scores = scores_of(prepared(rows, distance), query, distance)
        order = sorted(range(len(rows)), key=lambda chunk: (-scores[chunk], chunk))
        found.append([Hit(chunk, float(scores[chunk])) for chunk in order[:k]])
    return found


def test_every_store_is_held_to_the_contract() -> None:
    assert {config.type for config in STORES.values()} == set(rag.STORES)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", STORES)
class TestContract:
    def test_lists_are_ordered_and_scored_rightly(self, name: str, distance: Distance) -> None:
        rows, queries = vectors(300), vectors(25, seed=1)
        found = store(name, rows, distance).search(queries, 7)
        assert len(found) == 25
        for query, hits in zip(prepared(queries, distance), found, strict=True):
            assert 1 <= len(hits) <= 7
            assert len({hit.chunk for hit in hits}) == len(hits)
            assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.chunk))
            scores = scores_of(prepared(rows, distance), query, distance)
            assert [hit.score for hit in hits] == [scores[hit.chunk] for hit in hits]

    def test_what_is_asked_beside_a_query_changes_nothing(self, name: str, distance: Distance) -> None:
        rows, queries = vectors(300), vectors(40, seed=2)
        made = store(name, rows, distance)
        assert [made.search(query[None], 5)[0] for query in queries] == made.search(queries, 5)

    def test_more_is_asked_for_than_there_is(self, name: str, distance: Distance) -> None:
        rows = vectors(3)
        found = store(name, rows, distance).search(rows, 50)
        assert [len(hits) for hits in found] == [3, 3, 3]

    def test_one_vector_and_none(self, name: str, distance: Distance) -> None:
        assert [hit.chunk for hit in store(name, vectors(1), distance).search(vectors(1), 5)[0]] == [0]
        assert store(name, vectors(0), distance).search(vectors(2), 5) == [[], []]
        assert store(name, np.zeros((0, 0), np.float32), distance).search(vectors(2), 5) == [[], []]
        assert store(name, vectors(4), distance).search(vectors(0), 5) == []

    def test_another_size_is_refused(self, name: str, distance: Distance) -> None:
        with pytest.raises(UserError, match=r"has 5 numbers, but the index holds vectors of 12"):
            store(name, vectors(10), distance).search(vectors(1, dimension=5), 3)

    def test_ties_are_in_the_order_of_chunks(self, name: str, distance: Distance) -> None:
        rows = np.repeat(vectors(2), [3, 3], axis=0)[[3, 0, 1, 4, 2, 5]]
        [hits] = store(name, rows, distance).search(rows[:1], 6)
        assert [hit.chunk for hit in hits if hit.score == hits[0].score] == [0, 3, 5]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", EXACT)
class TestExact:
    def test_finds_the_true_neighbours(self, name: str, distance: Distance) -> None:
        rows, queries = vectors(500), vectors(30, seed=4)
        made = store(name, rows, distance)
        assert made.exact
        assert made.search(queries, 20) == truth(rows, queries, 20, distance)

    def test_a_tie_longer_than_what_is_asked_for_keeps_its_order(self, name: str, distance: Distance) -> None:
        rows = np.concatenate([vectors(5), np.repeat(vectors(1, seed=9), 200, axis=0)])
        [hits] = store(name, rows, distance).search(rows[-1:], 10)
        [true] = truth(rows, rows[-1:], 10, distance)
        assert [hit.score for hit in hits] == [hit.score for hit in true]
        if name == "faiss_flat":  # Chroma's graph does not lead from each of many equal vectors to every other one
            assert hits == true

    def test_shorter_lists_are_the_beginning_of_longer_ones(self, name: str, distance: Distance) -> None:
        rows, queries = np.repeat(vectors(80), 3, axis=0), vectors(10, seed=5)
        made = store(name, rows, distance)
        whole = made.search(queries, 60)
        for k in (1, 2, 7, 31):
            assert made.search(queries, k) == [hits[:k] for hits in whole]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_exact_search_is_a_sort_however_many_ties_there_are(data: st.DataObject) -> None:
    distance: Distance = data.draw(st.sampled_from(DISTANCES))
    count, k = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 60))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows, queries = (random.integers(-1, 2, size=(n, 4)).astype(np.float32) for n in (count, 25))
    assert store("faiss_flat", rows, distance).search(queries, k) == truth(rows, queries, k, distance)


POOR: dict[str, dict[str, Any]] = {
    "faiss_hnsw": {"neighbors": 6, "ef_construction": 20, "ef_search": 10},
    "faiss_ivf": {"probes": 2},
    "faiss_flat": {},
    "chroma exact": {},
}
"""Settings that miss much, so that two indexes that differ would miss different neighbours."""


@pytest.mark.parametrize("name", POOR)
def test_a_rebuilt_store_answers_the_same(name: str) -> None:
    rows, queries = vectors(2000, 48), vectors(40, 48, seed=3)
    one, other = (store(name, rows.copy(), **POOR[name]) for _ in range(2))
    assert one.search(queries, 10) == other.search(queries, 10)
    flat = store("faiss_flat", rows)
    assert (store_recall(one, flat, queries, 10) < 0.5) == (not one.exact)


@pytest.mark.parametrize("name", STORES)
def test_zero_vectors_are_at_cosine_zero(name: str) -> None:
    rows = np.concatenate([np.zeros((1, 6)), np.eye(6), -np.eye(6)[:1]]).astype(np.float32)
    [hits] = store(name, rows, neighbors=16).search(np.eye(6, dtype=np.float32)[:1], 8)
    assert hits[0] == Hit(1, 1.0)
    assert Hit(0, 0.0) in hits
    assert hits[-1] == Hit(7, -1.0)
    assert {hit.score for hit in store(name, rows).search(np.zeros((1, 6), np.float32), 8)[0]} == {0.0}


def test_distances_are_named_and_differ() -> None:
    rows = np.array([[10, 10], [1, 0.1], [0.1, 0.09]], np.float32)
    query = np.array([[1, 0.9]], np.float32)
    order = {d: [h.chunk for h in store("faiss_flat", rows, d).search(query, 3)[0]] for d in DISTANCES}
    assert order == {"cosine": [2, 0, 1], "inner_product": [0, 1, 2], "l2": [1, 2, 0]}
    scores = {d: store("faiss_flat", rows, d).search(query, 3)[0][0].score for d in DISTANCES}
    assert scores["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert scores["inner_product"] == pytest.approx(19.0, rel=1e-6)
    assert scores["l2"] == pytest.approx(-0.64, rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", STORES)
def test_scores_of_the_libraries_mean_ours(name: str, distance: Distance) -> None:
    """Cosine is 1 - distance of Chroma and the inner product of unit vectors in FAISS, within float32's rounding."""
    rows, queries = vectors(200), prepared(vectors(10, seed=6), distance)
    made: Any = store(name, rows, distance)
    chunks, own = made.neighbours(queries, 5)
    for query, places, scores in zip(queries, chunks, own, strict=True):
        there = places >= 0
        ours = scores_of(prepared(rows, distance)[places[there]], query, distance)
        assert scores[there] == pytest.approx(ours, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("name", "distance"), [("faiss_hnsw", "cosine"), ("faiss_ivf", "l2")])
def test_faiss_is_built_bit_by_bit_the_same(name: str, distance: Distance) -> None:
    import faiss

    one, other = (
        faiss.serialize_index(store(name, vectors(2000), distance).index)  # type: ignore[attr-defined]
        for _ in range(2)
    )
    assert one.tobytes() == other.tobytes()


def test_the_clustering_has_a_seed() -> None:
    import faiss

    one, other = (
        faiss.serialize_index(store("faiss_ivf", vectors(500), seed=seed).index)  # type: ignore[attr-defined]
        for seed in (0, 1)
    )
    assert one.tobytes() != other.tobytes()


def test_more_lists_than_vectors_are_cut_to_them() -> None:
    rows = vectors(5)
    found = store("faiss_ivf", rows, lists=64, probes=64).search(rows, 1)
    assert [hits[0].chunk for hits in found] == [0, 1, 2, 3, 4]


def test_recall_of_stores() -> None:
    rows, queries = vectors(2000, 32), vectors(50, 32, seed=7)
    flat = store("faiss_flat", rows)
    assert store_recall(flat, flat, queries, 10) == 1.0
    assert store_recall(store("chroma exact", rows), flat, queries, 10) == 1.0
    poor = store_recall(store("faiss_ivf", rows, probes=1), flat, queries, 10)
    better = store_recall(store("faiss_ivf", rows, probes=60), flat, queries, 10)
    assert 0 < poor < 0.9 < better
    assert store_recall(store("faiss_ivf", rows, probes=10_000), flat, queries, 10) == 1.0


def test_recall_counts_a_tie_as_right() -> None:
    true = [[Hit(0, 1.0), Hit(1, 0.5)], [Hit(4, 0.2)]]
    assert recall_of([[Hit(0, 1.0), Hit(7, 0.5)], [Hit(9, 0.1)]], true) == pytest.approx(2 / 3)
    assert recall_of([[], []], true) == 0.0
    assert np.isnan(recall_of([[]], [[]]))


def test_exact_chroma_that_is_not_exact_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = vectors(200)
    made: Any = store("chroma exact", rows)
    honest = made.neighbours

    def forgetful(queries: NDArray[np.float32], k: int) -> Any:
        chunks, scores = honest(queries, k)
        return chunks[:, 1:], scores[:, 1:]

    monkeypatch.setattr(made, "neighbours", forgetful)
    with pytest.raises(UserError, match=r"so it is not exact; raise neighbors and ef_construction, or take faiss_flat"):
        made.search(vectors(5, seed=8), 5)


def test_chroma_takes_more_than_one_of_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from chromadb.api.client import Client

    monkeypatch.setattr(Client, "get_max_batch_size", lambda self: 64)
    rows, queries = vectors(300), vectors(10, seed=11)
    assert store("chroma exact", rows).search(queries, 5) == truth(rows, queries, 5, "cosine")


def test_a_dropped_chroma_store_leaves_no_collection() -> None:
    import chromadb

    made: Any = store("chroma", vectors(10))
    name = made._collection.name
    client = chromadb.EphemeralClient(made._collection._client.get_settings())
    assert name in [collection.name for collection in client.list_collections()]
    del made
    assert name not in [collection.name for collection in client.list_collections()]


def test_a_chroma_folder_of_another_version_is_neither_read_nor_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma's own default places, with what an unknown version might have left there."""
    monkeypatch.chdir(tmp_path)
    for folder in ("chroma", "chroma_data", ".chroma"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "chroma.sqlite3").write_bytes(b"SQLite format 3\0of another version")
    before = {str(path): path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    rows, queries = vectors(50), vectors(5, seed=11)
    assert store("chroma exact", rows).search(queries, 5) == truth(rows, queries, 5, "cosine")
    assert {str(path): path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_top_is_a_stable_sort() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        scores = random.integers(0, 6, size=40).astype(np.float64)
        order = sorted(range(40), key=lambda place: -scores[place])
        for k in (0, 1, 5, 39, 40, 99):
            assert list(top(scores, k)) == order[:k]
