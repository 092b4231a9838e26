"""The training set as tokens: held in memory, or encoded when a row is asked for. No torch.

Both ways give the same rows in the same order. The lazy one, for rows that are read from disk, goes over them once to
learn which have anything to train on and how long each is, keeps that (12 bytes a row), and encodes again on access.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from evaluators.base import Example
from pipelines.finetune.data import Encoded, encode
from pipelines.stage import UserError

if TYPE_CHECKING:
    from pipelines.finetune.model import LoadedModel
    from pipelines.splits import Splits

KEPT = 256
"""Encoded rows that the lazy way keeps."""
_TELL_SECONDS = 20.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainRows:
    """The tokens of `train`.

    Attributes:
        rows: those with at least one trained-on token, in file order.
        lengths: tokens of each of them, (rows,).
        cut: how many were cut to `sequence_len`.
        dropped: how many had nothing left to train on after that.
        phases: which file each row is from, where these are trained on one after another, (rows,).
    """

    rows: Sequence[Encoded]
    lengths: NDArray[np.int32]
    cut: int
    dropped: int
    phases: NDArray[np.int32] | None = None


class LazyRows(Sequence[Encoded]):
    """Rows that are encoded when they are asked for; the last ones are kept.

    Args:
        examples: all rows of `train`.
        places: which of them are rows of this sequence, (rows,).
        encode_row: turns one into tokens.
        kept: how many encoded rows stay in memory.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        places: NDArray[np.int64],
        encode_row: Callable[[Example], Encoded],
        kept: int = KEPT,
    ) -> None:
        self._examples = examples
        self._places = places
        self._encode = encode_row
        self._kept = kept
        self._recent: OrderedDict[int, Encoded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> Encoded: ...
    @overload
    def __getitem__(self, place: slice) -> list[Encoded]: ...
    def __getitem__(self, place: int | slice) -> Encoded | list[Encoded]:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        at = int(self._places[place])
        if at in self._recent:
            self._recent.move_to_end(at)
            return self._recent[at]
        row = self._recent[at] = self._encode(self._examples[at])
        if len(self._recent) > self._kept:
            self._recent.popitem(last=False)
        return row


class KeptRows:
    """The tokens of `train` that were asked for last, so that the next task on them begins at once."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[int, str, int], Splits, TrainRows] | None = None

    def of(self, splits: Splits, loaded: LoadedModel, sequence_len: int) -> TrainRows:
        """See `encode_train`; the same splits give the same rows."""
        key = (id(splits), str(loaded.folder), sequence_len)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, splits, encode_train(splits.train, loaded.tokenizer, sequence_len, splits.phases))
        return self._kept[2]


def encode_train(
    examples: Sequence[Example], tokenizer: Any, sequence_len: int, phases: NDArray[np.int32] | None = None
) -> TrainRows:
    """All rows of `train`; cut and dropped ones are counted and logged.

    A list is encoded at once; any other sequence (rows on disk) is gone over once and encoded again on access.

    Args:
        examples: the rows.
        tokenizer: makes tokens of them.
        sequence_len: tokens of a row at most.
        phases: which file each is from, (rows,), where that matters.

    Raises:
        UserError: if no row has anything to train on.
    """

    def encode_row(example: Example) -> Encoded:
        return encode(example, tokenizer, sequence_len)

    held = isinstance(examples, list | tuple)
    kept: list[Encoded] = []
    places, lengths, cut = array("q"), array("i"), 0
    for place, row in enumerate(map(encode_row, examples if held else _told(examples))):
        cut += row.cut
        if row.trained:
            places.append(place)
            lengths.append(len(row.ids))
            if held:
                kept.append(row)
    if not places:
        raise UserError(
            f"sequence_len: {sequence_len} tokens leave nothing to train on in any of the {len(examples)} rows; raise it"
        )
    dropped = len(examples) - len(places)
    if cut:
        _log.warning(
            "%d of %d rows of train were cut to %d tokens, %d of them to their prompt and dropped",
            *(cut, len(examples), sequence_len, dropped),
        )
    used = np.array(places, dtype=np.int64)
    rows = kept if held else LazyRows(examples, used, encode_row)
    own = None if phases is None else phases[used]
    return TrainRows(rows, np.array(lengths, dtype=np.int32), cut, dropped, own)


def _told(examples: Sequence[Example]) -> Iterator[Example]:
    """The rows in order; how far the pass is goes to the log now and then."""
    last = time.monotonic()
    for place, example in enumerate(examples):
        if time.monotonic() - last > _TELL_SECONDS:
            last = time.monotonic()
            _log.warning("%d of %d rows of train measured", place, len(examples))
        yield example
