"""Tree-structured Parzen estimators by Optuna (Bergstra et al. 2011; Falkner et al. 2018 for the multivariate form).

Multivariate, grouped by branch, with constant liars for running trials. Each ask builds a study from the history and a
fresh sampler seeded by (seed, index), so that a resumed sweep asks exactly as an uninterrupted one. What is told:

* the values of trials at the highest rung that any trial has reached: complete;
* values at a lower rung: pruned there, which Optuna ranks behind the complete ones, the higher rung first;
* running trials, with the sampler's own attributes;
* infrastructure failures: as failed, which the sampler passes over.

Choices are categories, told apart by their JSON text, so that lists and mappings may be chosen and 1, 1.0 and true differ.

Left out: constraints, priors, warm starts. With several metrics every trial counts as complete.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.searchers.base import Suggestion, Told
from sweeps.space import Choice, Domain, Interval, Space
from sweeps.trial import canonical

if TYPE_CHECKING:
    import optuna

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
        self._distributions: dict[str, Any] = {}

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
        optuna = _optuna()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(directions=list(self.directions), sampler=self._sampler(index))
            top = _top(history)
            study.add_trials([self._frozen(told, top) for told in history])
            trial = study.ask()
            parameters, choices = self.space.sample(lambda name, domain: _suggest(trial, name, domain))
        frozen = study.trials[-1]
        return Suggestion(
            parameters=parameters,
            choices=choices,
            distributions={n: optuna.distributions.distribution_to_json(d) for n, d in frozen.distributions.items()},
            attributes=json.loads(json.dumps(frozen.system_attrs)),
        )

    def _sampler(self, index: int) -> optuna.samplers.TPESampler:
        seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
        return _optuna().samplers.TPESampler(
            n_startup_trials=self.n_startup_trials, multivariate=True, group=True, constant_liar=True, seed=seed
        )

    def _frozen(self, told: Told, top: int | None) -> optuna.trial.FrozenTrial:
        optuna = _optuna()
        state = optuna.trial.TrialState.FAIL
        values: list[float] | None = None
        steps: dict[int, float] = {}
        if told.state == "running":
            state = optuna.trial.TrialState.RUNNING
        elif told.state == "complete" and told.values is not None:
            state, values = optuna.trial.TrialState.COMPLETE, list(told.values)
            if len(values) == 1 and top is not None and told.resource is not None and told.resource < top:
                steps = {told.resource: values[0]}
                state, values = optuna.trial.TrialState.PRUNED, None
        distributions = self._distributions_of(told.suggestion.distributions)
        return optuna.trial.create_trial(
            state=state,
            values=values,
            params={name: _inner(told.suggestion.choices[name], distributions[name]) for name in distributions},
            distributions=distributions,
            intermediate_values=steps,
            system_attrs=dict(told.suggestion.attributes),
        )

    def _distributions_of(self, texts: Mapping[str, str]) -> dict[str, Any]:
        for text in texts.values():
            if text not in self._distributions:
                self._distributions[text] = _optuna().distributions.json_to_distribution(text)
        return {name: self._distributions[text] for name, text in texts.items()}


def _optuna() -> Any:
    """Optuna, loaded at the first use and kept quiet.

    Raises:
        ImportError: with the line that installs it.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("`method: tpe` needs Optuna: pip install 'optuna>=5,<6'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _top(history: Sequence[Told]) -> int | None:
    return max(
        (told.resource for told in history if told.state == "complete" and told.resource is not None), default=None
    )


def _suggest(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return json.loads(trial.suggest_categorical(name, [canonical(value) for value in domain.values]))
    return domain.snap(_number(trial, name, domain))


def _number(trial: optuna.Trial, name: str, domain: Interval) -> float:
    """A draw of the interval; a logarithm with steps is drawn without them and snapped, which Optuna can't do itself."""
    if domain.integer and domain.step in (None, 1):
        return trial.suggest_int(name, round(domain.low), round(domain.high), log=domain.log)
    if domain.integer and not domain.log:
        return trial.suggest_int(name, round(domain.low), round(domain.high), step=round(domain.step or 1))
    if domain.step is not None and not domain.log:
        return trial.suggest_float(name, domain.low, domain.high, step=domain.step)
    return trial.suggest_float(name, domain.low, domain.high, log=domain.log)


def _inner(value: Any, distribution: Any) -> Any:
    """A recorded choice as Optuna holds it."""
    return canonical(value) if hasattr(distribution, "choices") else value
