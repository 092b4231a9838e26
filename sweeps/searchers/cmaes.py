"""CMA-ES with margin by the cmaes package (Hansen 2016, arXiv 1604.00772; Hamano et al. 2022 for stepped numbers).

It covers the numeric ranges that every configuration has. Choices, arms, and what only an arm has, are TPE's.

The optimiser is never stored. Every suggestion keeps the point that it was made from, in [0, 1] an axis, and the first one
after a generation has closed keeps who was in it, the best first; an ask makes a fresh optimiser, tells it these
generations again, and draws. CMA-ES uses nothing of values but their order, so the indexes are all there is to keep, and
nothing changes when a trial goes on to a higher rung later.

A generation closes when `population_size` complete trials wait to be told, whichever generation they were drawn from:
with several at once none is wasted, and none is waited for. Values of several rungs are ordered as in `rungs.comparable`.
Running and failed trials are not told.

Left out: restarts, several metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.searchers.base import Suggestion, Told
from sweeps.searchers.cover import axes_of, covered, default_population
from sweeps.searchers.rungs import comparable
from sweeps.searchers.studies import TPE_PART, draw, drawn, load_optuna, quiet, seed_of, tpe_trial
from sweeps.space import Domain, Interval, Space

if TYPE_CHECKING:
    from evaluators.base import Direction
    from sweeps.spec import CMAESConfig

PART = "cmaes"
STARTUP = 8
"""Random draws of the other axes before TPE has a model of them."""


class CMAESSearcher:
    """Asks CMA-ES for numbers and TPE for the rest; both packages are imported at the first suggestion.

    Raises:
        ValueError: for several metrics, or where there is no common numeric range.
    """

    def __init__(
        self,
        space: Space,
        directions: Sequence[Direction] = ("minimize",),
        seed: int = 0,
        population_size: int | None = None,
        sigma: float = 0.25,
    ) -> None:
        own = covered(PART, space)
        if len(directions) != 1:
            raise ValueError(f"CMA-ES takes one metric, but got {len(directions)}")
        if not own:
            raise ValueError("CMA-ES needs a numeric range that every configuration has, but got none")
        self.space = space
        self.directions = tuple(directions)
        self.seed = seed
        self.population_size = population_size or default_population(len(own))
        self.sigma = sigma
        axes = axes_of(space)
        self._domains = {name: domain for name in own if isinstance(domain := axes[name], Interval)}

    @classmethod
    def of(cls, config: CMAESConfig, space: Space, directions: Sequence[Direction]) -> CMAESSearcher:
        """From the sweep file's section."""
        return cls(space, directions, config.seed, config.population_size, config.sigma)

    @property
    def finite(self) -> int | None:
        """There is no end."""
        return None

    def suggest(self, index: int, history: Sequence[Told]) -> Suggestion | None:
        """The suggestion numbered `index`, given all earlier ones in order."""
        load_optuna(PART)
        values = comparable(history, self.directions)
        attributes: dict[str, Any] = {}
        with quiet():
            optimiser, told = self._again(index, history)
            waiting = [i for i, value in enumerate(values) if value is not None and i not in told]
            if len(waiting) >= self.population_size:
                best_first = sorted(waiting[: self.population_size], key=lambda i: (values[i], i))
                self._tell(optimiser, history, best_first)
                attributes["told"] = best_first
            encoded, point = optimiser.ask()
            attributes["point"] = [float(x) for x in point]
            own = {n: decode(d, float(x)) for (n, d), x in zip(self._domains.items(), encoded, strict=True)}
            other = tpe_trial(self.space, own.__contains__, history, values, 1, STARTUP, seed_of(self.seed, index, 1))
            parameters, choices = self.space.sample(lambda name, domain: self._draw(own, other, name, domain))
            parts = {PART: attributes}
            distributions: dict[str, str] = {}
            if other is not None:
                distributions, parts[TPE_PART] = drawn(other)
        return Suggestion(parameters, choices, distributions, parts)

    def _draw(self, own: dict[str, Any], other: Any, name: str, domain: Domain) -> Any:
        return own[name] if name in own else draw(other, name, domain)

    def _again(self, index: int, history: Sequence[Told]) -> tuple[Any, set[int]]:
        """The optimiser after all recorded generations, and who was told."""
        try:
            from cmaes import CMAwM
        except ImportError as error:
            raise ImportError("`method: cmaes` needs the cmaes package: pip install cmaes") from error
        n = len(self._domains)
        steps = [_step(domain) for domain in self._domains.values()]
        optimiser = CMAwM(
            mean=np.full(n, 0.5),
            sigma=self.sigma,
            bounds=np.tile([0.0, 1.0], (n, 1)),
            steps=np.array(steps),
            n_max_resampling=10 * n,
            seed=seed_of(self.seed, index),
            population_size=self.population_size,
        )
        told: set[int] = set()
        for entry in history:
            best_first = entry.suggestion.attributes.get(PART, {}).get("told")
            if best_first:
                self._tell(optimiser, history, best_first)
                told.update(best_first)
        return optimiser, told

    def _tell(self, optimiser: Any, history: Sequence[Told], best_first: Sequence[int]) -> None:
        points = [np.array(history[i].suggestion.attributes[PART]["point"]) for i in best_first]
        optimiser.tell([(point, float(place)) for place, point in enumerate(points)])


def decode(domain: Interval, share: float) -> float | int:
    """The legal value at a coordinate in [0, 1]: evenly along the range, or its logarithm."""
    if domain.log:
        low, high = math.log(domain.low), math.log(domain.high)
        return domain.snap(math.exp(low + share * (high - low)))
    return domain.snap(domain.low + share * (domain.high - domain.low))


def _step(domain: Interval) -> float:
    """The margin's step; 0 where the coordinate is continuous, as along a logarithm."""
    size = domain.size
    return 0.0 if size is None or domain.log else 1.0 / (size - 1)
