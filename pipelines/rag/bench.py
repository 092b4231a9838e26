"""One RAG configuration at work: questions in, `Answered` out, every model asked through `Calls`.

The walk of a question: retrieve, rerank, correct, cut the context, generate. Corpora and chunks stay in the process, so
that the next lease of a warm worker finds them.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from evaluators.answers import Answered, Passage, Question
from pipelines.calls import Calls
from pipelines.rag import RERANKERS, load_stage
from pipelines.rag.base import Chunk, Reranker, passage_of
from pipelines.rag.config import Corpus, RagConfig
from pipelines.rag.context import cut
from pipelines.rag.correct import Corrector
from pipelines.rag.correct_build import build_corrector
from pipelines.rag.stages import Corrective

if TYPE_CHECKING:
    from pipelines.rag.corpus import CorpusText
    from pipelines.rag.retrieve import MemoisedRetriever

DEPTH = 20
"""Passages in a ranked list at least, so that lists can be scored at equal k and at equal budget."""
SPARE = 1.5
"""A budget is asked for so many times over, counted in chunks of the usual length."""


class Bench:
    """A configuration ready to work.

    Args:
        config: typed, paths absolute.
        calls: the lease's way to models.
        seed: of the run; added to the generator's own.
        cache: folder for converted models.

    Attributes:
        chunks: of the whole corpus, in order.
        seconds: wall time spent in each stage so far: `retrieve`, `rerank`, `correct`, `generate`.
    """

    def __init__(self, config: RagConfig, calls: Calls, seed: int = 0, cache: str | None = None) -> None:
        self.config = config
        self.calls = calls
        self._seed = seed
        self._cache = cache
        self.corpus = corpus_of(config.corpus_section)
        self.chunks = chunks_of(config, self.corpus, calls)
        self.seconds: dict[str, float] = {}
        self._retriever: MemoisedRetriever | None = None
        self._corrector: Corrector | None = None

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began

    def retrieved(self, questions: Sequence[Question], cuts: Sequence[int] = (), characters: int = 0) -> list[Answered]:
        """Ranked lists and contexts, without answers.

        Args:
            questions: in order.
            cuts: numbers of passages that evaluators look at.
            characters: characters that evaluators look at, at most.
        """
        depth = self._depth(cuts, characters)
        texts = [question.text for question in questions]
        with self._timed("retrieve"):
            lists = self._find(texts, depth)
        with self._timed("rerank"):
            lists = self._reranked(texts, lists)
        with self._timed("correct"):
            return [self._settled(question, ranked) for question, ranked in zip(questions, lists, strict=True)]

    def prepare(self, question: Question) -> None:
        """Build the index now, before a question that is timed would."""
        self._own_retriever.prepare(question.text)

    @property
    def _own_retriever(self) -> MemoisedRetriever:
        if self._retriever is None:
            self._retriever = self._build(self.config.retrieve)
        return self._retriever

    def store_recall(self, questions: Sequence[Question]) -> float | None:
        """Recall of the vector store at the number of passages that the generator gets; None without a store."""
        return self._own_retriever.store_recall(
            [question.text for question in questions], self.config.retrieve.top_k or 5
        )

    def answered(self, found: Sequence[Answered]) -> list[Answered]:
        """The same with answers, which are asked for in one batch; None where the generator gave up."""
        if not found:
            return []
        from pipelines.rag.generate import build_generator

        generator = build_generator(self.config.generate, self.calls, self._seed, self._cache)
        if generator is None:
            return list(found)
        with self._timed("generate"):
            texts = generator.answer([(one.question.text, [passage.text for passage in one.context]) for one in found])
        return [replace(one, answer=text) for one, text in zip(found, texts, strict=True)]

    def _depth(self, cuts: Sequence[int], characters: int) -> int:
        """How many passages a list must have for context, reranker and evaluators."""
        retrieve = self.config.retrieve
        wanted = [DEPTH, *cuts, retrieve.top_k or 5, getattr(self.config.rerank, "candidates", 0)]
        if isinstance(self.config.correct, Corrective):
            wanted.append(self.config.correct.grader.candidates)
        budget = retrieve.context_budget
        length = statistics.median(len(chunk.text) for chunk in self.chunks) if self.chunks else 1
        for most in (characters, 0 if budget is None else budget.characters or 5 * (budget.tokens or 0)):
            wanted.append(int(SPARE * most / max(1, length)) + 2 if most else 0)
        return min(len(self.chunks), max(wanted))

    def _find(self, texts: Sequence[str], depth: int) -> list[list[Passage]]:
        return [self._passages(hits) for hits in self._own_retriever.retrieve(texts, depth)]

    def _build(self, config: Any) -> MemoisedRetriever:
        from pipelines.rag.retrieve import build_retriever

        return build_retriever(config, self.chunks, self.calls)

    def _passages(self, hits: Sequence[Any]) -> list[Passage]:
        return [passage_of(self.chunks[hit.chunk], hit.score) for hit in hits]

    def _reranked(self, questions: Sequence[str], lists: list[list[Passage]]) -> list[list[Passage]]:
        """The first candidates of each list in the reranker's order, the others behind them; one batch for all questions."""
        config = self.config.rerank
        if config.type == "none":
            return lists
        reranker: Reranker = load_stage(RERANKERS, config.type)(config, self.calls)
        heads = [ranked[: config.candidates] for ranked in lists]
        pairs = [(text, passage.text) for text, head in zip(questions, heads, strict=True) for passage in head]
        scores = iter(reranker.pair_scores(pairs))
        found = []
        for ranked, head in zip(lists, heads, strict=True):
            scored = [replace(passage, score=next(scores)) for passage in head]
            scored.sort(key=lambda passage: (math.isnan(passage.score), -passage.score))
            found.append([*scored, *ranked[config.candidates :]])
        return found

    def _settled(self, question: Question, ranked: list[Passage]) -> Answered:
        """A question with its ranked list and its context, corrected where the configuration says so."""
        if isinstance(self.config.correct, Corrective):
            if self._corrector is None:
                self._corrector = build_corrector(self.config, self.chunks, self.calls, self._seed, self._cache)
            corrected = self._corrector.correct(question.text, ranked)
            return Answered(question, corrected.ranked, corrected.context)
        retrieve = self.config.retrieve
        return Answered(question, tuple(ranked), tuple(cut(ranked, retrieve.top_k, retrieve.context_budget)))


@lru_cache(maxsize=4)
def corpus_of(section: Corpus) -> CorpusText:
    """The corpus, read once a process."""
    from pipelines.rag.corpus import load_corpus

    return load_corpus(section)


_CHUNKS: dict[tuple[str, str], list[Chunk]] = {}
_KEPT = 16


def chunks_of(config: RagConfig, corpus: CorpusText, calls: Calls) -> list[Chunk]:
    """All chunks of the corpus, cut once a process for each way to cut."""
    key = (corpus.text_hash, config.chunk.model_dump_json())
    if key not in _CHUNKS:
        from pipelines.rag.chunk import build_chunker, chunk_documents
        from pipelines.rag.embed import build_embedder

        model = getattr(config.chunk, "embedding_model", None)
        embed = None if model is None else build_embedder(model, calls).documents
        chunker = build_chunker(config.chunk, embed)
        while len(_CHUNKS) >= _KEPT:
            _CHUNKS.pop(next(iter(_CHUNKS)))
        _CHUNKS[key] = chunk_documents(chunker, corpus.documents)
    return _CHUNKS[key]
