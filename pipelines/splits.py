"""The four splits of a dataset: rows of files or of the hub, split by the hash of their prompt. No torch.

A row's split depends on its prompt (or `group_by`), the seed and the fractions alone: never on the file's order, its
format or other rows, so adding rows moves none. `tune` takes the hashes at the bottom, `select` those above it, `test`
those at the top, `train` what is between.

Example:
    >>> splits = load_splits(config.datasets, seed=config.seed_data)
    >>> len(splits.train), len(splits.tune)
    (450, 50)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evaluators.base import Example
from pipelines.config import DataFile, Datasets, Fraction
from pipelines.data.base import Stamp, stamp_of
from pipelines.data.files import content_hash, find_files, is_hub_id
from pipelines.stage import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipelines.data.index import Index

SMALL = 50
"""Splits with fewer prompts than this are warned about."""
_SHOWN = 5
_HELD_OUT = ("tune", "select", "test")


@dataclass(frozen=True)
class Splits:
    """Rows of every split; a split that the file does not name is empty.

    Where train is streamed, it and the splits taken from it are `pipelines.data.index.LazyRows`, which read a row when
    it is asked for; else lists.

    Attributes:
        train: in file order.
        tune: in hash order, so that the first n are a fixed random sample; so are `select` and `test`.
        warnings: sentences for the user.
        skipped: how many bad rows of train's file `on_bad_row: skip` left out.
        phases: with `strategy: phased`, which of train's files each of its rows is from, (rows,).
    """

    train: Sequence[Example]
    tune: Sequence[Example]
    select: Sequence[Example] = field(default_factory=list)
    test: Sequence[Example] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    skipped: int = 0
    phases: NDArray[np.int32] | None = None

    def rows(self, split: str) -> Sequence[Example]:
        """The rows of a split by its name."""
        found: Sequence[Example] = getattr(self, split)
        return found


_Key = tuple[str, tuple[Stamp, ...], bool]
_INDEXES: dict[_Key, Index] = {}
_SPLITS: dict[tuple[str, int, tuple[_Key, ...]], Splits] = {}
_HASHES: dict[tuple[Stamp, ...], str] = {}
_KEPT = 8


def load_splits(datasets: Datasets, seed: int = 0) -> Splits:
    """Read and split; cached in the process by every file's place, time and size.

    Args:
        datasets: the `datasets` section, paths absolute.
        seed: `seed_data`; another one gives other splits.

    Raises:
        UserError: on an unreadable file, a bad row (file and line), an empty split, fractions that leave no train, a
            prompt that stands in two files, or files that are not those that `content_hash` tells.
    """
    skip = datasets.on_bad_row == "skip"
    keys = tuple(_key(data, skip) for data in (datasets.train, *_files(datasets).values()))
    key = (datasets.model_dump_json(), seed, keys)
    if key not in _SPLITS:
        _keep(_SPLITS, key, _split(datasets, seed))
    return _SPLITS[key]


def count_train(datasets: Datasets, seed: int = 0) -> int:
    """Rows of `train` after the fractions are taken out: what an epoch is made of.

    Raises:
        UserError: as `load_splits`.
    """
    return len(load_splits(datasets, seed).train)


def read_rows(data: DataFile) -> list[Example]:
    """Every row of one data set, in hash order, as a split of its own.

    Raises:
        UserError: on an unreadable or empty file, or a bad row (file and line).
    """
    import numpy as np

    index = _read(data, False)
    return list(index.examples(index.by_id(np.arange(len(index)))))


def place_of(datasets: Datasets, split: str, example: str) -> str:
    """Where a row lies, for people: `data/train.jsonl, line 7`.

    Args:
        datasets: the `datasets` section, paths absolute.
        split: the row's.
        example: its id.
    """
    import numpy as np

    own = getattr(datasets, split)
    index = _read(own if isinstance(own, DataFile) else datasets.train, datasets.on_bad_row == "skip")
    content, _, repeat = example.partition("-")
    found = np.flatnonzero((index.content == np.uint64(int(content, 16))) & (index.repeat == int(repeat or 1)))
    return index.where(int(found[0]))


def _split(datasets: Datasets, seed: int) -> Splits:
    import numpy as np

    skip = datasets.on_bad_row == "skip"
    files = {name: _read(data, skip) for name, data in _files(datasets).items()}
    train = _read(datasets.train, skip)
    kept = _without_duplicates(datasets, train, files)
    parts = _parts(datasets, seed, train, kept)
    warnings = [f"{len(train) - len(kept)} rows of train were dropped: their prompts stand in another split's file"]
    warnings *= len(kept) < len(train)
    held: dict[str, Sequence[Example]] = {}
    for name in ("train", *_HELD_OUT):
        if name != "train" and getattr(datasets, name) is None:
            continue
        index = files.get(name, train)
        rows = np.arange(len(index)) if name in files else parts[name]
        if not len(rows):
            raise UserError(_empty(name, datasets))
        if name in files or name == "train":
            warnings += _skipped(name, index)
        if name != "train":
            warnings += _small(name, len(np.unique(index.group[rows])))
        held[name] = index.examples(rows if name == "train" else index.by_id(rows))
    warnings += _grouped_apart(datasets)
    phases = train.reader[parts["train"]] if datasets.strategy == "phased" else None
    if phases is not None and len(np.unique(phases)) == 1:
        warnings.append("datasets.strategy is phased, but train is one file, so its rows are shuffled together")
    return Splits(**{"tune": [], **held}, warnings=tuple(warnings), skipped=train.skipped, phases=phases)


def _parts(datasets: Datasets, seed: int, train: Index, kept: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
    """Rows of train's file by the split they belong to, in file order."""
    import numpy as np

    parts: dict[str, NDArray[np.int64]] = {}
    left = np.ones(len(kept), bool)
    ranges = _ranges(datasets)
    if ranges:
        units, which = np.unique(train.group[kept], return_inverse=True)
        place = np.array([unit(seed, f"{int(group):016x}") for group in units])[which]
        for name, (low, high) in ranges.items():
            chosen = left & (low <= place) & (place < high)
            parts[name] = kept[chosen]
            left &= ~chosen
    return {**parts, "train": kept[left]}


