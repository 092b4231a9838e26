"""Tree-structured Parzen estimators by Optuna (Bergstra et al. 2011; Falkner et al. 2018 for the multivariate form).

Multivariate, grouped by branch, with constant liars for running trials. Each ask builds a study from the history and a
fresh sampler seeded by (seed, index), so that a resumed sweep asks exactly as an uninterrupted one. What is told:

* the values of trials at the highest rung that any trial has reached: complete;
* values at a lower rung: pruned there, which Optuna ranks behind the complete ones, the higher rung first;
* running trials, with the sampler's own attributes;
* infrastructure failures: as failed, which the sampler passes over.

Left out: constraints, priors, warm starts. With several metrics every trial counts as complete, on the scale of
`rungs.comparable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps.searchers.base import Suggestion, Told
from sweeps.searchers.rungs import comparable
from sweeps.searchers.studies import ask, draw, drawn, load_optuna, quiet, seed_of, tpe_past, tpe_sampler
from sweeps.space import Space

if TYPE_CHECKING:
    from evaluators.base import Direction
    from sweeps.spec import TPEConfig


class TPESearcher:
    """Asks Optuna's TPESampler; Optuna is imported at the first suggestion."""

    def __init__(
        self,
        space: Space,
        directions: Sequence[Direction] = ("minimize",),
        seed: int = 0,
        n_startup_trials: int = 8,
    ) -> None:
        self.space = space
        self.directions = tuple(directions)
        self.seed = seed
        self.n_startup_trials = n_startup_trials

    @classmethod
    def of(cls, config: TPEConfig, space: Space, directions: Sequence[Direction]) -> TPESearcher:
        """From the sweep file's section."""
        return cls(space, directions, config.seed, config.n_startup_trials)

    @property
    def finite(self) -> int | None:
        """There is no end."""
        return None

    def suggest(self, index: int, history: Sequence[Told]) -> Suggestion | None:
        """The suggestion numbered `index`, given all earlier ones in order."""
        load_optuna("tpe")
        with quiet():
            past = tpe_past(history, comparable(history, self.directions))
            sampler = tpe_sampler(seed_of(self.seed, index), self.n_startup_trials)
            trial = ask(sampler, len(self.directions), past)
            parameters, choices = self.space.sample(lambda name, domain: draw(trial, name, domain))
            distributions, attributes = drawn(trial)
        return Suggestion(parameters, choices, distributions, attributes)
