"""What the data asks of memory: lengths of rows in tokens, guessed from their characters, and the largest batch of them.

No tokenizer is loaded. `count_tokens` counts what byte-pair tokenizers hardly ever join: a digit, a mark, a word of up to six
letters each make one token. On GSM8K and on Stockpot's own examples that is 0.9 to 1.3 times what SmolLM2's tokenizer makes
of nine rows in ten; languages that a model was not made for need more tokens.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evaluators.base import Example
from pipelines.config import FineTuneConfig
from pipelines.finetune.memory import Batch, Workload
from pipelines.finetune.shape import ModelShape

DRAWN = 400
"""Micro batches drawn at most to find a large one."""
MESSAGE_TOKENS = 5
"""What a chat template puts around a message."""
_PIECE = re.compile(r"\d|[^\W\d_]+|[^\w\s]|_+|\n+|[ \t]{2,}")
_LETTERS, _OTHER_BYTES = 6, 2

Length = tuple[int, int]
"""Tokens of a row, and those of them that are trained on."""


def count_tokens(text: str) -> int:
    """Tokens of a text, about."""
    total = 0
    for piece in _PIECE.findall(text):
        if piece.isascii():
            total += 1 if len(piece) <= _LETTERS or piece.isspace() else math.ceil(len(piece) / _LETTERS)
        else:
            total += math.ceil(len(piece.encode("utf-8", "replace")) / _OTHER_BYTES)
    return total


@dataclass(frozen=True)
class RowSize:
    """A row before it is cut.

    Attributes:
        before: tokens in front of the last answer, about.
        inside: those of them in earlier answers, which are trained on as well.
        answer: tokens of the last answer (of a plain text: all of it), with an end-of-text token.
        characters: of prompt and answer.
    """

    before: int
    inside: int
    answer: int
    characters: int

    @classmethod
    def of(cls, example: Example) -> RowSize:
        """Measure a row."""
        answer = count_tokens(example.completion) + 1
        length = len(example.completion)
        if example.prompt is None:
            return cls(0, 0, answer, length)
        if isinstance(example.prompt, str):
            return cls(count_tokens(example.prompt), 0, answer, length + len(example.prompt))
        counted = [(m["role"], count_tokens(m["content"]) + MESSAGE_TOKENS) for m in example.prompt]
        before = sum(tokens for _, tokens in counted) + MESSAGE_TOKENS
        inside = sum(tokens for role, tokens in counted if role == "assistant")
        return cls(before, inside, answer, length + sum(len(m["content"]) for m in example.prompt))

    def cut(self, sequence_len: int) -> Length:
        """Its length when it is cut at its end, as training cuts it."""
        tokens = min(self.before + self.answer, sequence_len)
        return tokens, min(self.inside, tokens) + max(0, tokens - self.before)


def workload(
    config: FineTuneConfig,
    shape: ModelShape,
    train: Sequence[RowSize],
    tune: Sequence[RowSize],
    *,
    rows: int | None = None,
    new_tokens: int | None = None,
) -> Workload:
    """What a run on these rows asks for.

    Args:
        config: the trial's configuration.
        shape: its base model's.
        train: rows of train, or some of them.
        tune: rows of `tune`, or others like them; may be empty.
        rows: rows of train in all, where `train` holds only some.
        new_tokens: longest answer that an evaluator generates; None where none does.
    """
    lengths = [row.cut(config.sequence_len) for row in train]
    scored = sorted((row.cut(config.sequence_len) for row in tune), reverse=True)
    count = len(train) if rows is None else rows
    share = count / max(len(train), 1)
    size = config.eval_batch_size
    generated = None
    if new_tokens is not None and scored:
        generated = (min(size, len(scored)), max(row.before for row in tune) + new_tokens)
    return Workload(
        train=_largest(config, shape, lengths),
        evaluated=_batch(scored[:size]) if scored else None,
        generated=generated,
        rows=count,
        tokens=math.ceil(share * sum(tokens for tokens, _ in lengths)),
        characters=math.ceil(share * sum(row.characters for row in train)),
    )


def _batch(rows: Iterable[Length]) -> Batch:
    lengths = list(rows)
    longest = max(tokens for tokens, _ in lengths)
    padded = any(tokens < longest for tokens, _ in lengths)
    return Batch(len(lengths), longest, sum(trained for _, trained in lengths), padded)


def _largest(config: FineTuneConfig, shape: ModelShape, lengths: Sequence[Length]) -> Batch:
    """The costliest of the micro batches that a run draws, up to `DRAWN` of them."""
    size = config.micro_batch_size
    if not lengths:
        return Workload.largest(config).train
    if config.packs:
        share = sum(trained for _, trained in lengths) / max(1, sum(tokens for tokens, _ in lengths))
        tokens = size * config.sequence_len
        return Batch(size, config.sequence_len, math.ceil(share * tokens), True)
    if config.group_by_length:
        return _batch(sorted(lengths, reverse=True)[:size])
    a_token = 4 * shape.layers * 4 * (2 * shape.hidden + shape.intermediate)
    a_trained = 12 * shape.vocabulary
    steps = config.max_steps or DRAWN
    draw = random.Random(0)
    batches = (
        _batch(draw.choices(lengths, k=size)) for _ in range(min(DRAWN, steps * config.gradient_accumulation_steps))
    )
    return max(batches, key=lambda batch: a_token * batch.tokens + a_trained * batch.trained)
