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
from pipelines.config import DPOConfig, FineTuneConfig
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
        rejected: tokens of the worse answer of a pair, as `answer`; 0 for other rows.
    """

    before: int
    inside: int
    answer: int
    characters: int
    rejected: int = 0

    @classmethod
    def of(cls, example: Example) -> RowSize:
        """Measure a row."""
        answer = count_tokens(example.completion) + 1
        length = len(example.completion) + len(example.rejected or "")
        rejected = 0 if example.rejected is None else count_tokens(example.rejected) + 1
        if example.prompt is None:
            return cls(0, 0, answer, length)
        if isinstance(example.prompt, str):
            return cls(count_tokens(example.prompt), 0, answer, length + len(example.prompt), rejected)
        counted = [(m["role"], count_tokens(m["content"]) + MESSAGE_TOKENS) for m in example.prompt]
        before = sum(tokens for _, tokens in counted) + MESSAGE_TOKENS
        inside = sum(tokens for role, tokens in counted if role == "assistant")
        return cls(before, inside, answer, length + sum(len(m["content"]) for m in example.prompt), rejected)

    def cut(self, sequence_len: int) -> Length:
        """Its length when it is cut at its end, as training cuts it."""
        tokens = min(self.before + self.answer, sequence_len)
        return tokens, min(self.inside, tokens) + max(0, tokens - self.before)

    def answers(self, sequence_len: int) -> tuple[Length, ...]:
        """Each answer of a preference with its prompt, of which nothing is trained on."""
        wanted = [size for size in (self.answer, self.rejected) if size]
        tokens = [min(self.before + size, sequence_len) for size in wanted]
        return tuple((size, max(0, size - self.before)) for size in tokens)


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
    items = [_rows_of(config, row) for row in train]
    lengths = [row for item in items for row in item]
    scored = sorted((row for one in tune for row in _rows_of(config, one)), reverse=True)
    if isinstance(config, DPOConfig):  # the reference sees all of train
        scored = sorted([*scored, *lengths], reverse=True)
    count = len(train) if rows is None else rows
    share = count / max(len(train), 1)
    size = config.eval_batch_size
    generated = None
    if new_tokens is not None and scored:
        generated = (min(size, len(scored)), max(row.before for row in tune) + new_tokens)
    return Workload(
        train=_largest(config, shape, items),
        evaluated=_batch(scored[:size]) if scored else None,
        generated=generated,
        rows=count,
        tokens=math.ceil(share * sum(tokens for tokens, _ in lengths)),
        characters=math.ceil(share * sum(row.characters for row in train)),
    )


def _rows_of(config: FineTuneConfig, row: RowSize) -> tuple[Length, ...]:
    """What goes through the model for a row of the data: itself, or every answer of a preference."""
    return row.answers(config.sequence_len) if isinstance(config, DPOConfig) else (row.cut(config.sequence_len),)


def _batch(rows: Iterable[Length]) -> Batch:
    lengths = list(rows)
    longest = max(tokens for tokens, _ in lengths)
    padded = any(tokens < longest for tokens, _ in lengths)
    return Batch(len(lengths), longest, sum(trained for _, trained in lengths), padded)


def _largest(config: FineTuneConfig, shape: ModelShape, items: Sequence[tuple[Length, ...]]) -> Batch:
    """The costliest of the micro batches that a run draws, up to `DRAWN` of them."""
    size = config.micro_batch_size
    if not items:
        return Workload.largest(config).train
    if config.packs:
        lengths = [row for item in items for row in item]
        share = sum(trained for _, trained in lengths) / max(1, sum(tokens for tokens, _ in lengths))
        tokens = size * config.sequence_len
        return Batch(size, config.sequence_len, math.ceil(share * tokens), True)
    if config.group_by_length:
        return _batch(row for item in sorted(items, key=max, reverse=True)[:size] for row in item)
    a_token = 4 * shape.layers * 4 * (2 * shape.hidden + shape.intermediate)
    a_trained = 12 * shape.vocabulary
    steps = config.max_steps or DRAWN
    draw = random.Random(0)
    batches = (
        _batch(row for item in draw.choices(items, k=size) for row in item)
        for _ in range(min(DRAWN, steps * config.gradient_accumulation_steps))
    )
    return max(batches, key=lambda batch: a_token * batch.tokens + a_trained * batch.trained)
