"""Random draws and the grid.

Both are pure functions of (seed, index): the history plays no part.

Example:
    >>> searcher = RandomSearcher(space, seed=0)
    >>> searcher.suggest(7, []) == searcher.suggest(7, [])
    True
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.searchers.base import Suggestion, Told
from sweeps.space import Choice, Domain, Space

if TYPE_CHECKING:
    from evaluators.base import Direction
    from sweeps.spec import GridConfig, RandomConfig


class RandomSearcher:
    """Independent draws, each from a generator of its own seeded by (seed, index)."""

    def __init__(self, space: Space, seed: int = 0) -> None:
        self.space = space
        self.seed = seed

    @classmethod
    def of(cls, config: RandomConfig, space: Space, directions: Sequence[Direction]) -> RandomSearcher:
        """From the sweep file's section."""
        return cls(space, config.seed)

    @property
    def finite(self) -> int | None:
        """There is no end."""
        return None

    def suggest(self, index: int, history: Sequence[Told]) -> Suggestion | None:
        """The draw numbered `index`."""
        generator = np.random.default_rng([self.seed, index])
        parameters, choices = self.space.sample(lambda name, domain: draw(domain, generator))
        return Suggestion(parameters, choices)


class GridSearcher:
    """Every combination once, in the file's order (first axis slowest) or shuffled by the seed.

    Raises:
        ValueError: if an axis is continuous.
    """

    def __init__(self, space: Space, shuffle: bool = False, seed: int = 0) -> None:
        size = space.size
        if size is None:
            raise ValueError(f"a grid needs choices, but got the continuous axis {next(space.continuous())}")
        self.space = space
        self.shuffle = shuffle
        self.seed = seed
        self._size = size
        self._left: Iterator[dict[str, Any]] = space.grid()
        self._made: list[dict[str, Any]] = []
        self._order: np.ndarray[Any, Any] | None = None

    @classmethod
    def of(cls, config: GridConfig, space: Space, directions: Sequence[Direction]) -> GridSearcher:
        """From the sweep file's section."""
        return cls(space, config.shuffle, config.seed)

    @property
    def finite(self) -> int | None:
        """Combinations in all."""
        return self._size

    def suggest(self, index: int, history: Sequence[Told]) -> Suggestion | None:
        """The combination numbered `index`; None past the last."""
        if index >= self._size:
            return None
        if self.shuffle:
            if self._order is None:
                self._order = np.random.default_rng(self.seed).permutation(self._size)
            index = int(self._order[index])
        while len(self._made) <= index:
            self._made.append(next(self._left))
        choices = self._made[index]
        return Suggestion(self.space.replay(choices), choices)


def draw(domain: Domain, generator: np.random.Generator) -> Any:
    """One value of a domain."""
    if isinstance(domain, Choice):
        return domain.values[int(generator.integers(len(domain.values)))]
    return domain.scale(float(generator.random()))
