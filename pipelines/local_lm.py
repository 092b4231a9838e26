"""A causal language model as a kind of resident model: `local_lm`. It generates in batches, with its chat template.

Identity and tokenizer are had without torch: what a trial needs of the tokenizer (`context_tokens`) comes as its
`tokenizer.json` from here, through the memo.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from evaluators.base import GenerationRequest, Messages
from pipelines.calls import Answers, Identity, Role
from pipelines.chat import messages_of, pack
from pipelines.memo import Cost, Unanswered
from pipelines.stage import Devices, OutOfMemory, Services, UserError
from pipelines.versions import library_versions
from pipelines.weights import identity_of

if TYPE_CHECKING:
    from pipelines.finetune.model import LoadedModel

FUNCTION = 1
"""Version of what is computed here; raise it when answers change."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class LocalGenerator:
    """The kind `local_lm`.

    A spec has `base_model`, and where they differ from the defaults `batch_size`, `precision`, `trust_remote_code`.
    """

    role: ClassVar[Role] = "generator"
    remote: ClassVar[bool] = False

    def __init__(self, loaded: LoadedModel, batch_size: int, precision: str) -> None:
        from pipelines.lm import LocalLanguageModel

        self._tokenizer = loaded.tokenizer
        self._longest = getattr(loaded.model.config, "max_position_embeddings", None)
        self._lm = LocalLanguageModel(loaded.model, loaded.tokenizer, batch_size=batch_size, precision=precision)

    @staticmethod
    def identify(spec: Mapping[str, Any]) -> Identity:
        """From the model's files; a batch's size changes no answer."""
        found = identity_of(spec["base_model"])
        dtype = DTYPES[spec.get("precision", "fp32")]
        return Identity(FUNCTION, found.model, found.tokenizer, dtype, library_versions("torch", "transformers"))

    @staticmethod
    def load(spec: Mapping[str, Any], devices: Devices, services: Services) -> LocalGenerator:
        """Resolve, convert or fold where needed, and load.

        Raises:
            UserError: if it can't be found or loaded.
        """
        from pipelines.finetune.model import BaseModels

        remote_code = bool(spec.get("trust_remote_code", False))
        device = "cuda" if devices.gpus else "cpu"
        models = BaseModels(services.cache)
        loaded = models.load(spec["base_model"], trust_remote_code=remote_code, device=device)
        return LocalGenerator(loaded, int(spec.get("batch_size", 8)), spec.get("precision", "fp32"))

    def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """See `Model.answer`.

        Args:
            method: `generate`, as `pipelines.chat` says; `yes_no`, the probability that the answer begins with yes rather
                than with no (`yes_or_no`), as a little-endian double; or `tokenizer`, whose answer is `tokenizer.json`.
            items: as in `pipelines.chat`.
            parameters: of `generate`.
        """
        if method == "tokenizer":
            return [(self._tokenizer_file(), Cost()) for _ in items]
        if method == "yes_no":
            return self._fitting([self._request(item, {"max_new_tokens": 1}) for item in items], self._yes_no)
        if method != "generate":
            raise ValueError(f"a language model answers 'generate', 'yes_no' and 'tokenizer', but got {method!r}")
        return self._fitting([self._request(item, parameters) for item in items], self._generated)

    def _fitting(
        self,
        requests: Sequence[GenerationRequest],
        answer: Callable[[list[GenerationRequest]], list[tuple[bytes, int]]],
    ) -> Answers:
        """Answers to prompts that the model can read, `answer` giving (value, tokens) each; the others are unanswered."""
        refused = [self._too_long(request) for request in requests]
        fitting = [request for request, reason in zip(requests, refused, strict=True) if reason is None]
        started = time.monotonic()
        try:
            made = iter(answer(fitting))
        except MemoryError as error:
            raise OutOfMemory(f"{len(requests)} prompts did not fit; lower batch_size") from error
        seconds = (time.monotonic() - started) / max(1, len(fitting))
        answers: Answers = []
        for reason in refused:
            if reason is not None:
                answers.append((Unanswered(reason), Cost()))
                continue
            value, tokens = next(made)
            answers.append((value, Cost(seconds, tokens)))
        return answers

    def _generated(self, requests: list[GenerationRequest]) -> list[tuple[bytes, int]]:
        return [(pack(one), one.prompt_tokens + one.new_tokens) for one in self._lm.generate(requests)]

    def _yes_no(self, requests: list[GenerationRequest]) -> list[tuple[bytes, int]]:
        from pipelines.finetune.data import encode_prompt

        yes, no = yes_no_tokens(self._tokenizer)
        logits = self._lm.next_logits([request.prompt for request in requests], [*yes, *no])
        lengths = [len(encode_prompt(request.prompt, self._tokenizer)) for request in requests]
        return [
            (struct.pack("<d", yes_or_no(row[: len(yes)], row[len(yes) :])), length)
            for row, length in zip(logits, lengths, strict=True)
        ]

    def _request(self, item: Mapping[str, Any], parameters: Mapping[str, Any]) -> GenerationRequest:
        messages: Messages = tuple(messages_of(item))
        plain = "\n\n".join(message["content"] for message in messages)
        return GenerationRequest(
            messages if self._tokenizer.chat_template else plain,
            max_new_tokens=int(item.get("max_new_tokens", parameters.get("max_new_tokens", 64))),
            temperature=float(parameters.get("temperature", 0.0)),
            seed=int(item.get("seed", 0)),
            stop=tuple(parameters.get("stop", ())),
        )

    def _too_long(self, request: GenerationRequest) -> str | None:
        """Why the model can't read a prompt, or None."""
        from pipelines.finetune.data import encode_prompt

        if self._longest is None:
            return None
        tokens = len(encode_prompt(request.prompt, self._tokenizer))
        if tokens + request.max_new_tokens <= self._longest:
            return None
        return f"a prompt of {tokens} tokens and {request.max_new_tokens} new ones are more than the model's {self._longest}"

    def _tokenizer_file(self) -> bytes:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                "context_tokens: this model's tokenizer has no tokenizer.json to count with; use characters"
            )
        return str(backend.to_str()).encode()


WORDS = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
"""What an answer may begin with."""


def yes_no_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The first tokens of yes and of no as an answer may write them (`WORDS`), without those that both have.

    Raises:
        UserError: if yes and no begin with the same tokens.
    """
    yes, no = ({tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words} for words in WORDS)
    if not yes - no or not no - yes:
        raise UserError("rerank: the tokenizer of base_model begins yes and no with the same token; take another model")
    return sorted(yes - no), sorted(no - yes)


def yes_or_no(yes: Sequence[float], no: Sequence[float]) -> float:
    """P(yes) / (P(yes) + P(no)) from the logits of either's tokens."""
    most = max(*yes, *no)
    mass_yes, mass_no = (sum(math.exp(logit - most) for logit in logits) for logits in (yes, no))
    return mass_yes / (mass_yes + mass_no)