def _files(datasets: Datasets) -> dict[str, DataFile]:
    found = {name: getattr(datasets, name) for name in _HELD_OUT}
    return {name: data for name, data in found.items() if isinstance(data, DataFile)}


def _ranges(datasets: Datasets) -> dict[str, tuple[float, float]]:
    share = datasets.fractions
    tune = share.get("tune", 0.0)
    ranges = {
        "tune": (0.0, tune),
        "select": (tune, tune + share.get("select", 0.0)),
        "test": (1 - share.get("test", 0.0), 1.0),
    }
    return {name: ranges[name] for name in share}


def _empty(name: str, datasets: Datasets) -> str:
    source = getattr(datasets, name)
    if isinstance(source, Fraction):
        return (
            f"datasets.{name} is empty: a fraction of {source.fraction} of the prompts of {datasets.train.path} holds none; "
            "raise the fraction or give it a file of its own"
        )
    return f"datasets.{name} is empty: {source.path} has no row left for it"


def _small(name: str, n: int) -> list[str]:
    if n >= SMALL:
        return []
    width = 1.96 * 0.5 / math.sqrt(n)
    return [
        f"{name} has {n} prompts: a share measured on them is known to ±{width:.2f} only (95 %), "
        "so smaller differences can't be shown"
    ]


def _skipped(name: str, index: Index) -> list[str]:
    if not index.skipped:
        return []
    more = f"; and {index.skipped - len(index.bad)} more" * (index.skipped > len(index.bad))
    count = f"{index.skipped} of {index.skipped + len(index)} rows"
    return [f"{name}: {count} are broken and were left out (on_bad_row: skip): {'; '.join(index.bad)}{more}"]


def _grouped_apart(datasets: Datasets) -> list[str]:
    """A warning for held-out files that are not grouped as train is: their groups can't be compared."""
    keys = {name: data.group_by for name, data in _files(datasets).items()}
    return [
        f"train has group_by: {datasets.train.group_by or 'the prompt'}, {name} has {key or 'the prompt'}: a group that stands "
        "in both can't be noticed"
        for name, key in keys.items()
        if key != datasets.train.group_by
    ]


