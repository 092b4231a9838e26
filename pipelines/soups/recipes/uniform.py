"""Soups of all that pass: the plain mean, given weights, and the merge methods (TIES, DARE, Model Stock, ...).

Source: Wortsman et al., "Model soups" (ICML 2022, arXiv 2203.05482), the uniform soup; the merge methods name theirs in
`pipelines/soups/methods/`. Each single is scored first, so that the table shows what went in and a broken one stays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipelines.soups.base import AVERAGE, Bench, Blend, Ingredient, SoupEvent, method_text, uniform
from pipelines.soups.recipes.gate import Gate
from pipelines.soups.recipes.ranking import NothingScored, Ranking, alone, rank, tell_left_out

Weights = Sequence[float] | Mapping[str, float]


def take_all(ranking: Ranking, bench: Bench, gate: Gate, why: str, most: int | None = None) -> tuple[str, ...]:
    """The runs that no barrier parts from the best single, in their order; every decision is told.

    Args:
        ranking: singles, best first.
        bench: who scores.
        gate: leaves out runs behind a barrier.
        why: the reason told for those that are in.
        most: how many at most.
    """
    best = ranking.best
    taken: list[str] = []
    for run, single in zip(ranking.runs, ranking.scores, strict=True):
        decision: Literal["start", "accept"] = "accept" if taken else "start"
        if most is not None and len(taken) == most:
            bench.tell(SoupEvent(run, "reject", single.value, best, f"the method takes {most}"))
            continue
        refused = gate.refuses(bench, alone(ranking.runs[0]), run) if taken else None
        if refused is not None:
            bench.tell(SoupEvent(run, "reject", single.value, best, refused))
            continue
        taken.append(run)
        bench.tell(SoupEvent(run, decision, single.value, best, why))
    tell_left_out(ranking, best, bench)
    return tuple(taken)


class UniformSoup:
    """The mean of every ingredient that passes.

    Args:
        merge: the merge method, canonical JSON.
        seed: of methods that draw.
        gate: leaves out runs behind a barrier.
    """

    def __init__(self, merge: str = AVERAGE, seed: int = 0, gate: Gate | None = None) -> None:
        self.merge, self.seed, self.gate = merge, seed, gate or Gate()

    @classmethod
    def of(cls, config: Any) -> UniformSoup:
        """As the file says."""
        return cls(method_text(config.merge.model_dump(mode="json")), config.seed, Gate.of(config))

    def mix(self, ingredients: Sequence[Ingredient], bench: Bench) -> Blend:
        """The mean of all ingredients with a finite score.

        Raises:
            NothingScored: if no ingredient could be scored.
            ValueError: if there is no ingredient.
        """
        ranking = rank(ingredients, bench)
        runs = take_all(ranking, bench, self.gate, "a uniform soup takes every ingredient")
        return scored(bench, runs, Blend(uniform(runs), self.merge, seed=self.seed))


class MergedSoup:
    """A merge method over every ingredient that passes, with equal weights.

    Args:
        merge: the merge method, canonical JSON.
        name: its name.
        seed: of methods that draw.
        most: ingredients that it takes at most.
        gate: leaves out runs behind a barrier.
    """

    def __init__(self, merge: str, name: str, seed: int = 0, most: int | None = None, gate: Gate | None = None) -> None:
        self.merge, self.name, self.seed, self.most, self.gate = merge, name, seed, most, gate or Gate()

    @classmethod
    def of(cls, config: Any) -> MergedSoup:
        """As the file says."""
        method = config.merge_method
        most = 2 if config.method == "slerp" else None
        return cls(method_text(method), config.method, config.seed, most, Gate.of(config))

    def mix(self, ingredients: Sequence[Ingredient], bench: Bench) -> Blend:
        """The merge of all ingredients with a finite score.

        Raises:
            NothingScored: if no ingredient could be scored.
            ValueError: if there is no ingredient.
        """
        ranking = rank(ingredients, bench)
        runs = take_all(ranking, bench, self.gate, f"{self.name} takes what passes the checks", self.most)
        return scored(bench, runs, Blend(uniform(runs), self.merge, seed=self.seed))


class WeightedSoup:
    """The average with given weights.

    Args:
        weights: numbers for the best single, the next, and so on; or trial id (or its number) -> number. Who has none
            stays out. They are divided by their sum.
        merge: the merge method, canonical JSON.
        seed: of methods that draw.
        gate: leaves out runs behind a barrier.
    """

    def __init__(self, weights: Weights, merge: str = AVERAGE, seed: int = 0, gate: Gate | None = None) -> None:
        self.weights, self.merge, self.seed, self.gate = weights, merge, seed, gate or Gate()

    @classmethod
    def of(cls, config: Any) -> WeightedSoup:
        """As the file says."""
        merge = method_text(config.merge.model_dump(mode="json"))
        return cls(config.weights, merge, config.seed, Gate.of(config))

    def mix(self, ingredients: Sequence[Ingredient], bench: Bench) -> Blend:
        """The weighted average of the ingredients that have a weight.

        Raises:
            NothingScored: if no ingredient could be scored, or none has a weight.
            ValueError: if there is no ingredient.
        """
        ranking = rank(ingredients, bench)
        given = dict(zip(ranking.runs, self._of(ranking.runs), strict=True))
        if not any(given.values()):
            raise NothingScored(f"none of the runs has a weight: {', '.join(ranking.runs)}")
        best = ranking.best
        first = next(run for run in ranking.runs if given[run])
        taken: list[str] = []
        for run, single in zip(ranking.runs, ranking.scores, strict=True):
            refused = None if given[run] else "has no weight"
            if refused is None and run != first:
                refused = self.gate.refuses(bench, alone(first), run)
            if refused is None:
                taken.append(run)
                reason = f"given the weight {given[run]:g}"
                bench.tell(SoupEvent(run, "start" if run == first else "accept", single.value, best, reason))
            else:
                bench.tell(SoupEvent(run, "reject", single.value, best, refused))
        tell_left_out(ranking, best, bench)
        total = sum(given[run] for run in taken)
        mixture = tuple((run, given[run] / total) for run in taken)
        return scored(bench, tuple(taken), Blend(mixture, self.merge, seed=self.seed))

    def _of(self, runs: Sequence[str]) -> list[float]:
        if isinstance(self.weights, Mapping):
            return [float(self.weights.get(name(run, self.weights), 0.0)) for run in runs]
        given = [float(weight) for weight in self.weights][: len(runs)]
        return given + [0.0] * (len(runs) - len(given))


def name(run: str, weights: Mapping[str, float]) -> str:
    """The key of a run among given weights: its id, its trial, or its trial's number."""
    trial = run.partition("/")[0]
    forms = (run, trial, trial.partition("-")[0], str(int(trial[:4])) if trial[:4].isdigit() else trial)
    return next((form for form in forms if form in weights), run)


def scored(bench: Bench, runs: Sequence[str], blend: Blend) -> Blend:
    """The blend with its score asked for; one run left is that run itself."""
    blend = blend if len(runs) > 1 else alone(runs[0])
    bench.score(blend)
    return blend
