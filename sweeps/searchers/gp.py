"""Bayesian optimisation with a Gaussian process by Optuna's GPSampler, over the parameters that every configuration has.

Log expected improvement for one metric, hypervolume improvement for several. Arms, and what only an arm has, are TPE's.

GPSampler on a space with branches silently draws at random what not all trials have. Here the process has a study of its
own, with the common axes alone (`cover.covered`), and TPE one with all others. What the process is told:

* complete trials, values of several rungs on the scale of `rungs.comparable`;
* running trials: their points are fantasised (qLogEI);
* infrastructure failures: nothing.

It needs torch, which Optuna loads at the first suggestion after `n_startup_trials` values. A suggestion uses one thread of
it: the matrices are small, trials are at work on the other cores, and sums come out alike on any number of cores.

Left out: the arm as an input of the process, constraints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    from sweeps.spec import GPConfig

PART = "gp"


class GPSearcher:
    """Asks a Gaussian process for the common axes and TPE for the others."""

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
        self._own = frozenset(covered(PART, space))

    @classmethod
    def of(cls, config: GPConfig, space: Space, directions: Sequence[Direction]) -> GPSearcher:
        """From the sweep file's section."""
        return cls(space, directions, config.seed, config.n_startup_trials)

    @property
    def finite(self) -> int | None:
        """There is no end."""
        return None

    def suggest(self, index: int, history: Sequence[Told]) -> Suggestion | None:
        """The suggestion numbered `index`, given all earlier ones in order."""
        optuna = load_optuna(PART)
        values = comparable(history, self.directions)
        sampler = optuna.samplers.GPSampler(
            seed=seed_of(self.seed, index), n_startup_trials=self.n_startup_trials, warn_independent_sampling=False
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
        modelled = sum(value is not None for value in values) >= self.n_startup_trials
        with quiet(), _one_thread(modelled):
            own = ask(sampler, len(self.directions), past)
            other = tpe_trial(
                self.space,
                self._own.__contains__,
                history,
                values,
                len(self.directions),
                self.n_startup_trials,
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


@contextmanager
def _one_thread(modelled: bool) -> Iterator[None]:
    """One thread of torch, where a model is fitted; before that it is not loaded."""
    if not modelled:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
