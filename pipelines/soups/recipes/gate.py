"""The gate before an average: a run behind a barrier on the straight path is left out.

Two checkpoints may be averaged where the loss stays low on the straight line between them (linear mode connectivity);
runs that began at one model mostly are, runs with too large a learning rate often are not. The path is sampled where it
matters (`path.py`), with the standard error of the rise as the tolerance, so that noise is no barrier. The path is that of
averages, whatever the soup's merge method is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from evaluators.base import Score
from pipelines.soups.base import NOTHING, Ahead, Bench, Blend, Mixture, SoupEvent, SoupNote
from pipelines.soups.recipes.path import FIRST, Path, walk_path
from pipelines.soups.recipes.ranking import Ranking, alone


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
        best = alone(inside[0])
        for place, (run, single) in enumerate(zip(ranking.runs[1:], ranking.scores[1:], strict=True), start=2):
            ahead = dict.fromkeys(knot for later in ranking.runs[place:] for knot in self.knots(best, later))
            refused = self.refuses(bench, best, run, ahead)
            if refused is None:
                inside.append(run)
            else:
                bench.tell(SoupEvent(run, "reject", single.value, ranking.best, refused))
        return inside

    def knots(self, soup: Blend, run: str) -> list[Blend]:
        """What `refuses` scores first, whatever comes out."""
        return [Blend(between(soup.mixture, run, alpha)) for alpha in FIRST] if self.barrier else []

    def refuses(self, bench: Bench, soup: Blend, run: str, ahead: Ahead = NOTHING) -> str | None:
        """Why a run is left out, or None.

        Args:
            bench: who scores.
            soup: what the run would be added to.
            run: the run.
            ahead: what will be asked next, if it passes.
        """
        if not self.barrier:
            return None
        path = self._walk(bench, soup if soup.averaged else Blend(soup.mixture), run, ahead)
        knots = [[alpha, number(value)] for alpha, value in path.knots]
        body = {"run": run, "from": list(soup.runs), "knots": knots, "barrier": number(path.barrier), "at": path.at}
        bench.tell(SoupNote("path", {**body, "se": number(path.se), "allowed": path.allowed, "passes": path.passes}))
        if path.passes:
            return None
        if not math.isfinite(path.barrier):
            return f"behind a barrier: nothing could be scored at {path.at:.2f} of the way"
        error = f" ± {path.se:.2g}" if math.isfinite(path.se) else ""
        return f"behind a barrier: {path.barrier:.3g}{error} worse than the straight line at {path.at:.2f} of the way"

    def _walk(self, bench: Bench, soup: Blend, run: str, ahead: Ahead) -> Path:
        """The path from an average to a run; the points that it surely has are asked for together."""
        other, first = alone(run), self.knots(soup, run)

        def at(alpha: float) -> Blend:
            return Blend(between(soup.mixture, run, alpha))

        def score(alpha: float) -> Score:
            knot = at(alpha)
            rest = first[first.index(knot) + 1 :] if knot in first else []
            return bench.score(knot, {**dict.fromkeys(rest), **ahead}, may_fail=True)

        def rise(alpha: float) -> tuple[float, float]:
            return bench.contrast([(1.0, at(alpha)), (alpha - 1.0, soup), (-alpha, other)])

        ends = bench.score(soup), bench.score(other)
        return walk_path(score, ends, rise=rise, max_drop=self.max_drop, evaluations=self.evaluations)


def number(value: float) -> float | None:
    """As JSON holds it: None where it is not finite."""
    return value if math.isfinite(value) else None


def between(inside: Mixture, run: str, alpha: float) -> Mixture:
    """(1 - alpha) of an average and alpha of one more run."""
    if alpha == 0.0:
        return inside
    if alpha == 1.0:
        return ((run, 1.0),)
    return (*((name, weight * (1.0 - alpha)) for name, weight in inside), (run, alpha))
