"""Uniform and greedy soups as pure decisions over scores.

Source: Wortsman et al., "Model soups" (ICML 2022, arXiv 2203.05482), recipe 1. The paper's θ_S, the mean of the
ingredients taken so far, is a `Mixture` of equal weights here; its ValAcc is `score`, in either direction. Left out: learned
soups (they need gradients) and the logit ensemble. The authors' code accepts only a strictly better score where the
paper accepts an equal one too: `tie` chooses, the paper's way by default.

Example:
    >>> recipe = build_recipe(SoupConfig(method="greedy"))
    >>> recipe.mix(ingredients, score, on_event)
    (('0003-1f2e3d4c/seed-0', 0.5), ('0001-aabbccdd/seed-0', 0.5))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Literal, Protocol

from evaluators.base import Direction, Score
from pipelines.soups import SOUPS
from pipelines.soups.base import Ingredient, Mixture, Recipe, SoupEvent, uniform

Tie = Literal["accept", "reject"]
Scorer = Callable[[Mixture], Score]
Listener = Callable[[SoupEvent], None]


class NothingScored(ValueError):
    """No ingredient has a finite score of its own, so there is nothing to begin with."""


class SoupConfigLike(Protocol):
    """What `build_recipe` reads of `sweeps.spec.SoupConfig` (pipelines do not import sweeps)."""

    @property
    def method(self) -> str:
        """A name of `pipelines.soups.SOUPS`."""
        ...

    @property
    def tie(self) -> Tie:
        """Whether an equal score lets an ingredient in."""
        ...


def build_recipe(config: SoupConfigLike) -> Recipe:
    """The recipe that `soup:` asks for.

    Raises:
        KeyError: if the method is not in `pipelines.soups.SOUPS`; the door has checked it before.
    """
    module, _, name = SOUPS[config.method].partition(":")
    recipe: Recipe = getattr(import_module(module), name)(tie=config.tie)
    return recipe


class UniformSoup:
    """The plain mean of every ingredient that could be scored alone.

    Each single is scored first, so that the table shows what went in and a broken one (NaN) stays out; then the mean.
    """

    def __init__(self, tie: Tie = "accept") -> None:
        self.tie = tie

    def mix(self, ingredients: Sequence[Ingredient], score: Scorer, on_event: Listener) -> Mixture:
        """The mean of all ingredients with a finite score.

        Raises:
            NothingScored: if no ingredient could be scored.
            ValueError: if there is no ingredient.
        """
        ranked, broken = _rank(ingredients, score)
        best = ranked[0][1].value
        for position, (ingredient, single) in enumerate(ranked):
            decision: Literal["start", "accept"] = "start" if position == 0 else "accept"
            on_event(SoupEvent(ingredient.run, decision, single.value, best, "a uniform soup takes every ingredient"))
        _reject_broken(broken, best, on_event)
        mixture = uniform([ingredient.run for ingredient, _ in ranked])
        score(mixture)
        return mixture


class GreedySoup:
    """Adds ingredients one by one, best first, and keeps each that does not make the held-out score worse.

    Args:
        tie: `accept` takes an ingredient that leaves the score equal (the paper), `reject` only a strictly better one.
    """

    def __init__(self, tie: Tie = "accept") -> None:
        self.tie = tie

    def mix(self, ingredients: Sequence[Ingredient], score: Scorer, on_event: Listener) -> Mixture:
        """The mixture whose score no ingredient, tried in the order of its own score, could hold or raise.

        Raises:
            NothingScored: if no ingredient could be scored.
            ValueError: if there is no ingredient.
        """
        ranked, broken = _rank(ingredients, score)
        first, single = ranked[0]
        direction, best, taken = single.direction, single.value, [first.run]
        on_event(SoupEvent(first.run, "start", best, best, "best single"))
        for ingredient, _ in ranked[1:]:
            value = score(uniform([*taken, ingredient.run])).value
            before = best
            if self._takes(value, best, direction):
                taken.append(ingredient.run)
                best = value
                reason = "the score is equal" if value == before else "the score is better"
                on_event(SoupEvent(ingredient.run, "accept", value, best, reason))
            else:
                on_event(SoupEvent(ingredient.run, "reject", value, best, _refusal(value, best)))
            assert not _worse(best, before, direction), f"best must never get worse, but went from {before} to {best}"
        _reject_broken(broken, best, on_event)
        return uniform(taken)

    def _takes(self, value: float, best: float, direction: Direction) -> bool:
        if not math.isfinite(value):
            return False
        return _worse(best, value, direction) or (value == best and self.tie == "accept")


def _rank(
    ingredients: Sequence[Ingredient], score: Scorer
) -> tuple[list[tuple[Ingredient, Score]], list[tuple[Ingredient, Score]]]:
    """Every single scored, then sorted best first (ties: the earlier trial), the unscorable ones apart."""
    if not ingredients:
        raise ValueError("a soup needs at least one ingredient, but got none")
    singles = [(ingredient, score(((ingredient.run, 1.0),))) for ingredient in ingredients]
    scored = [pair for pair in singles if math.isfinite(pair[1].value)]
    broken = [pair for pair in singles if not math.isfinite(pair[1].value)]
    if not scored:
        raise NothingScored(f"no ingredient could be scored: {', '.join(i.run for i in ingredients)}")
    directions = {single.direction for _, single in scored}
    if len(directions) != 1:
        raise ValueError(f"all scores must have one direction, but got {sorted(directions)}")
    sign = 1.0 if directions == {"minimize"} else -1.0
    return sorted(scored, key=lambda pair: (sign * pair[1].value, pair[0].order, pair[0].run)), broken


def _reject_broken(broken: Sequence[tuple[Ingredient, Score]], best: float, on_event: Listener) -> None:
    for ingredient, single in broken:
        on_event(SoupEvent(ingredient.run, "reject", single.value, best, "could not be scored alone"))


def _worse(a: float, b: float, direction: Direction) -> bool:
    return a > b if direction == "minimize" else a < b


def _refusal(value: float, best: float) -> str:
    if not math.isfinite(value):
        return "the mixture could not be scored"
    return "the score is equal" if value == best else "the score is worse"
