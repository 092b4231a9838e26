"""What searchers share of Optuna: a study is rebuilt from the history at every ask, and forgotten after it.

A searcher may model its axes in parts, each with a study of its own: what a part has of a suggestion are its axes'
choices, their distributions and its sampler's attributes. Nothing outlives an ask, so that a resumed sweep asks exactly
as an uninterrupted one.

Choices are categories, told apart by their JSON text, so that lists and mappings may be chosen and 1, 1.0 and true differ.

Example:
    >>> optuna = load_optuna("tpe")
    >>> trial = ask(optuna.samplers.TPESampler(seed=seed_of(0, 7)), 1, past)
    >>> draw(trial, "lr", Interval(1e-5, 1e-3, log=True))
    0.00034
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.searchers.base import Suggestion, Told
from sweeps.searchers.cover import axes_of
from sweeps.searchers.rungs import top_rung
from sweeps.space import Choice, Domain, Interval, Space
from sweeps.trial import canonical

if TYPE_CHECKING:
    import optuna

TPE_PART = "tpe"
"""The key of TPE's attributes in a suggestion that has parts."""


def load_optuna(method: str) -> Any:
    """Optuna, loaded at the first use and kept quiet.

    Args:
        method: the setting that wants it.

    Raises:
        ImportError: with the line that installs it.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError(f"`method: {method}` needs Optuna: pip install 'optuna>=5,<6'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's warnings about experimental arguments concern nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def seed_of(seed: int, index: int, part: int = 0) -> int:
    """The seed of one ask, of one part: every ask has a fresh generator of its own."""
    entropy = [seed, index] if part == 0 else [seed, index, part]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def ask(sampler: optuna.samplers.BaseSampler, metrics: int, past: Sequence[optuna.trial.FrozenTrial]) -> optuna.Trial:
    """A trial to draw from, of a study that holds the past; smaller is better in each metric (`rungs.comparable`)."""
    import optuna

    study = optuna.create_study(directions=["minimize"] * metrics, sampler=sampler)
    study.add_trials(past)
    return study.ask()


def draw(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    """A value of the domain, as the space holds it."""
    if isinstance(domain, Choice):
        return json.loads(trial.suggest_categorical(name, [canonical(value) for value in domain.values]))
    return domain.snap(_number(trial, name, domain))


def drawn(trial: optuna.Trial) -> tuple[dict[str, str], dict[str, Any]]:
    """({axis name: distribution JSON}, {the sampler's attributes}) of a trial that was drawn from."""
    import optuna

    frozen = trial.study.trials[-1]
    texts = {name: optuna.distributions.distribution_to_json(d) for name, d in frozen.distributions.items()}
    return texts, json.loads(json.dumps(frozen.system_attrs))


def frozen_trial(
    suggestion: Suggestion,
    state: optuna.trial.TrialState,
    values: Sequence[float] | None = None,
    steps: Mapping[int, float] | None = None,
    covers: Callable[[str], bool] = lambda name: True,
    attributes: Mapping[str, Any] | None = None,
) -> optuna.trial.FrozenTrial:
    """An earlier suggestion as a study holds it.

    Args:
        suggestion: as it was made.
        state: what became of it.
        values: of a complete one.
        steps: resource -> value of a pruned one.
        covers: whether the study models an axis.
        attributes: the sampler's own; default: the suggestion's.
    """
    import optuna

    distributions = {n: _distribution(text) for n, text in suggestion.distributions.items() if covers(n)}
    return optuna.trial.create_trial(
        state=state,
        values=None if values is None else list(values),
        params={name: _inner(suggestion.choices[name], distributions[name]) for name in distributions},
        distributions=distributions,
        intermediate_values=dict(steps or {}),
        system_attrs=dict(suggestion.attributes if attributes is None else attributes),
    )


def tpe_sampler(seed: int, n_startup_trials: int) -> Any:
    """Multivariate, grouped by branch, with constant liars for running trials."""
    return load_optuna("tpe").samplers.TPESampler(
        n_startup_trials=n_startup_trials, multivariate=True, group=True, constant_liar=True, seed=seed
    )


def tpe_past(
    history: Sequence[Told],
    values: Sequence[tuple[float, ...] | None],
    covers: Callable[[str], bool] = lambda name: True,
    part: str | None = None,
) -> list[optuna.trial.FrozenTrial]:
    """The history as TPE is told it.

    With one metric a value below the highest rung is one pruned there, which TPE ranks behind the complete ones, the
    higher rung first.

    Args:
        history: all suggestions so far.
        values: theirs, smaller is better (`rungs.comparable`).
        covers: the axes that TPE models here.
        part: the key of its attributes; None where they are the suggestion's.
    """
    import optuna

    states, top, past = optuna.trial.TrialState, top_rung(history), []
    for told, value in zip(history, values, strict=True):
        state, told_values, steps = state_of(told), value, {}
        if value is not None and len(value) == 1 and top is not None and (told.resource or top) < top:
            state, told_values, steps = states.PRUNED, None, {told.resource or top: value[0]}
        attributes = None if part is None else told.suggestion.attributes.get(part, {})
        past.append(frozen_trial(told.suggestion, state, told_values, steps, covers, attributes))
    return past


def tpe_trial(
    space: Space,
    covers: Callable[[str], bool],
    history: Sequence[Told],
    values: Sequence[tuple[float, ...] | None],
    metrics: int,
    n_startup_trials: int,
    seed: int,
) -> optuna.Trial | None:
    """What TPE draws the other axes from, where another sampler covers only some; None where it covers all.

    Args:
        space: all axes.
        covers: the axes of the other sampler.
        history: all suggestions so far.
        values: theirs, smaller is better (`rungs.comparable`).
        metrics: how many there are.
        n_startup_trials: random draws before the model is used.
        seed: of this ask.
    """
    if all(covers(name) for name in axes_of(space)):
        return None
    past = tpe_past(history, values, lambda name: not covers(name), TPE_PART)
    return ask(tpe_sampler(seed, n_startup_trials), metrics, past)


def state_of(told: Told) -> optuna.trial.TrialState:
    """Optuna's word for what became of a suggestion."""
    import optuna

    states = optuna.trial.TrialState
    return {"complete": states.COMPLETE, "running": states.RUNNING, "failed": states.FAIL}[told.state]


@lru_cache(maxsize=4096)
def _distribution(text: str) -> Any:
    import optuna

    return optuna.distributions.json_to_distribution(text)


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
