"""From a ranked list to the context: the first passages, or as much text as a budget allows.

A budget counts what is handed on: whole passages in order, then the beginning of the next one. Text that two passages
share is counted as often as it stands there, because the generator reads it as often: an overlap of chunks is paid for,
as `.at_<n>_characters` counts it too (`evaluators.retrieval.first_characters`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evaluators.answers import Passage
from evaluators.retrieval import first_characters
from pipelines.rag.stages import ContextBudget
from pipelines.rag.tokens import token_starts

TOP_K = 5
"""Passages where neither a number nor a budget is given."""


def cut(ranked: Sequence[Passage], top_k: int | None = None, budget: ContextBudget | None = None) -> list[Passage]:
    """The context.

    Args:
        ranked: best first.
        top_k: passages at most; `TOP_K` where neither is given.
        budget: text at most.

    Raises:
        UserError: if the budget's tokenizer can't be found or read.
    """
    if budget is None:
        return list(ranked[: top_k or TOP_K])
    if budget.characters is not None:
        return list(first_characters(ranked, budget.characters))
    assert budget.tokens is not None, "law must hold: a budget has characters or tokens, but got neither"
    assert budget.tokenizer is not None, "law must hold: a budget of tokens has a tokenizer, but got none"
    return first_tokens(ranked, budget.tokens, budget.tokenizer)


def first_tokens(ranked: Sequence[Passage], n: int, tokenizer: str) -> list[Passage]:
    """Whole passages in order while they fit into n tokens, then the beginning of the next.

    Each passage is counted by itself; what stands between passages in a prompt is not counted.
    """
    taken: list[Passage] = []
    for passage in ranked:
        starts = token_starts(tokenizer, passage.text)
        if len(starts) > n:
            kept = starts[n]
            if kept:
                taken.append(replace(passage, end=passage.start + kept, text=passage.text[:kept]))
            break
        taken.append(passage)
        n -= len(starts)
    return taken
