"""Preferences as tokens: the answers of every row, and for KTO answers that belong to other prompts. No torch.

A pair is two answers to one prompt, the chosen one first; an answer with a label stands alone. Only the answer itself counts:
earlier turns of the assistant are part of the prompt. KTO's baseline takes for each answer one of the next row of the data
set, so that what the reference makes of it can be computed once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluators.base import Example
from pipelines.finetune.data import Encoded, encode_answer
from pipelines.stage import UserError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preferred:
    """A row as tokens.

    Attributes:
        answers: of a pair y_w and y_l; of an unpaired row its one answer. Each with its prompt.
        good: which of them are good ones.
        strangers: as many answers of another row, each behind this row's prompt; only for KTO.
    """

    answers: tuple[Encoded, ...]
    good: tuple[bool, ...]
    strangers: tuple[Encoded, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether `sequence_len` has left something of every answer."""
        return all(answer.trained for answer in (*self.answers, *self.strangers))

    @property
    def cut(self) -> bool:
        """Whether an answer was cut."""
        return any(answer.cut for answer in self.answers)

    @property
    def length(self) -> int:
        """Tokens of the longest answer with its prompt."""
        return max(len(answer.ids) for answer in self.answers)


def encode_preferences(
    rows: Sequence[Example], tokenizer: Any, sequence_len: int, *, strangers: bool
) -> list[Preferred]:
    """All rows, in order.

    Args:
        rows: pairs, or answers with a label.
        tokenizer: the model's.
        sequence_len: tokens of prompt and answer at most; longer ones are cut at the end.
        strangers: whether answers to other prompts are wanted.
    """
    found: list[Preferred] = []
    for place, row in enumerate(rows):
        texts = _texts(row)
        others = _texts(rows[(place + 1) % len(rows)]) if strangers else ()
        answers, behind = (
            tuple(encode_answer(row.prompt, text, tokenizer, sequence_len) for text in some)
            for some in (texts, _fitted(others, len(texts)))
        )
        good = (True, False) if row.rejected is not None else (bool(row.label),)
        found.append(Preferred(answers, good, behind))
    return found


def whole_rows(rows: Sequence[Preferred], sequence_len: int) -> list[Preferred]:
    """Those with something left of every answer; cut and dropped ones are logged.

    Raises:
        UserError: if none is left.
    """
    kept = [row for row in rows if row.whole]
    if not kept:
        raise UserError(
            f"sequence_len: {sequence_len} tokens leave nothing of the answers in any of the {len(rows)} rows; raise it"
        )
    cut = sum(row.cut for row in rows)
    if cut:
        _log.warning(
            "%d of %d rows of train were cut to %d tokens, %d of them to their prompt and dropped",
            *(cut, len(rows), sequence_len, len(rows) - len(kept)),
        )
    return kept


def _texts(row: Example) -> tuple[str, ...]:
    return (row.completion,) if row.rejected is None else (row.completion, row.rejected)


def _fitted(texts: tuple[str, ...], count: int) -> tuple[str, ...]:
    """So many of them, the first again where there are too few."""
    return tuple(texts[place % len(texts)] for place in range(count)) if texts else ()
