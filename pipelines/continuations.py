"""Log-likelihoods of continuations: what several of them begin with is read once, and only their own tokens reach the output layer.

The choices of one question share its text: it goes through the model once, its keys and values are given to all of its
choices, and each choice costs its own tokens alone. The numbers are those of reading every row whole, up to the last
bits. Texts too long for the model are read as lm-evaluation-harness reads them (Gao et al. 2024): the last tokens of a
context count, and a long text is read in windows that predict each token once.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from pipelines.pulse import beat

Totals = tuple[float, int, bool]
"""Summed nats, tokens, and whether each of them is the likeliest."""


@dataclass(frozen=True)
class Piece:
    """Tokens that go through the model together.

    Attributes:
        ids: token ids.
        start: place of the first token that is scored, at least 1; all after it are scored too.
    """

    ids: tuple[int, ...]
    start: int

    @property
    def prefix(self) -> tuple[int, ...]:
        """What stands before the scored tokens."""
        return self.ids[: self.start]

    @property
    def scored(self) -> tuple[int, ...]:
        """The scored tokens."""
        return self.ids[self.start :]


def encode_pairs(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], beginning: int, longest: int | None
) -> list[list[Piece]]:
    """Each (context, continuation) as the pieces that score every token of its continuation once.

    The continuation begins where the tokens of the context and of both together part; each text is tokenised once.

    Args:
        tokenizer: the model's.
        pairs: contexts and continuations.
        beginning: the token that stands before the first one where there is no context.
        longest: tokens the model can read at once; None for any number.
    """
    texts = list(dict.fromkeys(text for context, more in pairs for text in (context, context + more)))
    ids = dict(zip(texts, tokenizer(texts)["input_ids"], strict=True)) if texts else {}
    found = []
    for context, more in pairs:
        whole = ids[context + more]
        start = common(ids[context], whole)
        if start == 0:
            whole, start = [beginning, *whole], 1
        found.append(windows(tuple(whole), start, longest))
    return found


def windows(ids: tuple[int, ...], start: int, longest: int | None) -> list[Piece]:
    """Pieces of at most `longest` tokens to read, which score the tokens from `start` on once each, the last with all its context."""
    if start >= len(ids):
        return []
    if longest is None or len(ids) - start <= longest:
        cut = 0 if longest is None else max(0, len(ids) - longest - 1)
        return [Piece(ids[cut:], start - cut)]
    pieces = [Piece(ids[start - 1 : start + longest], 1)]
    done = start + longest
    while done < len(ids):
        end = min(done + longest, len(ids))
        pieces.append(Piece(ids[end - longest - 1 : end], longest + 1 - (end - done)))
        done = end
    return pieces


def sharing(pieces: Sequence[Piece]) -> tuple[list[list[int]], list[int]]:
    """Places of pieces that have a prefix of more than one token in common, group by group, and the places of all others."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, piece in enumerate(pieces):
        groups.setdefault(piece.prefix, []).append(place)
    shared = [places for prefix, places in groups.items() if len(places) > 1 and len(prefix) > 1]
    alone = [place for prefix, places in groups.items() if len(places) == 1 or len(prefix) == 1 for place in places]
    return shared, sorted(alone)


def score_shared(
    model: Any, pieces: Sequence[Piece], groups: Sequence[Sequence[int]], *, pad_token: int, batch_size: int
) -> dict[int, Totals]:
    """Totals of the pieces in the groups, by place.

    Args:
        model: a causal language model in evaluation mode, gradients off.
        pieces: what is scored.
        groups: places of pieces with the same prefix.
        pad_token: fills rows up.
        batch_size: rows in one forward pass.
    """
    found: dict[int, Totals] = {}
    ordered = sorted(groups, key=lambda places: pieces[places[0]].start, reverse=True)
    for begin in range(0, len(ordered), batch_size):
        beat()
        batch = ordered[begin : begin + batch_size]
        read = _Prefixes(model, [pieces[places[0]].prefix for places in batch], pad_token)
        members = [(row, place) for row, places in enumerate(batch) for place in places]
        firsts = read.firsts([row for row, _ in members], [pieces[place].scored[0] for _, place in members])
        found.update((place, total) for (_, place), total in zip(members, firsts, strict=True))
        longer = [(row, place) for row, place in members if len(pieces[place].scored) > 1]
        longer.sort(key=lambda member: len(pieces[member[1]].scored), reverse=True)
        for at in range(0, len(longer), batch_size):
            chunk = longer[at : at + batch_size]
            rests = read.rests([row for row, _ in chunk], [pieces[place].scored for _, place in chunk])
            for (_, place), (nats, tokens, greedy) in zip(chunk, rests, strict=True):
                first = found[place]
                found[place] = (first[0] + nats, first[1] + tokens, first[2] and greedy)
    return found


