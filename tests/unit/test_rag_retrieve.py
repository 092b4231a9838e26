"""Retrievers: laws that each keeps, lists made once, and what BM25, fusion and MMR compute."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import rag, versions
from pipelines.rag import retrieve
from pipelines.rag.base import Hit
from pipelines.rag.retrieve import build_retriever, kept
from pipelines.rag.retrieve_dense import fused, marginal
from pipelines.rag.stages import (
    BM25,
    MMR,
    Chroma,
    Dense,
    FaissFlat,
    FaissHNSW,
    FaissIVF,
    Hybrid,
    ReciprocalRank,
    Terms,
    WeightedScores,
)
from tests.unit.rag_asking import QUESTIONS, TEXTS, CountingHost, chunks, drawn, make_calls

RETRIEVERS: dict[str, Any] = {
    "bm25": BM25(),
    "bm25+": BM25(variant="bm25+"),
    "dense": Dense(embedding_model="wordllama"),
    "dense chroma": Dense(embedding_model="wordllama", store=Chroma(ef_search="exact")),
    "dense hnsw": Dense(embedding_model="wordllama", store=FaissHNSW()),
    "hybrid": Hybrid(embedding_model="wordllama", candidates=6),
    "hybrid weighted": Hybrid(embedding_model="wordllama", fusion=WeightedScores()),
    "mmr": MMR(embedding_model="wordllama", candidates=8),
}


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    retrieve._KEPT.clear()
    yield
    retrieve._KEPT.clear()


def test_every_retriever_is_held_to_the_contract() -> None:
    assert {config.type for config in RETRIEVERS.values()} == set(rag.RETRIEVERS)


@pytest.mark.parametrize("name", RETRIEVERS)
class TestContract:
    def test_lists(self, name: str, tmp_path: Path) -> None:
        retriever = build_retriever(RETRIEVERS[name], chunks(), make_calls(CountingHost(), tmp_path))
        lists = retriever.retrieve(QUESTIONS, 4)
        assert len(lists) == len(QUESTIONS)
        for hits in lists:
            assert len(hits) <= 4
            assert all(0 <= hit.chunk < len(TEXTS) and math.isfinite(hit.score) for hit in hits)
            assert len({hit.chunk for hit in hits}) == len(hits)
            if not name.startswith("mmr"):
                assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.chunk))
        assert len(lists[0]) == 4 or name.startswith("bm25")

    def test_a_list_is_made_once_and_needs_nothing_the_second_time(self, name: str, tmp_path: Path) -> None:
        host = CountingHost()
        first = build_retriever(RETRIEVERS[name], chunks(), make_calls(host, tmp_path)).retrieve(QUESTIONS, 4)
        retrieve._KEPT.clear()
        host.asked.clear()
        calls = make_calls(host, tmp_path)
        assert build_retriever(RETRIEVERS[name], chunks(), calls).retrieve(QUESTIONS, 4) == first
        assert host.asked == []
        assert retrieve._KEPT == {}
        assert (calls.usage["retrieve"].calls, calls.usage["retrieve"].computed) == (len(QUESTIONS), 0)

    def test_a_smaller_k_is_free_for_prefix_retrievers_alone(self, name: str, tmp_path: Path) -> None:
        calls = make_calls(CountingHost(), tmp_path)
        retriever = build_retriever(RETRIEVERS[name], chunks(), calls)
        whole = retriever.retrieve(QUESTIONS, 8)
        for k in (5, 1):
            lists = retriever.retrieve(QUESTIONS, k)
            if retriever.prefix:
                assert lists == [hits[:k] for hits in whole]
        distinct = calls.usage["retrieve"].computed / len(set(QUESTIONS))
        assert distinct == (1 if retriever.prefix else 3)
        assert retriever.prefix == (name != "dense hnsw")

    def test_a_question_does_not_depend_on_the_others(self, name: str) -> None:
        retriever = build_retriever(RETRIEVERS[name], chunks(), make_calls(CountingHost()))
        assert [retriever.retrieve([one], 5)[0] for one in QUESTIONS] == retriever.retrieve(QUESTIONS, 5)

    def test_no_chunks_and_chunks_without_words(self, name: str) -> None:
        for texts in ((), ("!", "?")):
            lists = build_retriever(RETRIEVERS[name], chunks(texts), make_calls(CountingHost())).retrieve(QUESTIONS, 3)
            assert [len(hits) <= len(texts) for hits in lists] == [True] * len(QUESTIONS)

    def test_other_texts_another_list(self, name: str, tmp_path: Path) -> None:
        calls = make_calls(CountingHost(), tmp_path)
        one = build_retriever(RETRIEVERS[name], chunks(), calls)
        other = build_retriever(RETRIEVERS[name], chunks(TEXTS[::-1]), calls)
        assert one.identity != other.identity
        [mine], [theirs] = one.retrieve(QUESTIONS[:1], 1), other.retrieve(QUESTIONS[:1], 1)
        assert mine[0].chunk == len(TEXTS) - 1 - theirs[0].chunk


def test_the_recall_of_a_store_is_told_and_kept(tmp_path: Path) -> None:
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS]
    host = CountingHost()
    calls = make_calls(host, tmp_path)
    poor = FaissIVF(lists=40, probes=1)
    expected: dict[str, Any] = {
        "exact": (Dense(embedding_model="wordllama"), lambda recall: recall == 1.0),
        "poor": (Dense(embedding_model="wordllama", store=poor), lambda recall: 0 < recall < 0.9),
        "fused": (Hybrid(embedding_model="wordllama", store=poor), lambda recall: 0 < recall < 0.9),
        "mmr": (MMR(embedding_model="wordllama", store=poor), lambda recall: 0 < recall < 0.9),
        "words": (BM25(), lambda recall: recall is None),
    }
    for name, (config, right) in expected.items():
        recall = build_retriever(config, chunks(texts), calls).store_recall(QUESTIONS[:3], 10)
        assert right(recall), (name, recall)
        retrieve._KEPT.clear()
        host.asked.clear()
        assert build_retriever(config, chunks(texts), calls).store_recall(QUESTIONS[:3], 10) == recall
        assert host.asked == []
        assert retrieve._KEPT == {}


def test_every_setting_is_in_the_identity() -> None:
    calls = make_calls(CountingHost())
    configs = [
        *RETRIEVERS.values(),
        BM25(k1=1.2),
        BM25(b=0.5),
        BM25(stopwords="none"),
        Dense(embedding_model={"type": "wordllama", "dimension": 64}),
        Dense(embedding_model="wordllama", store=FaissFlat(distance="l2")),
        Dense(embedding_model="wordllama", store=FaissHNSW(ef_search=32)),
        Hybrid(embedding_model="wordllama", candidates=7),
        Hybrid(embedding_model="wordllama", candidates=6, bm25=Terms(k1=1.2)),
        Hybrid(embedding_model="wordllama", candidates=6, fusion=ReciprocalRank(k=30)),
        MMR(embedding_model="wordllama", candidates=8, relevance=0.7),
    ]
    seen = [json.dumps(dict(build_retriever(config, chunks(), calls).identity), sort_keys=True) for config in configs]
    assert len(set(seen)) == len(configs)
    same = [BM25(top_k=5), BM25(top_k=9)]
    assert len({json.dumps(dict(build_retriever(one, chunks(), calls).identity)) for one in same}) == 1


@pytest.mark.parametrize("name", ["bm25", "dense", "dense chroma", "hybrid"])
def test_lists_that_another_version_made_are_made_anew(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = make_calls(CountingHost(), tmp_path)
    first = build_retriever(RETRIEVERS[name], chunks(), calls).retrieve(QUESTIONS, 4)
    made = calls.usage["retrieve"].computed
    monkeypatch.setattr(versions, "_version", lambda package: "0.0.1")
    retrieve._KEPT.clear()
    assert build_retriever(RETRIEVERS[name], chunks(), calls).retrieve(QUESTIONS, 4) == first
    assert calls.usage["retrieve"].computed == 2 * made


def test_vectors_are_shared_between_stores_and_what_was_not_used_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    host = CountingHost()
    for name in ("dense", "dense hnsw", "mmr"):
        build_retriever(RETRIEVERS[name], chunks(), make_calls(host)).retrieve(QUESTIONS[:1], 2)
    assert sum(item in TEXTS for item in host.items) == len(TEXTS)
    built: list[str] = []

    def get(name: str) -> None:
        kept("thing", {"name": name}, lambda: built.append(name), lambda made: 40)

    retrieve._KEPT.clear()
    monkeypatch.setattr(retrieve, "KEPT_BYTES", 100)
    for name in ("a", "b", "a", "c", "a", "b"):
        get(name)
    assert built == ["a", "b", "c", "b"]


class TestBM25:
    def lucene(self, texts: list[list[str]], words: list[str], k1: float, b: float) -> list[float]:
        """The formula of Kamphuis et al. 2020, table 1, word by word."""
        mean = sum(map(len, texts)) / len(texts)
        scores = []
        for text in texts:
            score, counts = 0.0, Counter(text)
            for word in words:
                having = sum(word in other for other in texts)
                if word in counts:
                    idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
                    score += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(text) / mean))
            scores.append(score)
        return scores

    @pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (3.0, 0.0)])
    def test_is_the_formula(self, k1: float, b: float) -> None:
        def words(text: str) -> list[str]:
            return re.findall(r"\w\w+", text.lower())

        retriever = build_retriever(BM25(k1=k1, b=b, stopwords="none"), chunks(), make_calls(CountingHost()))
        for question in QUESTIONS[:3]:
            [hits] = retriever.retrieve([question], 10)
            scores = self.lucene([words(text) for text in TEXTS], words(question), k1, b)
            assert [hit.score for hit in hits] == pytest.approx(
                sorted((s for s in scores if s), reverse=True), rel=1e-5
            )
            assert [scores[hit.chunk] for hit in hits] == sorted((s for s in scores if s), reverse=True)

    @pytest.mark.parametrize("variant", ["lucene", "robertson", "atire", "bm25l", "bm25+"])
    def test_a_chunk_without_a_word_is_not_found(self, variant: Any) -> None:
        retriever = build_retriever(BM25(variant=variant), chunks(), make_calls(CountingHost()))
        [lift, nothing, unknown] = retriever.retrieve(["lift", "the", "xyzzy"], 10)
        assert sorted(hit.chunk for hit in lift) == [0, 9]
        assert nothing == unknown == []

    def test_ties_are_in_the_order_of_chunks(self) -> None:
        texts = ["red apple", "green pear", "red apple", "red apple"] * 30
        retriever = build_retriever(BM25(), chunks(texts), make_calls(CountingHost()))
        [hits] = retriever.retrieve(["apple"], 40)
        assert [hit.chunk for hit in hits] == [i for i in range(120) if i % 4 != 1][:40]

    def test_lists_beyond_the_first_size(self) -> None:
        texts = [f"word {'apple ' * (1 + i % 7)}" for i in range(300)]
        retriever = build_retriever(BM25(), chunks(texts), make_calls(CountingHost()))
        [long], [short] = retriever.retrieve(["apple"], 200), retriever.retrieve(["apple"], 20)
        assert len(long) == 200
        assert long[:20] == short


def test_dense_is_the_nearest_vector() -> None:
    retriever = build_retriever(RETRIEVERS["dense"], chunks(), make_calls(CountingHost()))
    lists = retriever.retrieve(TEXTS, 3)
    assert [hits[0].chunk for hits in lists] == list(range(len(TEXTS)))
    assert [hits[0].score for hits in lists] == pytest.approx([1.0] * len(TEXTS), abs=1e-6)
    a, b = drawn(TEXTS[0]), drawn(TEXTS[lists[0][1].chunk])
    assert lists[0][1].score == pytest.approx(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), abs=1e-6)


def test_vectors_that_outlived_their_model_are_refused() -> None:
    from pipelines.stage import UserError

    host = CountingHost()
    build_retriever(RETRIEVERS["dense"], chunks(), make_calls(host)).retrieve(["one"], 2)
    host.dimension = 5
    with pytest.raises(UserError, match=r"has 5 numbers, but the index holds vectors of 8"):
        build_retriever(RETRIEVERS["dense"], chunks(), make_calls(host)).retrieve(["two"], 2)


class TestFusion:
    near = (Hit(3, 0.9), Hit(1, 0.5), Hit(2, 0.1))
    words = (Hit(1, 8.0), Hit(7, 4.0))

    def test_reciprocal_ranks(self) -> None:
        assert fused(ReciprocalRank(k=60), self.near, self.words) == [
            Hit(1, 1 / 62 + 1 / 61),
            Hit(3, 1 / 61),
            Hit(7, 1 / 62),
            Hit(2, 1 / 63),
        ]

    def test_weighted_scores(self) -> None:
        hits = fused(WeightedScores(dense=0.75), self.near, self.words)
        assert [hit.chunk for hit in hits] == [3, 1, 2, 7]
        assert [hit.score for hit in hits] == pytest.approx([0.75, 0.75 * 0.5 + 0.25, 0.0, 0.0])

    def test_one_list_alone(self) -> None:
        assert [hit.chunk for hit in fused(WeightedScores(), [], [Hit(4, 2.0), Hit(5, 2.0)])] == [4, 5]
        assert fused(ReciprocalRank(), [], []) == []

    def test_the_ends_are_the_lists_themselves(self) -> None:
        calls = make_calls(CountingHost())
        near = build_retriever(RETRIEVERS["dense"], chunks(), calls).retrieve(QUESTIONS[:3], 5)
        config = Hybrid(embedding_model="wordllama", fusion=WeightedScores(dense=1.0), candidates=10)
        lists = build_retriever(config, chunks(), calls).retrieve(QUESTIONS[:3], 5)
        assert [[hit.chunk for hit in hits] for hits in lists] == [[hit.chunk for hit in hits] for hits in near]


class TestMMR:
    def test_relevance_alone_is_dense(self) -> None:
        calls = make_calls(CountingHost())
        config = MMR(embedding_model="wordllama", relevance=1.0)
        lists = build_retriever(config, chunks(), calls).retrieve(QUESTIONS[:3], 10)
        near = build_retriever(RETRIEVERS["dense"], chunks(), calls).retrieve(QUESTIONS[:3], 10)
        assert lists == near

    def test_a_double_is_taken_last(self) -> None:
        texts = [TEXTS[0], TEXTS[0], *TEXTS[1:4]]
        config = MMR(embedding_model="wordllama", relevance=0.3)
        [hits] = build_retriever(config, chunks(texts), make_calls(CountingHost())).retrieve([TEXTS[0]], 5)
        assert hits[0].chunk == 0
        assert hits[-1].chunk == 1

    def test_is_the_paper_s_formula(self) -> None:
        random = np.random.default_rng(3)
        pool = random.standard_normal((9, 4)).astype(np.float32)
        pool /= np.linalg.norm(pool, axis=1, keepdims=True)
        query = pool[0] * 0.6 + pool[1] * 0.8
        query /= np.linalg.norm(query)
        taken: list[int] = []
        for place, objective in marginal(query, pool, 6, 0.4):
            values = {
                i: 0.4 * float(pool[i] @ query) - 0.6 * max((float(pool[i] @ pool[j]) for j in taken), default=0.0)
                for i in range(9)
                if i not in taken
            }
            assert place == max(values, key=lambda i: values[i])
            assert objective == pytest.approx(values[place], abs=1e-6)
            taken.append(place)
        assert len(taken) == 6


def test_retrieval_imports_no_torch(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from tests.unit import rag_asking, test_rag_retrieve
from pipelines.rag.retrieve import build_retriever
calls = rag_asking.make_calls(rag_asking.CountingHost(), Path(sys.argv[1]))
for config in test_rag_retrieve.RETRIEVERS.values():
    build_retriever(config, rag_asking.chunks(), calls).retrieve(rag_asking.QUESTIONS, 3)
print(*sorted({"torch", "transformers", "sentence_transformers", "wordllama", "ray"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_wordllama_finds_what_the_question_means(tmp_path: Path) -> None:
    calls = make_calls(None, tmp_path)
    for name, config in RETRIEVERS.items():
        lists = build_retriever(config, chunks(), calls).retrieve(QUESTIONS[:3], 3)
        found = [[hit.chunk for hit in hits] for hits in lists]
        for gold, hits in zip((0, 8, 2), found, strict=True):
            if not (name.startswith("bm25") and gold == 2):  # "dog" and "dogs" are two words
                assert gold in hits, (name, gold, hits)
    assert list(itertools.chain(found))