def _without_duplicates(datasets: Datasets, train: Index, files: Mapping[str, Index]) -> NDArray[np.int64]:
    """Rows of train whose prompt and group stand in no other file."""
    import numpy as np

    seen: dict[tuple[str, int], tuple[str, int]] = {}
    problems = _Problems()
    for name, index in files.items():
        for row in range(len(index)):
            other = next((seen[k] for k in _keys(index, row) if k in seen and seen[k][0] != name), None)
            if other is not None:
                problems.add(lambda n=name, r=row, o=other: _twice(files, n, files[n], r, *o))
            for key in _keys(index, row):
                seen.setdefault(key, (name, row))
    if not seen:
        return np.arange(len(train))
    prompts, groups = (np.array([v for kind, v in seen if kind == wanted], np.uint64) for wanted in ("p", "g"))
    double = np.isin(train.prompt, prompts) | np.isin(train.group, groups)
    if datasets.on_duplicate == "error":
        for row in map(int, np.flatnonzero(double)):
            other = next(seen[k] for k in _keys(train, row) if k in seen)
            problems.add(
                lambda r=row, o=other: (
                    _twice(files, "train", train, r, *o) + "; `on_duplicate: drop_train` drops it from train"
                )
            )
    problems.refuse()
    return np.flatnonzero(~double)


def _keys(index: Index, row: int) -> tuple[tuple[str, int], tuple[str, int]]:
    return (("p", int(index.prompt[row])), ("g", int(index.group[row])))


def _twice(files: Mapping[str, Index], name: str, index: Index, row: int, other_name: str, other_row: int) -> str:
    other = files[other_name]
    what = "prompt" if index.prompt[row] == other.prompt[other_row] else "group"
    return f"{index.where(row)} ({name}): its {what} stands in {other.where(other_row)} ({other_name}) too"


class _Problems:
    """What is wrong: the first few as sentences, the others counted."""

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self._count = 0

    def add(self, sentence: Any) -> None:
        self._count += 1
        if len(self._sentences) < _SHOWN:
            self._sentences.append(sentence())

    def refuse(self) -> None:
        more = [f"... and {self._count - _SHOWN} more like these"] * (self._count > _SHOWN)
        if self._count:
            raise UserError("\n".join([*self._sentences, *more]))


def _key(data: DataFile, skip: bool) -> _Key:
    return (data.model_dump_json(), _stamps(data), skip)


def _stamps(data: DataFile) -> tuple[Stamp, ...]:
    """What the files of a data set look like; nothing for the hub, where the revision says it."""
    return () if is_hub_id(data.path) else tuple(stamp_of(file) for file in find_files(data.path, data.ds_type))


def _read(data: DataFile, skip: bool) -> Index:
    from pipelines.data.index import build_index

    key = _key(data, skip)
    if key not in _INDEXES:
        refuse_other_content(data)
        _keep(_INDEXES, key, build_index(data, skip_bad=skip))
    return _INDEXES[key]


def data_hash(data: DataFile) -> str:
    """SHA-256 of the files of a data set as they are now; see `pipelines.data.files.content_hash`.

    Raises:
        UserError: if there are none, or one can't be read.
    """
    stamps = _stamps(data)
    if stamps not in _HASHES:
        _keep(_HASHES, stamps, content_hash([path for path, _, _ in stamps]))
    return _HASHES[stamps]


def refuse_other_content(data: DataFile) -> None:
    """Compare the files with `content_hash`, where that is given.

    Raises:
        UserError: if they are not those that a sweep was begun with.
    """
    if data.content_hash is None or is_hub_id(data.path):
        return
    found = data_hash(data)
    if found != data.content_hash:
        raise UserError(
            f"{data.path}: has changed since the sweep was begun (SHA-256 {found[:12]}..., then "
            f"{data.content_hash[:12]}...), so scores could not be compared; put the old content back, or submit a new sweep"
        )


def _keep(cache: dict[Any, Any], key: Any, value: Any) -> None:
    while len(cache) >= _KEPT:
        del cache[next(iter(cache))]
    cache[key] = value


def unit(seed: int, group: str) -> float:
    """A number in [0, 1) from the seed and the group."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
