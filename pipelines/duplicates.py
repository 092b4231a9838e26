"""Repeated rows within train, and near-duplicates across splits: rows of `tune`, `select` or `test` that train has nearly.

A row is its prompt (a plain text row: its text), in lower case without marks and extra blanks, as the set of its runs of
five characters. Two rows are near-duplicates when these sets have a Jaccard similarity |A ∩ B| / |A ∪ B| of at least 0.8.
Candidates are found by MinHash (Broder 1997) with 64 hashes in 16 bands of 4 and then compared exactly, so nothing is
reported that is not so; a pair of similarity s is missed with probability (1 - s⁴)¹⁶: at 0.8 one in 5,000, at 0.9 less than
one in a million. Runs of characters, not of words, so that short prompts and languages without blanks are seen as well.

Example:
    >>> found = find_duplicates({"train": splits.train, "test": splits.test})
    >>> found.near[0].similarity
    0.94
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evaluators.base import Example

SIMILAR = 0.8
RUN = 5
BANDS, ROWS_A_BAND = 16, 4
MOST_COMPARED = 200
"""Candidates that one row is compared with before it counts as found in none: where all rows are one template."""
TOLD_EVERY = 1000
_MARKS = re.compile(r"[\W_]+")

Hashes = NDArray[np.uint64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Near:
    """A row of a held-out split, and one of another split that is nearly the same.

    Attributes:
        split: the held-out one.
        row: its id.
        other_split: where its double is.
        other_row: the double's id.
        similarity: of their runs of five characters, 0.8 to 1.
    """

    split: str
    row: str
    other_split: str
    other_row: str
    similarity: float


@dataclass(frozen=True)
class Duplicates:
    """What was found.

    Attributes:
        repeated: ids of train's rows that repeat an earlier one, prompt and answer.
        near: one for each held-out row and other split that has nearly the same row.
        compared: rows that were looked at.
    """

    repeated: tuple[str, ...]
    near: tuple[Near, ...]
    compared: int


@dataclass
class _Held:
    """Rows of the held-out splits, found by the bands of their MinHashes."""

    rows: list[tuple[str, str, Hashes]] = field(default_factory=list)
    buckets: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    compared: dict[tuple[int, str], int] = field(default_factory=dict)
    found: dict[tuple[int, str], Near] = field(default_factory=dict)

    def add(self, split: str, row: str, runs: Hashes, bands: list[int]) -> None:
        """Keep a held-out row."""
        for band, key in enumerate(bands):
            self.buckets.setdefault((band, key), []).append(len(self.rows))
        self.rows.append((split, row, runs))

    def look(self, split: str, row: str, runs: Hashes, bands: list[int], against: frozenset[str]) -> None:
        """Compare a row with the held-out rows of some splits that share a band with it."""
        seen: set[int] = set()
        for band, key in enumerate(bands):
            for at in self.buckets.get((band, key), ()):
                held_split, held_row, held_runs = self.rows[at]
                if at in seen or held_split not in against or (at, split) in self.found:
                    continue
                seen.add(at)
                tries = self.compared[at, split] = self.compared.get((at, split), 0) + 1
                if tries > MOST_COMPARED:
                    continue
                similarity = jaccard(runs, held_runs)
                if similarity >= SIMILAR:
                    self.found[at, split] = Near(held_split, held_row, split, row, round(similarity, 3))


def find_duplicates(splits: Mapping[str, Sequence[Example]], on_progress: Progress | None = None) -> Duplicates:
    """Look for doubles; train is gone through once and never held.

    Args:
        splits: rows by split, `train` among them.
        on_progress: told (rows done, rows in all) now and then.
    """
    held_out = [name for name in ("tune", "select", "test") if splits.get(name)]
    total = sum(len(splits[name]) for name in ("train", *held_out))
    held = _Held()
    done = 0
    order = list(reversed(held_out))
    for at, name in enumerate([*order, "train"]):
        against = frozenset(order[:at])
        for example, runs, bands in _hashed(splits[name]):
            if against:
                held.look(name, example.id, runs, bands, against)
            if name != "train":
                held.add(name, example.id, runs, bands)
            done += 1
            if on_progress is not None and done % TOLD_EVERY == 0:
                on_progress(done, total)
    repeated = tuple(example for example in _ids(splits["train"]) if "-" in example)
    near = sorted(held.found.values(), key=lambda found: (-found.similarity, found.split, found.row))
    return Duplicates(repeated, tuple(near), total)


def _ids(rows: Sequence[Example]) -> Iterator[str]:
    """Ids, from the index where rows are on the disk."""
    ids = getattr(rows, "ids", None)
    yield from (example.id for example in rows) if ids is None else ids


def _hashed(rows: Sequence[Example]) -> Iterator[tuple[Example, Hashes, list[int]]]:
    factors, offsets = _family()
    for example in rows:
        runs = shingles(_text(example))
        yield example, runs, bands_of(minhash(runs, factors, offsets))


def _text(example: Example) -> str:
    prompt = example.prompt
    if prompt is None:
        return example.completion
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def shingles(text: str) -> Hashes:
    """Hashes of the runs of `RUN` characters of a text, each once, ascending; shape `(runs,)`, at least one."""
    plain = _MARKS.sub(" ", text.lower()).strip() or text
    points = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if len(points) < RUN:
        points = np.concatenate([points, np.zeros(RUN - len(points), np.uint64)])
    hashed = np.zeros(len(points) - RUN + 1, np.uint64)
    for place in range(RUN):
        hashed = hashed * np.uint64(0x100000001B3) + points[place : place + len(hashed)]
    return np.unique(_mixed(hashed))


def minhash(runs: Hashes, factors: Hashes, offsets: Hashes) -> Hashes:
    """The least hash of a set under each of a family h(x) = a x + b mod 2⁶⁴; shape `(hashes,)`."""
    table = runs[:, None] * factors + offsets
    least: Hashes = table.min(axis=0)
    return least


def bands_of(signature: Hashes) -> list[int]:
    """One number a band of a MinHash signature."""
    keys = np.zeros(BANDS, np.uint64)
    for row in signature.reshape(BANDS, ROWS_A_BAND).T:
        keys = _mixed(keys ^ row)
    numbers: list[int] = keys.tolist()
    return numbers


def jaccard(left: Hashes, right: Hashes) -> float:
    """|A ∩ B| / |A ∪ B| of two sets of hashes, each without repeats."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)


def _family() -> tuple[Hashes, Hashes]:
    """Odd factors and offsets of the hash family, always the same."""
    draw = np.random.default_rng(0)
    size = BANDS * ROWS_A_BAND
    factors = draw.integers(0, 2**63, size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return factors, draw.integers(0, 2**63, size, dtype=np.uint64)


def _mixed(numbers: Hashes) -> Hashes:
    """SplitMix64's finaliser: every bit of the input moves every bit of the output."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
