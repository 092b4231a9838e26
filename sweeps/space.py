"""The search space: domains by dotted path, branches (`choose`) and paired values (`together`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Draw = Callable[[str, "Domain"], Any]
"""`draw(axis name, domain) -> value`: how searchers sample, define-by-run."""


@dataclass(frozen=True)
class Choice:
    """One of `values` (JSON values, lists and mappings too)."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Interval:
    """A number in [low, high]; `log` samples its logarithm evenly, `step` quantises, `integer` rounds to whole numbers."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False


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


@dataclass(frozen=True)
class Branch:
    """`path: {choose: {arm: {...}}}`: the arm becomes `<path>.type`, and only its own space opens."""

    path: str
    arms: Mapping[str, Space]


@dataclass(frozen=True)
class Space:
    """What `parameters:` says. Immutable; order is the file's."""

    axes: tuple[Axis, ...] = ()
    groups: tuple[Group, ...] = ()
    branches: tuple[Branch, ...] = ()

    def sample(self, draw: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
        """One configuration: ({dotted path: value}, {axis name: value as drawn}). A group is drawn by its row's index."""
        raise NotImplementedError

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every set of choices (`{axis name: value}`), first axis slowest. Raises ValueError on a continuous axis."""
        raise NotImplementedError

    def replay(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters ({dotted path: value}) of recorded choices."""
        return self.sample(lambda name, domain: choices[name])[0]

    @property
    def size(self) -> int | None:
        """Configurations in the grid; None when an axis is continuous."""
        raise NotImplementedError
