"""The pruned soup: begin with all, take ingredients out worst first, and leave out each whose absence is no loss.

Source: Dansereau et al., "Model soups to increase inference without increasing compute time" (arXiv 2301.10092), where it
beat uniform and greedy soups of vision transformers. Left out: its second pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipelines.soups.base import AVERAGE, Bench, Blend, Ingredient, SoupEvent, method_text
from pipelines.soups.recipes.gate import Gate
from pipelines.soups.recipes.greedy import Tie, takes
from pipelines.soups.recipes.ranking import evenly, rank, tell_left_out


class PrunedSoup:
    """Takes ingredients out one by one, worst first.

    Args:
        tie: `accept` takes one out that leaves the score equal, `reject` only where the score gets better.
        merge: the merge method, canonical JSON.
        seed: of methods that draw.
        gate: leaves out runs behind a barrier.
    """

    def __init__(self, tie: Tie = "accept", merge: str = AVERAGE, seed: int = 0, gate: Gate | None = None) -> None:
        self.tie: Tie = tie
        self.merge, self.seed, self.gate = merge, seed, gate or Gate()

    @classmethod
    def of(cls, config: Any) -> PrunedSoup:
        """As the file says."""
        return cls(config.tie, method_text(config.merge.model_dump(mode="json")), config.seed, Gate.of(config))

    def mix(self, ingredients: Sequence[Ingredient], bench: Bench) -> Blend:
        """The blend from which nothing, tried from the worst on, could be taken without loss.

        Raises:
            NothingScored: if no ingredient could be scored.
            ValueError: if there is no ingredient.
        """
        ranking = rank(ingredients, bench)
        inside = self.gate.passing(ranking, bench)
        best = bench.score(self.blend(inside)).value
        walk = list(reversed(inside))
        for place, run in enumerate(walk):
            rest = [other for other in inside if other != run]
            if not rest:
                bench.tell(SoupEvent(run, "accept", best, best, "the last one left"))
                continue
            ahead = [self.blend([o for o in inside if o != later]) for later in walk[place + 1 :]]
            rival = self.blend(inside)
            value = bench.score(self.blend(rest), dict.fromkeys(ahead, rival), against=rival).value
            if takes(value, best, ranking.direction, self.tie) or not math.isfinite(best):
                inside = rest
                reason = "without it the score is " + ("equal" if value == best else "better")
                best = value
                bench.tell(SoupEvent(run, "reject", value, best, reason))
            else:
                bench.tell(SoupEvent(run, "accept", value, best, "without it the score is worse"))
        tell_left_out(ranking, best, bench)
        return self.blend(inside)

    def blend(self, runs: Sequence[str]) -> Blend:
        """What is tried of some runs."""
        return evenly(runs, self.merge, self.seed)
