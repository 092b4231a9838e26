"""A language model as evaluators ask for it: a local one in memory.

Answers do not depend on the other rows of a batch: prompts are padded on the left and masked, and a sampled request
draws from a generator of its own. Batched equals single up to the last bits of fp32.

Example:
    >>> lm = LocalLanguageModel(model, tokenizer, batch_size=8)
    >>> lm.generate([GenerationRequest("Two and two is", max_new_tokens=4)])[0].text
    ' four'
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from evaluators.base import Example, Generation, GenerationRequest, Messages, RowLoss
from pipelines.continuations import Piece, Totals, encode_pairs, output_at, score_shared, sharing, totals
from pipelines.finetune.data import IGNORED, Encoded, chat_text, encode, encode_prompt
from pipelines.pulse import beat

FUNCTION = 1
"""Version of what is computed here, in the memo's keys (`pipelines.memoised_lm`); raise it when an answer changes."""


class LocalLanguageModel:
    """A Hugging Face causal language model in this process; implements `evaluators.base.LanguageModel`.

    Args:
        model: the model, in evaluation mode; an adapter on it takes part.
        tokenizer: its tokenizer, with a padding token.
        batch_size: rows in one forward pass.
        sequence_len: tokens a row at most in `token_losses`, as in training.
        precision: `bf16` and `fp16` compute under autocast.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 8,
        sequence_len: int = 1024,
        precision: str = "fp32",
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._sequence_len = sequence_len
        self._precision = precision
        self._device = next(model.parameters()).device

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """See `LanguageModel`."""
        jobs = self._decoded(requests)
        return [Generation(job.text(self._tokenizer), len(job.prompt), len(job.new)) for job in jobs]

    def answered(self, requests: Sequence[GenerationRequest]) -> list[Encoded]:
        """The answers as tokens behind their prompts, with the token that ended them; the prompts are no targets."""
        return [
            Encoded(job.prompt + job.all_new, [IGNORED] * len(job.prompt) + job.all_new, cut=job.end is None)
            for job in self._decoded(requests)
        ]

    def _decoded(self, requests: Sequence[GenerationRequest]) -> list[_Decoding]:
        first = [_beginning(self._tokenizer)]
        jobs = [_Decoding(request, encode_prompt(request.prompt, self._tokenizer) or first) for request in requests]
        with self._computing():
            for batch in _by_length(jobs, lambda job: len(job.prompt), self._batch_size):
                self._decode(batch)
        return jobs

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """See `LanguageModel`; what several pairs begin with is read once (`pipelines.continuations`)."""
        longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        found = encode_pairs(self._tokenizer, pairs, _beginning(self._tokenizer), longest)
        pieces = [piece for of_pair in found for piece in of_pair]
        scored = iter(self._continuations(pieces))
        answers = []
        for of_pair in found:
            mine = [next(scored) for _ in of_pair]
            answers.append((-sum(nats for nats, _, _ in mine), all(greedy for _, _, greedy in mine)))
        return answers

    def token_losses(self, rows: Sequence[Example]) -> list[RowLoss]:
        """See `LanguageModel`."""
        encoded = [encode(row, self._tokenizer, self._sequence_len) for row in rows]
        return [RowLoss(nats, tokens) for nats, tokens, _ in self.score(encoded)]

    def chat_prompt(self, messages: Messages, *, opened: bool) -> str:
        """See `RendersChat`."""
        return chat_text(messages, self._tokenizer, opened=opened)

    def next_logits(self, prompts: Sequence[str | Messages], tokens: Sequence[int]) -> list[list[float]]:
        """For each prompt, the logits of these tokens as the first one of the answer, in fp32."""
        first = [_beginning(self._tokenizer)]
        jobs = [
            _Decoding(GenerationRequest(prompt), encode_prompt(prompt, self._tokenizer) or first) for prompt in prompts
        ]
        found: dict[int, list[float]] = {}
        with self._computing():
            for batch in _by_length(jobs, lambda job: len(job.prompt), self._batch_size):
                ids, mask = self._padded_left(batch)
                positions = (mask.cumsum(-1) - 1).clamp(min=0)
                logits = self._model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1
                ).logits
                for job, row in zip(batch, logits[:, -1].float(), strict=True):
                    found[id(job)] = row[list(tokens)].tolist()
        return [found[id(job)] for job in jobs]

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """No gradients, no dropout, the asked precision; the model's mode is put back."""
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad(), autocast(self._device.type, self._precision):
                yield
        finally:
            self._model.train(training)

    def _continuations(self, pieces: Sequence[Piece]) -> list[Totals]:
        """Totals of each piece's scored tokens."""
        groups, alone = sharing(pieces)
        rows = [
            Encoded(list(p.ids), [IGNORED] * p.start + list(p.scored), cut=False)
            for p in map(pieces.__getitem__, alone)
        ]
        results = dict(zip(alone, self.score(rows), strict=True))
        with self._computing():
            results |= score_shared(
                self._model, pieces, groups, pad_token=self._tokenizer.pad_token_id, batch_size=self._batch_size
            )
        return [results[place] for place in range(len(pieces))]

    def score(self, rows: Sequence[Encoded]) -> list[Totals]:
        """For each row of tokens: summed nats, trained-on tokens, and whether each of them is the likeliest."""
        results: list[Totals] = [(0.0, 0, True)] * len(rows)
        wanted = [place for place, row in enumerate(rows) if row.trained]
        with self._computing():
            for batch in _by_length(wanted, lambda place: len(rows[place].ids), self._batch_size):
                ids, mask, labels = (
                    tensor.to(self._device)
                    for tensor in pad([rows[place] for place in batch], self._tokenizer.pad_token_id)
                )
                logits, targets, owner = trained_logits(self._model, ids, mask, labels)
                for place, total in zip(batch, totals(logits, targets, owner, len(batch)), strict=True):
                    results[place] = total
        return results

    def _padded_left(self, jobs: Sequence[_Decoding]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask of prompts, each (batch, longest)."""
        width = max(len(job.prompt) for job in jobs)
        ids = torch.full((len(jobs), width), self._tokenizer.pad_token_id, device=self._device)
        mask = torch.zeros_like(ids)
        for at, job in enumerate(jobs):
            ids[at, width - len(job.prompt) :] = torch.tensor(job.prompt, device=self._device)
            mask[at, width - len(job.prompt) :] = 1
        return ids, mask

    def _decode(self, jobs: list[_Decoding]) -> None:
        """Extend each job's `new` until it ends; rows that ended leave the batch."""
        ends = _end_tokens(self._model, self._tokenizer)
        ids, mask = self._padded_left(jobs)
        cache = DynamicCache(config=self._model.config)
        alive = list(jobs)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        while alive:
            beat()
            logits = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            chosen = [job.choose(row) for job, row in zip(alive, logits.float(), strict=True)]
            kept = [
                at
                for at, (job, token) in enumerate(zip(alive, chosen, strict=True))
                if job.take(token, ends, self._tokenizer)
            ]
            if len(kept) < len(alive) and kept:
                index = torch.tensor(kept, device=self._device)
                cache.batch_select_indices(index)
                mask, positions = mask[index], positions[index]
            alive = [alive[at] for at in kept]
            if alive:
                ids = torch.tensor([[chosen[at]] for at in kept], device=self._device)
                mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
                positions = positions[:, -1:] + 1


@dataclass
class _Decoding:
    """One request while it is answered."""

    request: GenerationRequest
    prompt: list[int]
    new: list[int] = field(default_factory=list)
    end: int | None = None
    cut: str | None = None

    def __post_init__(self) -> None:
        key = json.dumps([self.prompt, self.request.temperature, self.request.seed])
        self._random = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))

    def choose(self, logits: torch.Tensor) -> int:
        """The next token from (vocabulary,) logits: the likeliest, or one drawn by the inverse of the distribution."""
        if self.request.temperature == 0:
            return int(logits.argmax())
        weights = torch.softmax(logits.double().cpu() / self.request.temperature, dim=-1).cumsum(-1).numpy()
        drawn = int(np.searchsorted(weights, self._random.random() * weights[-1], side="right"))
        return min(drawn, len(weights) - 1)

    def take(self, token: int, ends: frozenset[int], tokenizer: Any) -> bool:
        """Add a token; whether the answer goes on."""
        if token in ends:
            self.end = token
            return False
        self.new.append(token)
        if self.request.stop:
            text = tokenizer.decode(self.new, skip_special_tokens=True)
            found = [text.index(stop) for stop in self.request.stop if stop in text]
            if found:
                self.cut = text[: min(found)]
                return False
        return len(self.new) < self.request.max_new_tokens

    @property
    def all_new(self) -> list[int]:
        """The new tokens, and the one that ended the answer."""
        return self.new if self.end is None else [*self.new, self.end]

    def text(self, tokenizer: Any) -> str:
        """The answer so far, up to a stop string."""
        return self.cut if self.cut is not None else str(tokenizer.decode(self.new, skip_special_tokens=True))


