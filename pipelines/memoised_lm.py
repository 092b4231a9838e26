"""A language model that answers from the memo first, whatever model is behind it.

Example:
    >>> lm = memoised(model, memo, model_hash="4f0a", tokenizer_hash="90bc", dtype="float32")
    >>> lm.generate([GenerationRequest("Two and two is", max_new_tokens=4)])[0].text  # computed once, by whoever asks first
    ' four'
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluators.base import Example, Generation, GenerationRequest, LanguageModel, Messages, RowLoss, chat_prompt
from pipelines.computing import compute
from pipelines.lm import FUNCTION
from pipelines.memo import Call, Cost, Memo


def memoised(
    model: LanguageModel,
    memo: Memo,
    *,
    model_hash: str,
    tokenizer_hash: str,
    dtype: str,
    settings: Mapping[str, Any] | None = None,
) -> MemoisedLanguageModel:
    """The model behind the memo; see `MemoisedLanguageModel`."""
    return MemoisedLanguageModel(model, memo, model_hash, tokenizer_hash, dtype, settings or {})


@dataclass
class MemoisedLanguageModel:
    """Answers from the memo, and asks the model for what nobody has asked yet; implements `LanguageModel`.

    Attributes:
        model: who computes.
        memo: the store.
        model_hash: content hash of weights and configuration, adapter included.
        tokenizer_hash: content hash of the tokenizer and its chat template.
        dtype: `float32` or `bfloat16`.
        settings: what else a row's loss depends on (`sequence_len`).
    """

    model: LanguageModel
    memo: Memo
    model_hash: str
    tokenizer_hash: str
    dtype: str
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._owner = uuid.uuid4().hex

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """See `LanguageModel`."""

        def call(request: GenerationRequest) -> Call:
            parameters = {
                "max_new_tokens": request.max_new_tokens,
                "temperature": request.temperature,
                "stop": list(request.stop),
            }
            seed = request.seed if request.temperature > 0 else None
            return self._call("generate", _plain(request.prompt), parameters, seed)

        answers = self._answers(requests, call, self.model.generate, lambda a: asdict(a), lambda a: a.new_tokens)
        return [Generation(**answer) for answer in answers]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """See `LanguageModel`."""

        def call(pair: tuple[str, str]) -> Call:
            return self._call("loglikelihood", list(pair), {}, None)

        answers = self._answers(pairs, call, self.model.loglikelihood, lambda a: list(a), lambda a: 0)
        return [(float(nats), bool(greedy)) for nats, greedy in answers]

    def token_losses(self, rows: Sequence[Example]) -> list[RowLoss]:
        """See `LanguageModel`."""

        def call(row: Example) -> Call:
            return self._call("token_losses", [_plain(row.prompt), row.completion], dict(self.settings), None)

        answers = self._answers(rows, call, self.model.token_losses, lambda a: asdict(a), lambda a: a.tokens)
        return [RowLoss(**answer) for answer in answers]

    def chat_prompt(self, messages: Messages, *, opened: bool) -> str:
        """See `RendersChat`."""
        return chat_prompt(self.model, messages, opened=opened)

    def _call(self, kind: str, asked: Any, parameters: dict[str, Any], seed: int | None) -> Call:
        return Call(kind, FUNCTION, self.model_hash, self.tokenizer_hash, self.dtype, asked, parameters, seed)

    def _answers(
        self,
        asked: Sequence[Any],
        call: Callable[[Any], Call],
        ask: Callable[[Any], list[Any]],
        record: Callable[[Any], Any],
        tokens: Callable[[Any], int],
    ) -> list[Any]:
        """Answers as JSON values, in order."""
        calls = [call(one) for one in asked]
        by_key = {one.key: item for one, item in zip(calls, asked, strict=True)}

        def missing(wanted: list[Call]) -> list[tuple[bytes, Cost]]:
            started = time.monotonic()
            answers = ask([by_key[one.key] for one in wanted])
            seconds = (time.monotonic() - started) / len(wanted)
            return [(json.dumps(record(answer)).encode(), Cost(seconds, tokens(answer))) for answer in answers]

        return [json.loads(value) for value in compute(self.memo, calls, missing, self._owner)]


def _plain(prompt: str | Messages | None) -> Any:
    return prompt if prompt is None or isinstance(prompt, str) else [dict(message) for message in prompt]
