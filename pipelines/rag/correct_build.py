"""The corrective loop of a configuration, with its grader, its other search and its rewriter asked through `Calls`."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.answers import Passage
from pipelines.calls import Calls
from pipelines.rag import RERANKERS, load_stage
from pipelines.rag.base import Chunk, passage_of
from pipelines.rag.config import RagConfig
from pipelines.rag.correct import REWRITE_PROMPT, REWRITE_TOKENS, STAGE, Corrector, Rewrite
from pipelines.rag.stages import Corrective


def build_corrector(
    config: RagConfig, chunks: Sequence[Chunk], calls: Calls, seed: int = 0, cache: str | None = None
) -> Corrector:
    """The corrector that `correct:` names; all that it asks counts as the stage `correct`.

    Args:
        config: typed; `correct` is `corrective`.
        chunks: of the whole corpus.
        calls: the lease's way to models.
        seed: of the run, for a rewriter that draws.
        cache: folder for converted models.
    """
    from pipelines.rag.retrieve import build_retriever

    section = config.correct
    assert isinstance(section, Corrective), f"law must hold: a corrective configuration, but got {section.type}"
    counted = calls.under(STAGE)
    retriever = build_retriever(section.search or config.retrieve, chunks, counted)

    def search(question: str, n: int) -> list[Passage]:
        (hits,) = retriever.retrieve([question], min(n, len(chunks)))
        return [passage_of(chunks[hit.chunk], hit.score) for hit in hits]

    return Corrector(
        section,
        load_stage(RERANKERS, section.grader.type)(section.grader, counted),
        search,
        _rewriter(config, counted, seed, cache) if section.rewrite == "generator" else None,
        top_k=config.retrieve.top_k,
        budget=config.retrieve.context_budget,
    )


def _rewriter(config: RagConfig, calls: Calls, seed: int, cache: str | None) -> Rewrite:
    from pipelines.rag.generate import build_generator

    generator = build_generator(config.generate, calls, seed, cache)
    assert generator is not None, "law must hold: the door has checked that a rewriter has a generator"

    def rewrite(question: str) -> str | None:
        prompt = REWRITE_PROMPT.replace("{question}", question)
        (text,) = generator.complete([prompt], max_new_tokens=REWRITE_TOKENS)
        return None if text is None else text.strip().partition("\n")[0]

    return rewrite
