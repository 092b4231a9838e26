"""How long a sweep's rows are, as far as that can be known: from the rows that were read, or from the first ones of the files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluators.base import Example
from pipelines.config import DataFile, FineTuneConfig
from pipelines.finetune.workload import RowSize
from sweeps.splitsizes import TEXT_FORMATS, about

if TYPE_CHECKING:
    from pipelines.splits import Splits

MEASURED_ROWS = 5_000
"""Rows of a split that are measured with `--data`."""
SAMPLED_ROWS = 300
"""Rows of train that are read for their lengths without `--data`."""


@dataclass
class Rows:
    """What is known of the data.

    Attributes:
        train: rows of train: the first ones, or all.
        tune: rows of `tune`, or the first ones of train where it is a share of it.
        count: rows of train in all.
        basis: where the lengths are from, for people.
    """

    train: Sequence[RowSize] = ()
    tune: Sequence[RowSize] = ()
    count: int = 0
    basis: str = "every row as long as sequence_len"


def known_rows(config: FineTuneConfig, splits: Splits | None) -> Rows:
    """The lengths of a fine-tune's rows: measured where they were read, else those of the first ones of its files."""
    if splits is not None:
        read = _spread(splits.train)
        some = "the rows" if len(read) == len(splits.train) else f"{len(read):,} rows"
        return Rows(_sizes(read), _sizes(_spread(splits.tune)), len(splits.train), f"the characters of {some}")
    first, tune = first_rows(config.datasets.train), config.datasets.tune
    if not first:
        return Rows()
    train = _sizes(first)
    held = _sizes(first_rows(tune)) if isinstance(tune, DataFile) else train
    return Rows(train, held, about(config, "train") or len(first), f"the characters of the first {len(first)} rows")


def _sizes(examples: Iterable[Example]) -> list[RowSize]:
    return [RowSize.of(example) for example in examples]


def _spread(examples: Sequence[Example]) -> list[Example]:
    """So many rows at even distances that measuring them takes no time to speak of."""
    step = max(1, len(examples) // MEASURED_ROWS)
    return [examples[place] for place in range(0, len(examples), step)]


def first_rows(data: DataFile, most: int = SAMPLED_ROWS) -> list[Example]:
    """The first sound rows of a data set whose files are text; nothing of others, which take long to open."""
    from pipelines.data import build_reader
    from pipelines.data.base import BadRow
    from pipelines.data.examples import build_row, needed_columns, optional_columns
    from pipelines.data.files import find_files, format_of, is_hub_id
    from pipelines.stage import UserError

    most = min(most, data.limit or most)
    rows: list[Example] = []
    try:
        files = () if is_hub_id(data.path) else find_files(data.path, data.ds_type)
        for file in files:
            kind = format_of(file, data.ds_type)
            if kind not in TEXT_FORMATS:
                break
            wanted = (*needed_columns(data), *optional_columns(data))
            for record in build_reader(kind, file, wanted).records():
                if len(rows) >= most:
                    return rows
                with contextlib.suppress(BadRow):
                    if not isinstance(record.value, BadRow):
                        rows.append(build_row(record.value, data).example(1))
    except UserError:
        return []
    return rows
