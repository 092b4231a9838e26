"""Rerankers: a score a (question, passage), asked of a resident model through the memo and stored once.

- `cross_encoder` reads both texts together; its score is the probability of the one label (the logit's sigmoid), or of the
  second of two.
- `maxsim` (ColBERT's score, Khattab & Zaharia 2020, over tokens of a sentence-transformers model) is the mean over the
  question's tokens of the cosine with their nearest token of the passage; special tokens ([CLS], [SEP], ...) take no part.
- `llm` asks a causal language model for yes or no: P(yes) / (P(yes) + P(no)) of the next token (see `pipelines.local_lm`).
- `none` leaves the order as it is.

A passage's score depends neither on the other passages nor on their order.

Example:
    >>> reranker = load_stage(RERANKERS, config.rerank.type)(config.rerank, calls)
    >>> reranker.scores("How much is the deposit?", ["The deposit is 300 euros.", "Cats are welcome."])
    [0.98, 0.01]
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.calls import Calls
from pipelines.rag.stages import CrossEncoder, LLMReranker, MaxSim, NoReranker

STAGE = "rerank"
METHOD = "scores"
_FIELD = re.compile(r"\{(question|passage)\}")


class OrderKept:
    """Scores that leave the order as it is."""

    def __init__(self, config: NoReranker, calls: Calls) -> None:
        pass

    def pair_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """See `Reranker`."""
        return [-float(place) for place in range(len(pairs))]

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """See `Reranker`."""
        return self.pair_scores([(question, passage) for passage in passages])


class PairReranker:
    """A model that is given question and passage: `cross_encoder` and `maxsim`."""

    def __init__(self, config: CrossEncoder | MaxSim, calls: Calls) -> None:
        self._calls = calls
        self._spec = {"kind": config.type, **config.model_dump(include={"model", "batch_size", "trust_remote_code"})}

    def pair_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """See `Reranker`.

        Raises:
            UserError: if the model is not there, or can't score pairs.
        """
        return _asked(self._calls, self._spec, METHOD, [[question, passage] for question, passage in pairs])

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """See `Reranker`; raises as `pair_scores`."""
        return self.pair_scores([(question, passage) for passage in passages])


class YesNoReranker:
    """A language model that is asked whether the passage answers the question."""

    def __init__(self, config: LLMReranker, calls: Calls) -> None:
        self._calls = calls
        self._prompt = config.prompt
        include = {"base_model", "batch_size", "trust_remote_code"}
        self._spec = {"kind": "local_lm", "precision": "fp32", "role": "reranker", **config.model_dump(include=include)}

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """See `Reranker`; as `pair_scores`."""
        return self.pair_scores([(question, passage) for passage in passages])

    def pair_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """See `Reranker`; NaN for a prompt that is longer than the model reads.

        Raises:
            UserError: if the model is not there.
        """
        prompts = [self._filled({"question": question, "passage": passage}) for question, passage in pairs]
        items = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
        return _asked(self._calls, self._spec, "yes_no", items)

    def _filled(self, texts: Mapping[str, str]) -> str:
        return _FIELD.sub(lambda found: texts[found[1]], self._prompt)


def _asked(calls: Calls, spec: Mapping[str, Any], method: str, items: Sequence[Any]) -> list[float]:
    if not items:
        return []
    return [float("nan") if value is None else unpack(value) for value in calls.ask_each(STAGE, spec, method, items)]


def pack(score: float) -> bytes:
    """A score as the memo holds it."""
    return struct.pack("<d", score)


def unpack(value: bytes) -> float:
    """The inverse of `pack`."""
    score: float = struct.unpack("<d", value)[0]
    return score
