"""The gate before an average: a run behind a barrier on the straight path is left out.

Two checkpoints may be averaged where the loss stays low on the straight line between them (linear mode connectivity);
runs that began at one model mostly are, runs with too large a learning rate often are not. The path is sampled where it
matters (`path.py`), with the evaluation's standard error as the tolerance, so that noise is no barrier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from evaluators.base import Score
from pipelines.soups.base import Bench, Blend, Mixture, SoupEvent, SoupNote
from pipelines.soups.recipes.path import walk_path
from pipelines.soups.recipes.ranking import Ranking


@dataclass(frozen=True)
class Gate:
    """Decides who may be averaged at all.

    Attributes:
        barrier: whether the path is looked at.
        max_drop: how much worse than the straight line between its ends the path may be, in the metric's unit.
        evaluations: of one path at most.
    """

    barrier: bool = False
    max_drop: float = 0.0
    evaluations: int = 15

    @classmethod
    def of(cls, config: Any) -> Gate:
        """As the file says."""
        return cls(config.barrier, config.max_drop)

    def passing(self, ranking: Ranking, bench: Bench) -> list[str]:
        """The best single, and the runs that no barrier parts from it; the others are told as rejected."""
        inside = [ranking.runs[0]]
        for run, single in zip(ranking.runs[1:], ranking.scores[1:], strict=True):
            refused = self.refuses(bench, ((inside[0], 1.0),), run, (ranking.scores[0], single))
            if refused is None:
                inside.append(run)
            else:
                bench.tell(SoupEvent(run, "reject", single.value, ranking.best, refused))
        return inside

    def refuses(self, bench: Bench, inside: Mixture, run: str, ends: tuple[Score, Score]) -> str | None:
        """Why a run is left out, or None.

        Args:
            bench: who scores.
            inside: the average that the run would be added to.
            run: the run.
            ends: scores of both.
        """
        if not self.barrier:
            return None

        def at(alpha: float) -> Score:
            return bench.score(Blend(between(inside, run, alpha)), may_fail=True)

        path = walk_path(at, ends, max_drop=self.max_drop, evaluations=self.evaluations)
        knots = [[alpha, value if math.isfinite(value) else None] for alpha, value in path.knots]
        barrier = path.barrier if math.isfinite(path.barrier) else None
        body = {"run": run, "from": [name for name, _ in inside], "knots": knots, "barrier": barrier, "at": path.at}
        bench.tell(SoupNote("path", {**body, "allowed": path.allowed, "passes": path.passes}))
        if path.passes:
            return None
        if barrier is None:
            return f"behind a barrier: nothing could be scored at {path.at:.2f} of the way"
        return f"behind a barrier: {path.barrier:.3g} worse than the straight line at {path.at:.2f} of the way"


def between(inside: Mixture, run: str, alpha: float) -> Mixture:
    """(1 - alpha) of an average and alpha of one more run."""
    if alpha == 0.0:
        return inside
    if alpha == 1.0:
        return ((run, 1.0),)
    return (*((name, weight * (1.0 - alpha)) for name, weight in inside), (run, alpha))
