"""Doubles in a sweep's data for `check --data`: counts, and examples with their files and lines."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pipelines.config import FineTuneConfig
from pipelines.duplicates import Progress, find_duplicates
from pipelines.splits import place_of

if TYPE_CHECKING:
    from pipelines.splits import Splits

SHOWN = 3


def doubles(
    config: FineTuneConfig, splits: Splits, on_progress: Progress | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What was found as JSON, and the warnings with the mend.

    Args:
        config: names the files.
        splits: the rows.
        on_progress: told (rows done, rows in all) now and then.
    """
    named = {name: splits.rows(name) for name in ("train", "tune", "select", "test")}
    found = find_duplicates(named, on_progress)
    datasets = config.datasets
    repeats = [
        {"row": place_of(datasets, "train", row), "first": place_of(datasets, "train", row.partition("-")[0])}
        for row in found.repeated[:SHOWN]
    ]
    counts = Counter((near.split, near.other_split) for near in found.near)
    pairs, warnings = [], []
    for (split, other), count in sorted(counts.items()):
        own = [near for near in found.near if (near.split, near.other_split) == (split, other)][:SHOWN]
        examples: list[dict[str, Any]] = [
            {
                "row": place_of(datasets, split, near.row),
                "other": place_of(datasets, other, near.other_row),
                "similarity": near.similarity,
            }
            for near in own
        ]
        pairs.append({"split": split, "other": other, "rows": count, "of": len(named[split]), "examples": examples})
        shown = "; ".join("{row} and {other} ({similarity:.2f})".format(**one) for one in examples)
        warnings.append(
            f"{count} of {len(named[split])} rows of {split} are nearly the same as rows of {other}: {shown}. Scores on "
            "them say little about new data; delete one of each pair, or keep them together with group_by"
        )
    if repeats:
        shown = "; ".join("{row} repeats {first}".format(**one) for one in repeats)
        warnings.append(
            f"{len(found.repeated)} of {len(named['train'])} rows of train repeat an earlier one exactly: {shown}. They are "
            "trained on as often as they stand there; delete them if that is not meant"
        )
    record = {"repeated": len(found.repeated), "repeats": repeats, "near": len(found.near), "pairs": pairs}
    return {**record, "compared": found.compared}, warnings
