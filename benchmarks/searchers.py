"""What each method finds with few trials, against random search: `python benchmarks/searchers.py [--trials 40,160]`.

Functions with known optima, each method with the defaults of a sweep file, one trial at a time, medians and quartiles
over seeds. Distance is best value minus the optimum; for two metrics, the share of the front's hypervolume.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweeps.searchers.base import Searcher, Told
from sweeps.searchers.basic import RandomSearcher
from sweeps.searchers.cmaes import CMAESSearcher
from sweeps.searchers.gp import GPSearcher
from sweeps.searchers.nsga2 import NSGA2Searcher
from sweeps.searchers.optuna import TPESearcher
from sweeps.space import Axis, Branch, Interval, Space

SEEDS = 20
SLOW = 80
"""Beyond so many trials a Gaussian process costs more than the comparison is worth."""

Point = Mapping[str, Any]
Make = Callable[[Space, int, tuple[str, ...]], Searcher]


def _axis(name: str, low: float, high: float, **more: bool) -> Axis:
    return Axis(name, name, Interval(low, high, **more))


BOWL = Space((_axis("lr", 1e-5, 1e-1, log=True), _axis("x", -1, 1), _axis("y", 0, 4), _axis("n", 1, 16, integer=True)))
PLANE = Space((_axis("x", -5, 10), _axis("y", 0, 15)))
ARMS = {
    "a": Space((Axis("opt.a.m", "opt.m", Interval(0.0, 1.0)),)),
    "b": Space((Axis("opt.b.q", "opt.q", Interval(0.0, 1.0)),)),
    "c": Space(),
}
BRANCHES = Space(BOWL.axes, (), (Branch("opt", ARMS),))
UNIT = Space(tuple(_axis(f"x{number}", 0, 1) for number in range(4)))
REFERENCE = (1.1, 11.0)


def bowl(at: Point) -> float:
    """A smooth bowl over four ranges, one of them a learning rate; optimum 0 at lr 10^-2.5."""
    return (
        (math.log10(at["lr"]) + 2.5) ** 2 / 4 + (at["x"] - 0.4) ** 2 + (at["y"] - 1) ** 2 / 4 + ((at["n"] - 5) / 8) ** 2
    )


def branin(at: Point) -> float:
    """Branin's function less its minimum, 0.397887; three optima."""
    x, y = at["x"], at["y"]
    valley = y - 5.1 / (4 * math.pi**2) * x * x + 5 / math.pi * x - 6
    return valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10 - 0.397887


def branches(at: Point) -> float:
    """The bowl, and an arm of which b with q = 0.7 is best."""
    arm = {"a": 0.3 + (at.get("opt.m", 0.0) - 0.2) ** 2, "b": (at.get("opt.q", 0.0) - 0.7) ** 2, "c": 0.6}
    return bowl(at) + arm[at["opt.type"]]


def zdt1(at: Point) -> tuple[float, float]:
    """ZDT1 in four dimensions (Zitzler, Deb, Thiele 2000); its front is 1 - sqrt(x)."""
    x = [at[f"x{number}"] for number in range(4)]
    g = 1 + 9 * sum(x[1:]) / 3
    return x[0], g * (1 - math.sqrt(x[0] / g))


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Area that points dominate, below the reference."""
    area, last = 0.0, REFERENCE[1]
    for first, second in sorted(one for one in points if one[0] < REFERENCE[0] and one[1] < REFERENCE[1]):
        if second < last:
            area += (REFERENCE[0] - first) * (last - second)
            last = second
    return area


METHODS: dict[str, Make] = {
    "random": lambda space, seed, goals: RandomSearcher(space, seed),
    "tpe": lambda space, seed, goals: TPESearcher(space, goals, seed=seed),
    "gp": lambda space, seed, goals: GPSearcher(space, goals, seed=seed),
    "cmaes": lambda space, seed, goals: CMAESSearcher(space, goals, seed=seed),
    "nsga2": lambda space, seed, goals: NSGA2Searcher(space, goals, seed=seed),
}
ONE = {"bowl": (BOWL, bowl), "branin": (PLANE, branin), "branches": (BRANCHES, branches)}


def search(
    make: Make, space: Space, goals: tuple[str, ...], score: Callable[[Point], Any], seed: int, trials: int
) -> list[Any]:
    """Scores in the order of the trials."""
    searcher, history = make(space, seed, goals), []
    for number in range(trials):
        asked = searcher.suggest(number, history)
        found = score(asked.parameters)
        history.append(Told(asked, "complete", found if isinstance(found, tuple) else (found,), 1))
    return [told.values for told in history]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--trials", default="40", help="several with commas; a run with fewer is the beginning of the longest"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--methods", default=",".join(METHODS))
    asked = parser.parse_args()
    lengths = sorted(int(part) for part in asked.trials.split(","))
    front = [(step / 10_000, 1 - math.sqrt(step / 10_000)) for step in range(10_001)]
    whole, results = hypervolume(front), {}
    for name, (space, score) in {**ONE, "zdt1": (UNIT, zdt1)}.items():
        goals = ("minimize", "minimize") if name == "zdt1" else ("minimize",)
        for method in asked.methods.split(","):
            if method == "cmaes" and name == "zdt1":
                continue
            longest = min(lengths[-1], SLOW) if method == "gp" else lengths[-1]
            began = time.perf_counter()
            runs = [search(METHODS[method], space, goals, score, seed, longest) for seed in range(asked.seeds)]
            a_trial = 1000 * (time.perf_counter() - began) / (asked.seeds * longest)
            for length in [length for length in lengths if length <= longest]:
                reached = [
                    hypervolume(run[:length]) / whole if name == "zdt1" else min(value for (value,) in run[:length])
                    for run in runs
                ]
                low, middle, high = statistics.quantiles(reached, n=4)
                results[f"{name}/{method}/{length}"] = middle
                print(
                    f"{name:9} {method:7} {length:4} trials  {middle:8.4f}  [{low:.4f}, {high:.4f}]  {a_trial:.1f} ms a trial",
                    flush=True,
                )
    print(json.dumps({"seeds": asked.seeds, **results}))


if __name__ == "__main__":
    main()
