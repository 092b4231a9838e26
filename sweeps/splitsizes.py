"""How many rows each split has, and the smallest difference between two models that it can show.

For a share (exact match): the true difference that a paired two-sided test at 5 % finds with probability 80 %, when the two
models disagree on half of the rows, which is what two independent models at 50 % do: the worst case, p (1 - p) = 0.25 each.
For a mean (loss) it is given as a multiple of the standard deviation of the rows' differences, which only runs can show.

Example:
    >>> smallest(500)
    {'share': 0.0886, 'sds': 0.1253}
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from pipelines.config import AnyPipeline, DataFile, FineTuneConfig, Fraction, RagConfig
from sweeps.metrics import owner

if TYPE_CHECKING:
    from pipelines.splits import Splits
    from sweeps.load import LoadedSweep

ALPHA, POWER, DISCORDANT = 0.05, 0.8, 0.5
COUNTED_BYTES = 64_000_000
"""Files up to this size have their lines counted; of longer ones the count is taken from the first part."""
HELD_OUT = ("tune", "select", "test")
TEXT_FORMATS = ("json", "csv")
"""Formats whose rows are lines (a CSV row may be several: its count is then too high)."""


def sizes(loaded: LoadedSweep, config: FineTuneConfig, splits: Splits | None) -> dict[str, dict[str, Any]]:
    """For each named split: `rows`, `groups`, `exact` (whether they were counted), and of held-out ones `share` and `sds`.

    Args:
        loaded: the sweep; an evaluator's `limit` makes a split smaller.
        config: names the splits.
        splits: the rows where they were read.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in ("train", *HELD_OUT):
        if getattr(config.datasets, name) is None:
            continue
        if splits is not None:
            rows = splits.rows(name)
            told: dict[str, Any] = {"rows": len(rows), "exact": True, "groups": len({row.group for row in rows})}
        else:
            count = about(config, name)
            told = {"rows": count, "exact": False, "groups": count}
        if name != "train" and told["groups"] is not None:
            told |= smallest(_scored(loaded, told["groups"]), exact=splits is not None)
        found[name] = told
    return found


def smallest(groups: int, *, exact: bool = False) -> dict[str, float | None]:
    """`share`: smallest difference of two shares; `sds`: of two means, in standard deviations of the rows' differences.

    Args:
        groups: prompts (or groups) of the split; each counts once.
        exact: by Student's t, for which NumPy is needed; else by its limit, which is a little smaller under 50 groups.
    """
    if groups < 2:
        return {"share": 1.0, "sds": None}
    if exact:
        from evaluators.statistics import smallest_difference

        sds = smallest_difference(1 / math.sqrt(groups), groups, alpha=ALPHA, power=POWER)
    else:
        normal = NormalDist()
        sds = (normal.inv_cdf(1 - ALPHA / 2) + normal.inv_cdf(POWER)) / math.sqrt(groups)
    return {"share": round(min(1.0, math.sqrt(DISCORDANT) * sds), 4), "sds": round(sds, 4)}


def _scored(loaded: LoadedSweep, groups: int) -> int:
    """Groups that the metric's evaluator looks at."""
    entry = owner(loaded.metric.partition("/")[2], loaded.spec)
    return groups if entry is None or entry.limit is None else min(groups, entry.limit)


def about(config: FineTuneConfig, name: str) -> int | None:
    """Rows of a split by the lines of its files, about; None where rows are no lines."""
    datasets = config.datasets
    source = getattr(datasets, name)
    if isinstance(source, Fraction):
        whole = _lines(datasets.train)
        return None if whole is None else round(whole * source.fraction)
    whole = _lines(source)
    left = 1 - math.fsum(datasets.fractions.values()) if name == "train" else 1.0
    return None if whole is None else round(whole * left)


def _lines(data: DataFile) -> int | None:
    from pipelines.data.files import GZIP, find_files, format_of, is_hub_id
    from pipelines.stage import UserError

    total = 0
    try:
        for name in () if is_hub_id(data.path) else find_files(data.path, data.ds_type):
            kind = format_of(name, data.ds_type)
            if kind not in TEXT_FORMATS or name.lower().endswith(GZIP):
                return None
            total += count_lines(Path(name), header=kind == "csv")
    except (OSError, UserError):
        return None
    return (total if data.limit is None else min(total, data.limit)) or None


def count_lines(path: Path, *, header: bool) -> int:
    """Lines of a file without its header; of a long one by those of its first part."""
    size = path.stat().st_size
    with path.open("rb") as file:
        read = file.read(min(size, COUNTED_BYTES))
    lines = read.count(b"\n") + (not read.endswith(b"\n"))
    return max(0, round(lines * size / len(read)) - header) if read else 0


def count_rows(config: AnyPipeline, datasets: Any) -> int:
    """The rows of train.

    Raises:
        pipelines.stage.UserError: if they can't be read.
    """
    from pipelines.splits import count_train

    return count_train(datasets, config.seed_data if isinstance(config, FineTuneConfig) else 0)


def count_questions(config: RagConfig) -> int:
    """The resource of a RAG configuration: its questions of tune.

    Raises:
        pipelines.stage.UserError: if they can't be read.
    """
    from pipelines.rag.questions import count_tune

    return count_tune(config)
