"""Which axes a method's own model covers; TPE draws the others. Pure, so that `stockpot check` can say it.

* `gp`: the axes that every configuration has; arms and what only an arm has go to TPE.
* `cmaes`: of these the numbers; choices go to TPE as well.
* `nsga2`: the axes that every configuration has, and the arms; what only an arm has goes to TPE.
"""

from __future__ import annotations

import math

from sweeps.space import Domain, Interval, Space

IN_PARTS = frozenset({"gp", "cmaes", "nsga2"})
"""Methods with a model of their own for some axes."""

GENERATIONS = 10
"""With fewer, evolution finds little more than random draws do (`benchmarks/searchers.py`: Branin, ZDT1)."""


def default_population(ranges: int) -> int:
    """Trials a generation of CMA-ES over this many ranges (Hansen 2016, table 1)."""
    return 4 + math.floor(3 * math.log(ranges))


def axes_of(space: Space) -> dict[str, Domain]:
    """Axis name -> domain of everything that is drawn, groups, arms and arms' own included."""
    found: dict[str, Domain] = {axis.name: axis.domain for axis in space.axes}
    found |= {group.axis: group.domain for group in space.groups}
    for branch in space.branches:
        found[branch.name] = branch.domain
        for arm in branch.arms.values():
            found |= axes_of(arm)
    return found


def covered(method: str, space: Space) -> tuple[str, ...]:
    """Names of the axes that the method's own model covers, in the file's order; an axis with one value has none."""
    common: dict[str, Domain] = {axis.name: axis.domain for axis in space.axes}
    if method == "cmaes":
        common = {name: domain for name, domain in common.items() if isinstance(domain, Interval)}
    else:
        common |= {group.axis: group.domain for group in space.groups}
    if method == "nsga2":
        common |= {branch.name: branch.domain for branch in space.branches}
    return tuple(name for name, domain in common.items() if domain.size != 1)


def division(method: str, space: Space) -> dict[str, tuple[str, ...]] | None:
    """{`gp`: names, `tpe`: names} for a method in parts, else None."""
    if method not in IN_PARTS:
        return None
    own = covered(method, space)
    return {method: own, "tpe": tuple(name for name in axes_of(space) if name not in own)}
