"""Weights, and numbers of the merge method, by CMA-ES on the score.

Source: Hansen, "The CMA evolution strategy: a tutorial" (arXiv 1604.00772), as the library `cmaes` has it; Akiba et al.,
"Evolutionary optimization of model merging recipes" (arXiv 2403.13187) for the use. A blend that can't be made or scored is
told as worse than all others of its generation, so that the search goes on. There is no state to keep: the search is a
pure function of the seed and the scores, and a resumed one is told the same scores again. Left out: weights by layer.

The blend that scored best is the best of many looks at the same rows; what it is worth, `test` says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.soups.base import (
    AVERAGE,
    Bench,
    Blend,
    Ingredient,
    Mixture,
    SoupEvent,
    SoupNote,
    method_text,
    sign,
    uniform,
)
from pipelines.soups.recipes.gate import Gate
from pipelines.soups.recipes.ranking import Ranking, alone, rank, tell_left_out

RANGES = {"density": (0.05, 1.0), "scale": (0.2, 1.5)}
"""Numbers that are searched beside the weights: of a method that has a density, and of every method but the average."""
ZERO = 0.01
"""A smaller share of the soup counts as none."""


class SearchSoup:
    """Searches weights over every ingredient that passes.

    Args:
        evaluations: blends scored at most, the singles not counted.
        sigma: first standard deviation, as a share of each range.
        population: blends a generation; default 4 + 3 ln(numbers).
        merge: the merge method, canonical JSON.
        seed: of the search, and of methods that draw.
        gate: leaves out runs behind a barrier.
    """

    def __init__(
        self,
        evaluations: int = 40,
        sigma: float = 0.17,
        population: int | None = None,
        merge: str = AVERAGE,
        seed: int = 0,
        gate: Gate | None = None,
    ) -> None:
        self.evaluations, self.sigma, self.population = evaluations, sigma, population
        self.merge, self.seed, self.gate = merge, seed, gate or Gate()

    @classmethod
    def of(cls, config: Any) -> SearchSoup:
        """As the file says."""
        merge = method_text(config.merge.model_dump(mode="json"))
        return cls(config.evaluations, config.sigma, config.population, merge, config.seed, Gate.of(config))

    def mix(self, ingredients: Sequence[Ingredient], bench: Bench) -> Blend:
        """The best blend that was found, the singles among them.

        Raises:
            NothingScored: if no ingredient could be scored.
            ValueError: if there is no ingredient.
        """
        ranking = rank(ingredients, bench)
        inside = self.gate.passing(ranking, bench)
        blend, value = alone(inside[0]), ranking.best
        if len(inside) > 1:
            blend, value = self._search(inside, ranking, bench)
        weights = dict(blend.mixture)
        for place, run in enumerate(inside):
            own = ranking.scores[ranking.runs.index(run)].value
            if run in weights:
                told = f"searched weight {weights[run]:.3g}"
                bench.tell(SoupEvent(run, "accept" if place else "start", own, value, told))
            else:
                bench.tell(SoupEvent(run, "reject", own, value, "the best blend that was found has none of it"))
        tell_left_out(ranking, value, bench)
        return blend

    def _search(self, runs: Sequence[str], ranking: Ranking, bench: Bench) -> tuple[Blend, float]:
        from cmaes import CMA

        factor = sign(ranking.direction)
        ranges = _ranges(self.merge)
        low = np.array([0.0] * len(runs) + [RANGES[name][0] for name in ranges])
        high = np.array([1.0] * len(runs) + [RANGES[name][1] for name in ranges])
        start = np.array([0.5] * len(runs) + [_first(self.merge, name) for name in ranges])
        unit = (start - low) / (high - low)
        bounds = np.stack([np.zeros(len(low)), np.ones(len(low))], axis=1)
        cma = CMA(mean=unit, sigma=self.sigma, bounds=bounds, seed=self.seed, population_size=self.population)
        best, best_value, asked, failed, generation = alone(runs[0]), ranking.best, 0, 0, 0
        track: list[list[Any]] = []
        while asked < self.evaluations and not cma.should_stop():
            points = [cma.ask() for _ in range(cma.population_size)]
            blends = [self._blend(runs, ranges, low + point * (high - low)) for point in points]
            if not generation:
                blends[0], points[0] = self._blend(runs, ranges, start), unit
            values = []
            for place, blend in enumerate(blends):
                value = bench.score(blend, dict.fromkeys(blends[place + 1 :]), may_fail=True).value
                values.append(factor * value if math.isfinite(value) else math.nan)
                if math.isfinite(value) and factor * value < factor * best_value:
                    best, best_value = blend, value
            asked += len(blends)
            failed += sum(map(math.isnan, values))
            cma.tell(list(zip(points, _finite(values), strict=True)))
            generation += 1
            track.append([asked, best_value])
        body = {"evaluations": asked, "failed": failed, "generations": generation, "best": track}
        bench.tell(SoupNote("search", body))
        return best, best_value

    def _blend(self, runs: Sequence[str], ranges: Sequence[str], point: NDArray[np.float64]) -> Blend:
        """The blend that a point stands for; weights are divided by their sum, and near zeros left out."""
        mixture = _mixture(runs, point[: len(runs)])
        numbers = {name: round(float(value), 4) for name, value in zip(ranges, point[len(runs) :], strict=True)}
        method = json.loads(self.merge)
        scale = numbers.pop("scale", 1.0)
        return Blend(mixture, method_text({**method, **numbers}), scale=scale, seed=self.seed)


def _mixture(runs: Sequence[str], raw: NDArray[np.float64]) -> Mixture:
    total = float(raw.sum())
    if total <= 0:
        return uniform(runs)
    kept = [(run, float(w)) for run, w in zip(runs, raw, strict=True) if w / total >= ZERO]
    total = sum(weight for _, weight in kept)
    rounded = [(run, round(weight / total, 4)) for run, weight in kept]
    rest = 1.0 - sum(weight for _, weight in rounded[1:])
    return ((rounded[0][0], rest), *rounded[1:])


def _ranges(merge: str) -> tuple[str, ...]:
    method = json.loads(merge)
    if method["type"] == "average":
        return ()
    return ("density", "scale") if "density" in method else ("scale",)


def _first(merge: str, name: str) -> float:
    return float(json.loads(merge).get(name) or 1.0) if name != "scale" else 1.0


def _finite(values: Sequence[float]) -> list[float]:
    """Failed ones a little worse than the worst of their generation."""
    known = [value for value in values if not math.isnan(value)]
    worst = max(known, default=0.0)
    beyond = worst + max(worst - min(known, default=0.0), abs(worst) * 0.1, 1e-6)
    return [beyond if math.isnan(value) else value for value in values]
