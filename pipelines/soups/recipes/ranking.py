"""What all recipes begin with: ingredients checked, scored alone, put in order, and told apart by barriers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluators.base import Direction, Score
from pipelines.soups.base import Bench, Blend, Ingredient, SoupEvent, sign, uniform


class NothingScored(ValueError):
    """No ingredient has a finite score of its own, so there is nothing to begin with."""


@dataclass(frozen=True)
class Ranking:
    """Ingredients by their own score.

    Attributes:
        runs: best first; among equals the earlier trial.
        scores: their scores alone.
        left_out: (run, its score alone or NaN, why), of those that can't be in any soup.
        direction: which way is better.
    """

    runs: tuple[str, ...]
    scores: tuple[Score, ...]
    left_out: tuple[tuple[str, float, str], ...]
    direction: Direction

    @property
    def best(self) -> float:
        """The score of the best single."""
        return self.scores[0].value


def rank(ingredients: Sequence[Ingredient], bench: Bench) -> Ranking:
    """Check every ingredient, score the sound ones alone, sort them best first.

    Raises:
        NothingScored: if no ingredient could be scored.
        ValueError: if there is no ingredient.
    """
    if not ingredients:
        raise ValueError("a soup needs at least one ingredient, but got none")
    problems = bench.problems([ingredient.run for ingredient in ingredients])
    sound = [ingredient for ingredient in ingredients if ingredient.run not in problems]
    blends = [alone(ingredient.run) for ingredient in sound]
    singles = [
        (ingredient, bench.score(blend, dict.fromkeys(blends[place + 1 :])))
        for place, (ingredient, blend) in enumerate(zip(sound, blends, strict=True))
    ]
    scored = [pair for pair in singles if math.isfinite(pair[1].value)]
    left_out = [(one.run, math.nan, problems[one.run]) for one in ingredients if one.run in problems]
    left_out += [(i.run, s.value, "could not be scored alone") for i, s in singles if not math.isfinite(s.value)]
    if not scored:
        said = "; ".join(f"{run}: {why}" for run, _, why in left_out if run in problems)
        names = ", ".join(ingredient.run for ingredient in ingredients)
        raise NothingScored(f"no ingredient could be scored: {names}" + (f" ({said})" if said else ""))
    directions = {single.direction for _, single in scored}
    if len(directions) != 1:
        raise ValueError(f"all scores must have one direction, but got {sorted(directions)}")
    direction = scored[0][1].direction
    scored.sort(key=lambda pair: (sign(direction) * pair[1].value, pair[0].order, pair[0].run))
    return Ranking(
        tuple(ingredient.run for ingredient, _ in scored),
        tuple(score for _, score in scored),
        tuple(left_out),
        direction,
    )


def alone(run: str) -> Blend:
    """One ingredient itself."""
    return Blend(((run, 1.0),))


def evenly(runs: Sequence[str], merge: str, seed: int) -> Blend:
    """Some runs with equal weights, merged by a method (canonical JSON); of one run, that run itself."""
    return Blend(uniform(runs), merge, seed=seed) if len(runs) > 1 else alone(runs[0])


def tell_left_out(ranking: Ranking, best: float, bench: Bench) -> None:
    """The decisions about those that can't be in any soup."""
    for run, value, why in ranking.left_out:
        bench.tell(SoupEvent(run, "reject", value, best, why))


def refusal(value: float, best: float) -> str:
    """Why a mixture was not taken."""
    if not math.isfinite(value):
        return "the mixture could not be scored"
    return "the score is equal" if value == best else "the score is worse"