class _Prefixes:
    """A batch of prefixes that has been read: what follows each, and the keys and values to go on from."""

    def __init__(self, model: Any, prefixes: Sequence[tuple[int, ...]], pad_token: int) -> None:
        self._model = model
        self._pad = pad_token
        self._device = next(model.parameters()).device
        width = max(len(prefix) for prefix in prefixes)
        filled = [[pad_token] * (width - len(prefix)) + list(prefix) for prefix in prefixes]
        ids = torch.tensor(filled, device=self._device)
        self._mask = torch.tensor(
            [[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes], device=self._device
        )
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=model.config)
        logits = model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self._log_probabilities = torch.log_softmax(logits.float(), dim=-1)

    def firsts(self, rows: Sequence[int], tokens: Sequence[int]) -> list[Totals]:
        """Totals of one token each, right after the prefixes in `rows`."""
        index = torch.tensor(rows, device=self._device)
        targets = torch.tensor(tokens, device=self._device)
        nats = (-self._log_probabilities[index, targets]).double().tolist()
        greedy = (self._log_probabilities.argmax(-1)[index] == targets).tolist()
        return [(one, 1, likeliest) for one, likeliest in zip(nats, greedy, strict=True)]

    def rests(self, rows: Sequence[int], continuations: Sequence[tuple[int, ...]]) -> list[Totals]:
        """Totals of all tokens but the first of continuations (two tokens or more) of the prefixes in `rows`."""
        width = max(len(tokens) for tokens in continuations) - 1
        ids = torch.full((len(rows), width), self._pad, device=self._device)
        targets = torch.full((len(rows), width), -1, device=self._device)
        for at, tokens in enumerate(continuations):
            ids[at, : len(tokens) - 1] = torch.tensor(tokens[:-1], device=self._device)
            targets[at, : len(tokens) - 1] = torch.tensor(tokens[1:], device=self._device)
        wanted = targets >= 0
        index = torch.tensor(rows, device=self._device)
        positions = self._positions[index, -1:] + 1 + torch.arange(width, device=self._device)
        with output_at(self._model, lambda hidden: hidden[wanted]):
            logits = self._model(
                input_ids=ids,
                attention_mask=torch.cat([self._mask[index], wanted.to(self._mask.dtype)], dim=1),
                position_ids=positions,
                past_key_values=_rows(self._cache, index),
                use_cache=True,
            ).logits
        return totals(logits.float(), targets[wanted], wanted.nonzero()[:, 0], len(rows))


def totals(logits: torch.Tensor, targets: torch.Tensor, owner: torch.Tensor, count: int) -> list[Totals]:
    """Totals of `count` rows from fp32 logits (n, v), targets (n,) and the row each belongs to (n,), ascending."""
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().cpu()
    hits = (logits.argmax(-1) == targets).cpu()
    tokens = torch.bincount(owner, minlength=count).tolist()
    parts = zip(nats.split(tokens), hits.split(tokens), tokens, strict=True)
    return [(float(own.sum()), n, bool(hit.all())) for own, hit, n in parts]


@contextlib.contextmanager
def output_at(model: Any, pick: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Let only some hidden states (batch, seq, width) reach the output layer; what a model does with its logits is done as ever.

    Args:
        model: a causal language model, with or without an adapter.
        pick: makes (n, width) of them.
    """

    def before(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (pick(inputs[0]), *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return place
    return min(len(first), len(second))


def _rows(cache: DynamicCache, index: torch.Tensor) -> DynamicCache:
    """A cache of its own for rows of another one, in this order, as often as they are named."""
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in cache.layers]
    own.batch_select_indices(index)
    return own
