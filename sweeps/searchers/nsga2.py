"""NSGA-II by Optuna (Deb et al. 2002), for one metric or several.

The parents of a generation are the best of all before it by Pareto rank and crowding distance. It covers the parameters
that every configuration has and the arms; what only an arm has is TPE's.

A suggestion keeps its generation. The next one begins when `population_size` of the newest are complete, so that several
at once never wait: what is asked for meanwhile belongs to the generation that is still open. Running and failed trials
are no parents. Values of several rungs are told on the scale of `rungs.comparable`, which ranks a higher rung first.

Left out: constraints. The first generation is drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps.searchers.base import Suggestion, Told
from sweeps.searchers.cover import covered
from sweeps.searchers.rungs import comparable
from sweeps.searchers.studies import (
    TPE_PART,
    ask,
    draw,
    drawn,
    frozen_trial,
    load_optuna,
    quiet,
    seed_of,
    state_of,
    tpe_trial,
)
from sweeps.space import Space

if TYPE_CHECKING:
    from evaluators.base import Direction
    from sweeps.spec import NSGA2Config

PART = "nsga2"


class NSGA2Searcher:
    """Asks NSGA-II for the common axes and the arms, and TPE for what only an arm has."""

    def __init__(
        self,
        space: Space,
        directions: Sequence[Direction] = ("minimize",),
        seed: int = 0,
        population_size: int = 8,
    ) -> None:
        self.space = space
        self.directions = tuple(directions)
        self.seed = seed
        self.population_size = population_size
        self._own = frozenset(covered(PART, space))

    @classmethod
    def of(cls, config: NSGA2Config, space: Space, directions: Sequence[Direction]) -> NSGA2Searcher:
        """From the sweep file's section."""
        return cls(space, directions, config.seed, config.population_size)

    @property
    def finite(self) -> int | None:
        """There is no end."""
        return None

    def suggest(self, index: int, history: Sequence[Told]) -> Suggestion | None:
        """The suggestion numbered `index`, given all earlier ones in order."""
        optuna = load_optuna(PART)
        values = comparable(history, self.directions)
        with quiet():
            sampler = optuna.samplers.NSGAIISampler(
                population_size=self.population_size, seed=seed_of(self.seed, index)
            )
            past = [
                frozen_trial(
                    entry.suggestion,
                    state_of(entry),
                    value,
                    covers=self._own.__contains__,
                    attributes=entry.suggestion.attributes.get(PART, {}),
                )
                for entry, value in zip(history, values, strict=True)
            ]
            own = ask(sampler, len(self.directions), past)
            other = tpe_trial(
                self.space,
                self._own.__contains__,
                history,
                values,
                len(self.directions),
                self.population_size,
                seed_of(self.seed, index, 1),
            )
            parameters, choices = self.space.sample(
                lambda name, domain: draw(own if other is None or name in self._own else other, name, domain)
            )
        distributions, attributes = drawn(own)
        parts = {PART: attributes}
        if other is not None:
            more, parts[TPE_PART] = drawn(other)
            distributions |= more
        return Suggestion(parameters, choices, distributions, parts)