def autocast(device: str, precision: str) -> torch.autocast:
    """Torch's autocast for `bf16` and `fp16`; nothing for `fp32`."""
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device, kind, enabled=precision != "fp32")


def pad(rows: Sequence[Encoded], pad_token: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and labels of rows, each (batch, longest), padded on the right."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [pad_token] * (width - len(row.ids)) for row in rows])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORED] * (width - len(row.labels)) for row in rows])
    return ids, mask, labels


def trained_logits(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    labels: torch.Tensor,
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits at the positions that are trained on only: the others never reach the output layer.

    The positions are picked in front of the output layer, so whatever a model does with its logits (soft caps, scales)
    is done as ever. With n trained-on tokens and vocabulary v:

    Args:
        model: a causal language model, with or without an adapter.
        ids: (batch, seq) token ids.
        mask: (batch, seq) attention mask.
        labels: (batch, seq), `IGNORED` where nothing is trained on.
        positions: (batch, seq) of packed sequences, from 0 in every row; they take the mask's place.

    Returns:
        fp32 logits (n, v), targets (n,), and the row each belongs to (n,).
    """
    targets = labels[:, 1:]
    wanted = targets != IGNORED

    seen = {"attention_mask": mask} if positions is None else {"position_ids": positions}
    places = slice(-labels.shape[1], -1)  # virtual tokens stand in front
    with output_at(model, lambda hidden: hidden[:, places][wanted]):
        logits = model(input_ids=ids, use_cache=False, **seen).logits
    return logits.float(), targets[wanted], wanted.nonzero()[:, 0]


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's, and those of the model's generation settings."""
    settings = getattr(model, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if token is not None)


def _beginning(tokenizer: Any) -> int:
    """What stands before the first token of a text without a context."""
    begin = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if begin is None else begin)


def _by_length(items: Sequence[Any], length: Any, batch_size: int) -> Iterator[list[Any]]:
    """Batches of similar length, longest first, so that a batch that does not fit fails at once."""
    ordered = sorted(items, key=length, reverse=True)
    for start in range(0, len(ordered), batch_size):
        beat()
        yield ordered[start : start + batch_size]
