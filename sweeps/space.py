"""The search space: domains by dotted path, branches (`choose`) and paired values (`together`).

Example:
    >>> space = Space(axes=(Axis("lora_r", "lora_r", Choice((8, 16))),))
    >>> [space.replay(choices) for choices in space.grid()]
    [{'lora_r': 8}, {'lora_r': 16}]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Draw = Callable[[str, "Domain"], Any]
"""`draw(axis name, domain) -> value`: how searchers sample, define-by-run."""

SLACK = 1e-9
"""How far past `high` a step may land by rounding, in steps."""


@dataclass(frozen=True)
class Choice:
    """One of `values` (JSON values, lists and mappings too)."""

    values: tuple[Any, ...]

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.values)

    def grid(self) -> Iterator[Any]:
        """Every value, in the file's order."""
        return iter(self.values)


@dataclass(frozen=True)
class Interval:
    """A number in [low, high].

    Attributes:
        low: the smallest value.
        high: the largest value; with a step, the largest low + k·step that does not pass it.
        log: its logarithm is sampled evenly.
        step: values are low + k·step; None for no steps (whole numbers have steps of 1 of themselves).
        integer: values are whole numbers, as Python integers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False

    @property
    def size(self) -> int | None:
        """How many values there are; None for a continuous range."""
        step = self._step
        return None if step is None else math.floor((self.high - self.low) / step + SLACK) + 1

    def grid(self) -> Iterator[float | int]:
        """Every value, ascending.

        Raises:
            ValueError: if the range is continuous.
        """
        if self.size is None:
            raise ValueError(f"a grid needs steps, but got the continuous range {self.low:g} to {self.high:g}")
        return (self._value(k) for k in range(self.size))

    def snap(self, value: float) -> float | int:
        """The legal value nearest to a number."""
        if self.size is None:
            return min(max(value, self.low), self.high)
        return self._value(min(max(round((value - self.low) / (self._step or 1.0)), 0), self.size - 1))

    def scale(self, share: float) -> float | int:
        """The legal value at a share in [0, 1] of the range: how a uniform draw becomes a value.

        Every value of a range with steps gets the same share (of the logarithm's range, with `log`).
        """
        low, high = self.low, self.high
        if self._step is not None and not self.log:
            return self._value(min(math.floor(share * (self.size or 1)), (self.size or 1) - 1))
        if not self.log:
            return low + share * (high - low)
        if self._step is not None:
            low, high = max(low - self._step / 2, low / 2), high + self._step / 2
        return self.snap(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))

    @property
    def _step(self) -> float | None:
        return self.step if self.step is not None else (1.0 if self.integer else None)

    def _value(self, k: int) -> float | int:
        step = self._step or 1.0
        if self.integer:
            return round(self.low + k * step)
        return float(f"{self.low + k * step:.12g}")


Domain = Choice | Interval


@dataclass(frozen=True)
class Axis:
    """One path with its domain. `name` is the dotted path, prefixed by `<branch>.<arm>.` inside an arm's own."""

    name: str
    path: str
    domain: Domain


@dataclass(frozen=True)
class Group:
    """Paired values: one draw sets several paths. The axis is called `together.<name>`."""

    name: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def axis(self) -> str:
        """The name it is drawn by."""
        return f"together.{self.name}"

    @property
    def domain(self) -> Choice:
        """The indexes of its rows."""
        return Choice(tuple(range(len(self.rows))))


@dataclass(frozen=True)
class Branch:
    """`path: {choose: {arm: {...}}}`: only the chosen arm's own space opens.

    Attributes:
        path: where it stands in the pipeline's configuration.
        arms: name -> its own space.
        name: what it is drawn by; the path, prefixed by `<branch>.<arm>.` inside another branch's arm.
        key: the path that takes the arm's name: `<path>.type` for a section, the path itself for a plain key.
    """

    path: str
    arms: Mapping[str, Space]
    name: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.path)
        object.__setattr__(self, "key", self.key or f"{self.path}.type")

    @property
    def domain(self) -> Choice:
        """The names of its arms."""
        return Choice(tuple(self.arms))


@dataclass(frozen=True)
class Space:
    """What `parameters:` says. Immutable; order is the file's."""

    axes: tuple[Axis, ...] = ()
    groups: tuple[Group, ...] = ()
    branches: tuple[Branch, ...] = ()

    def sample(self, draw: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
        """One configuration: ({dotted path: value}, {axis name: value as drawn}). A group is drawn by its row's index."""
        parameters: dict[str, Any] = {}
        choices: dict[str, Any] = {}
        for axis in self.axes:
            parameters[axis.path] = choices[axis.name] = draw(axis.name, axis.domain)
        for group in self.groups:
            index = choices[group.axis] = draw(group.axis, group.domain)
            parameters.update(group.rows[index])
        for branch in self.branches:
            arm = parameters[branch.key] = choices[branch.name] = draw(branch.name, branch.domain)
            inner, drawn = branch.arms[arm].sample(draw)
            parameters.update(inner)
            choices.update(drawn)
        return parameters, choices

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every set of choices (`{axis name: value}`), first axis slowest. Raises ValueError on a continuous axis."""
        factors: list[Callable[[], Iterator[dict[str, Any]]]] = [
            *(_alone(axis.name, axis.domain) for axis in self.axes),
            *(_alone(group.axis, group.domain) for group in self.groups),
            *(_arms(branch) for branch in self.branches),
        ]
        if self.size is None:
            continuous = next(iter(self.continuous()))
            raise ValueError(f"a grid needs choices, but got the continuous axis {continuous}")
        return _product(factors, {})

    def replay(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters ({dotted path: value}) of recorded choices."""
        return self.sample(lambda name, domain: choices[name])[0]

    @property
    def size(self) -> int | None:
        """Configurations in the grid; None when an axis is continuous."""
        total = 1
        for axis in self.axes:
            if axis.domain.size is None:
                return None
            total *= axis.domain.size
        for group in self.groups:
            total *= len(group.rows)
        for branch in self.branches:
            sizes = [arm.size for arm in branch.arms.values()]
            if any(size is None for size in sizes):
                return None
            total *= sum(size or 0 for size in sizes)
        return total

    def continuous(self) -> Iterator[str]:
        """Names of the axes without steps, arms' own included."""
        for axis in self.all_axes():
            if axis.domain.size is None:
                yield axis.name

    def all_axes(self) -> Iterator[Axis]:
        """Every axis, arms' own included."""
        yield from self.axes
        for branch in self.branches:
            for arm in branch.arms.values():
                yield from arm.all_axes()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every dotted path that some configuration sets, each once, in the file's order."""
        found = [axis.path for axis in self.axes]
        for group in self.groups:
            found += group.rows[0]
        for branch in self.branches:
            found.append(branch.key)
            for arm in branch.arms.values():
                found += arm.paths
        return tuple(dict.fromkeys(found))


def _alone(name: str, domain: Domain) -> Callable[[], Iterator[dict[str, Any]]]:
    return lambda: ({name: value} for value in domain.grid())


def _arms(branch: Branch) -> Callable[[], Iterator[dict[str, Any]]]:
    return lambda: itertools.chain.from_iterable(
        ({branch.name: name, **inner} for inner in arm.grid()) for name, arm in branch.arms.items()
    )


def _product(factors: list[Callable[[], Iterator[dict[str, Any]]]], chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The product without holding it: first factor slowest."""
    if not factors:
        yield dict(chosen)
        return
    for one in factors[0]():
        yield from _product(factors[1:], {**chosen, **one})
