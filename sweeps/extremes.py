"""The configurations of a space at which a cost is largest and smallest, found axis by axis.

Every axis is tried at the ends of its range (or at each of its values), every branch in each arm, twice around. That is exact
where each axis moves the cost one way whatever the others are, as memory's do; it is no search for anything else.

Example:
    >>> extremes(loaded.space, lambda parameters: parameters["lora_r"])
    ({'lora_r': 64}, {'lora_r': 4})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweeps.space import Domain, Interval, Space

Cost = Callable[[Mapping[str, Any]], float]
"""A number from the parameters ({dotted path: value}) of a configuration."""
ROUNDS = 2
MOST_VALUES = 16


def extremes(
    space: Space, cost: Cost, matters: Callable[[str], bool] = lambda path: True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of the costliest and of the cheapest configuration.

    Args:
        space: what is swept.
        cost: is asked about whole configurations only.
        matters: whether a dotted path can change the cost; the others stay at their first values.
    """
    return _extreme(space, cost, matters), _extreme(space, lambda parameters: -cost(parameters), matters)


def _extreme(space: Space, cost: Cost, matters: Callable[[str], bool]) -> dict[str, Any]:
    choices: dict[str, Any] = {}
    _start(space, choices)
    for _ in range(ROUNDS):
        _improve(space, choices, lambda tried: cost(space.replay(tried)), matters)
    return space.replay(choices)


def _start(space: Space, choices: dict[str, Any]) -> None:
    """The first value everywhere, in every arm."""
    for name, domain in _own(space):
        choices[name] = _candidates(domain)[0]
    for branch in space.branches:
        choices[branch.name] = branch.domain.values[0]
        for arm in branch.arms.values():
            _start(arm, choices)


def _improve(
    space: Space, choices: dict[str, Any], cost: Callable[[Mapping[str, Any]], float], matters: Callable[[str], bool]
) -> None:
    """Set every choice of a space, its arms' included, to the value with the highest cost given the others."""
    paths = {axis.name: (axis.path,) for axis in space.axes} | {
        group.axis: tuple(group.rows[0]) for group in space.groups
    }
    for name, domain in _own(space):
        if any(matters(path) for path in paths[name]):
            choices[name] = _best(choices, name, _candidates(domain), cost)
    for branch in space.branches:
        for arm, inner in branch.arms.items():
            choices[branch.name] = arm
            _improve(inner, choices, cost, matters)
        choices[branch.name] = _best(choices, branch.name, branch.domain.values, cost)


def _best(
    choices: Mapping[str, Any], name: str, candidates: Sequence[Any], cost: Callable[[Mapping[str, Any]], float]
) -> Any:
    """The candidate with the highest cost, the others as they are chosen now."""
    costs = [cost({**choices, name: candidate}) for candidate in candidates]
    return candidates[costs.index(max(costs))]


def _own(space: Space) -> list[tuple[str, Domain]]:
    return [*((axis.name, axis.domain) for axis in space.axes), *((group.axis, group.domain) for group in space.groups)]


def _candidates(domain: Domain) -> Sequence[Any]:
    """Both ends of a range, all values of a choice; of many numbers the smallest and the largest."""
    if isinstance(domain, Interval):
        return (domain.snap(domain.low), domain.snap(domain.high))
    values = domain.values
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(values) > MOST_VALUES and len(numbers) == len(values):
        return (min(numbers), max(numbers))
    return values
