"""A last step from the soup toward the base model, where that scores better.

Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT, CVPR 2022, arXiv 2109.01903): θ(s) = (1 - s)·base
+ s·soup; LITI (Rofin et al., arXiv 2210.02956) does the same to a mean. The papers fix s or read it off a curve; here it is
searched: the path is halved around its best point until its neighbours can't be told from it. A point is taken only where
it beats the soup as it is by more than the standard error of their difference on the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipelines.soups.base import Bench, Blend, Ingredient, Recipe, SoupNote, sign


class TowardBase:
    """A recipe, and then the step.

    Args:
        recipe: what makes the soup.
        evaluations: points of the path at most.
        closest: the narrowest gap between points that is still halved.
    """

    def __init__(self, recipe: Recipe, evaluations: int = 9, closest: float = 0.05) -> None:
        self.recipe, self.evaluations, self.closest = recipe, evaluations, closest

    @classmethod
    def of(cls, config: Any, recipe: Recipe) -> TowardBase:
        """As the file says."""
        given = config.toward_base
        return cls(recipe) if given is True else cls(recipe, given.evaluations, given.closest)

    def mix(self, ingredients: Sequence[Ingredient], bench: Bench) -> Blend:
        """The recipe's blend, as it is or nearer to the base.

        Raises:
            NothingScored: if no ingredient could be scored.
            ValueError: if there is no ingredient.
        """
        soup = self.recipe.mix(ingredients, bench)
        whole = bench.score(soup)
        factor = sign(whole.direction)
        known: dict[float, float] = {1.0: factor * whole.value}

        def at(scale: float) -> Blend:
            return soup if scale == 1.0 else replace(soup, scale=round(soup.scale * scale, 6))

        def look(scales: Sequence[float]) -> None:
            for place, scale in enumerate(scales):
                value = bench.score(at(scale), dict.fromkeys(at(s) for s in scales[place + 1 :]), may_fail=True).value
                known[scale] = factor * value if math.isfinite(value) else math.inf

        look([0.5, 0.75])
        while len(known) <= self.evaluations:
            points = sorted(known)
            best = min(points, key=lambda scale: (known[scale], -scale))
            place = points.index(best)
            below = points[place - 1] if place else 0.0
            above = points[place + 1] if place + 1 < len(points) else 1.0
            gaps = [(below, best), (best, above)]
            halves = [round((a + b) / 2, 6) for a, b in gaps if b - a > self.closest and (a + b) / 2 not in known]
            if not halves or self._flat(known, points, best, whole.se):
                break
            look(halves[: self.evaluations - len(known) + 1])
        best = min(known, key=lambda scale: (known[scale], -scale))
        gain, error = bench.contrast([(1.0, at(best)), (-1.0, soup)])
        taken = best < 1.0 and factor * gain < 0 and -factor * gain > (0.0 if math.isnan(error) else error)
        knots = [[scale, factor * value] for scale, value in sorted(known.items()) if math.isfinite(value)]
        body = {"knots": knots, "best": best, "taken": best if taken else 1.0, "gain": gain}
        bench.tell(SoupNote("toward_base", {**body, "se": None if math.isnan(error) else error}))
        return at(best) if taken else soup

    def _flat(self, known: dict[float, float], points: Sequence[float], best: float, se: float) -> bool:
        """Whether the best point's neighbours on both sides differ from it by less than a tenth of the score's error."""
        place = points.index(best)
        sides = [points[place - 1]] if place else []
        sides += [points[place + 1]] if place + 1 < len(points) else []
        if not math.isfinite(se) or not place or (place + 1 == len(points) and best < 1.0):
            return False
        return all(known[side] - known[best] < 0.1 * se for side in sides)
