"""The greedy soup: ingredients are added best first, and each is kept that does not make the held-out score worse.

Source: Wortsman et al., "Model soups" (ICML 2022, arXiv 2203.05482), recipe 1. The paper's θ_S, the mean of the
ingredients taken so far, is a `Blend` of equal weights here; its ValAcc is `score`, in either direction. Left out: the
logit ensemble. The authors' code accepts only a strictly better score where the paper accepts an equal one too: `tie`
chooses, the paper's way by default. With `merge` the ingredients are not averaged but merged by another method.

Example:
    >>> GreedySoup().mix(ingredients, bench).mixture
    (('0003-1f2e3d4c/seed-0', 0.5), ('0001-aabbccdd/seed-0', 0.5))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from evaluators.base import Direction
from pipelines.soups.base import AVERAGE, Bench, Blend, Ingredient, SoupEvent, method_text, worse
from pipelines.soups.recipes.gate import Gate
from pipelines.soups.recipes.ranking import evenly, rank, refusal, tell_left_out

Tie = Literal["accept", "reject"]


class GreedySoup:
    """Adds ingredients one by one, best first.

    Args:
        tie: `accept` takes an ingredient that leaves the score equal (the paper), `reject` only a strictly better one.
        merge: the merge method, canonical JSON.
        seed: of methods that draw.
        gate: leaves out runs behind a barrier.
    """

    def __init__(self, tie: Tie = "accept", merge: str = AVERAGE, seed: int = 0, gate: Gate | None = None) -> None:
        self.tie: Tie = tie
        self.merge, self.seed, self.gate = merge, seed, gate or Gate()

    @classmethod
    def of(cls, config: Any) -> GreedySoup:
        """As the file says."""
        return cls(config.tie, method_text(config.merge.model_dump(mode="json")), config.seed, Gate.of(config))

    def mix(self, ingredients: Sequence[Ingredient], bench: Bench) -> Blend:
        """The blend whose score no ingredient, tried in the order of its own score, could hold or raise.

        Raises:
            NothingScored: if no ingredient could be scored.
            ValueError: if there is no ingredient.
        """
        ranking = rank(ingredients, bench)
        taken, current = [ranking.runs[0]], ranking.scores[0]
        bench.tell(SoupEvent(taken[0], "start", current.value, current.value, "best single"))
        for place in range(1, len(ranking.runs)):
            run, before, soup = ranking.runs[place], current.value, self.blend(taken)
            ahead = self._ahead(taken, ranking.runs[place + 1 :])
            refused = self.gate.refuses(bench, soup, run, {self.blend([*taken, run]): soup, **ahead})
            if refused is not None:
                bench.tell(SoupEvent(run, "reject", ranking.scores[place].value, before, refused))
                continue
            score = bench.score(self.blend([*taken, run]), ahead, against=soup)
            if takes(score.value, before, ranking.direction, self.tie):
                taken.append(run)
                current = score
                reason = "the score is equal" if score.value == before else "the score is better"
                bench.tell(SoupEvent(run, "accept", score.value, score.value, reason))
            else:
                bench.tell(SoupEvent(run, "reject", score.value, before, refusal(score.value, before)))
            assert not worse(current.value, before, ranking.direction), (
                f"best must never get worse, but went from {before} to {current.value}"
            )
        tell_left_out(ranking, current.value, bench)
        return self.blend(taken)

    def _ahead(self, taken: Sequence[str], runs: Sequence[str]) -> dict[Blend, Blend | None]:
        """What will be asked about runs while nothing more is taken."""
        soup = self.blend(taken)
        asked: dict[Blend, Blend | None] = {}
        for run in runs:
            for knot in self.gate.knots(soup, run):
                asked.setdefault(knot, None)
            asked.setdefault(self.blend([*taken, run]), soup)
        return asked

    def blend(self, runs: Sequence[str]) -> Blend:
        """What is tried of some runs."""
        return evenly(runs, self.merge, self.seed)


def takes(value: float, best: float, direction: Direction, tie: Tie) -> bool:
    """Whether a score lets a change in."""
    if not math.isfinite(value):
        return False
    return worse(best, value, direction) or (value == best and tie == "accept")
