"""Asynchronous successive halving, by promotion (Li et al. 2020, arXiv 1810.05934, algorithm 2).

Rungs are min·eta^k below the total, plus the total. Whenever a slot is free, the highest rung that has a trial to promote
gives its best one; only then does a new trial start. A trial is promotable at a rung when it waits there and is among the
best floor(n/eta) of the rung's n results, as in the paper, so that a trial promoted early never bars a better one that
came later. Beyond the paper:

* A rung is *closed* when nothing can arrive there any more: no trial to come, none on its way to it, none promotable below.
  A closed rung promotes until max(1, finalists) trials have gone beyond it and did not fail, so that a small sweep has a
  winner, and a finalist that fails is replaced by the next best.
* NaN-safe: a trial that diverged counts among the n (it was tried and is worse than all that were not), is never promoted,
  and keeps the place of a rung that it was promoted from. One that failed for another reason gives its place back.
* Ties go to the trial that was suggested first.
* With several metrics a rung is ranked front by front (non-dominated sorting), as in MO-ASHA (Schmucker et al. 2021, arXiv
  2106.12639): within a front the trials that have gone on keep their place, and the next is the one farthest from those
  before it (`sweeps.pareto.Ranking`). Where nobody has gone on yet, the best on the primary metric is first.

Left out: the paper's parameter s (minimum early-stopping rate): choose `min` instead; brackets.

Example:
    >>> ASHAScheduler((1, 3, 9), eta=3, finalists=1).expected(9)
    (9, 3, 1)
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sweeps.pareto import Ranking
from sweeps.schedulers.base import Decision, RunView, SweepView
from sweeps.trial import Run

if TYPE_CHECKING:
    from sweeps.spec import ASHAConfig


@dataclass
class _Rung:
    """A rung's counts and ranking (value, order, run), and who of it may be promoted. With several metrics the ranking is made anew from `members`."""

    results: int = 0
    ranked: list[tuple[float, int, RunView]] = field(default_factory=list)
    ready: list[tuple[float, int]] = field(default_factory=list)
    beyond: int = 0
    coming: int = 0
    members: dict[int, RunView] = field(default_factory=dict)
    fronts: tuple[list[RunView], Ranking] | None = None

    def ranking(self, milestone: int) -> tuple[list[RunView], Ranking]:
        """The members and their order, front by front; made when it is asked for, and kept until a member changes."""
        if self.fronts is None:
            runs = [self.members[order] for order in sorted(self.members)]
            points, kept = [run.vectors[milestone] for run in runs], [run.target > milestone for run in runs]
            self.fronts = runs, Ranking(points, kept)
        return self.fronts

    def first_ready(self, milestone: int) -> int | None:
        """Place in the ranking of the best run that waits here."""
        if self.members:
            runs, ranking = self.ranking(milestone)
            return ranking.first([_waits(run, milestone) for run in runs])
        return bisect_left(self.ranked, self.ready[0]) if self.ready else None

    def at(self, place: int, milestone: int) -> Run:
        """The run at a place in the ranking."""
        if self.members:
            runs, ranking = self.ranking(milestone)
            return runs[ranking[place]].run
        return self.ranked[place][2].run

    def place(self, run: RunView, milestone: int) -> int | None:
        """A run's place in the ranking; None where it has none, as it diverged."""
        value = run.values.get(milestone, math.nan)
        if not math.isfinite(value):
            return None
        if self.members:
            runs, ranking = self.ranking(milestone)
            index = bisect_left(runs, run.order, key=lambda one: one.order)
            return ranking.place(index) if index < len(runs) and runs[index].order == run.order else None
        return bisect_left(self.ranked, (value, run.order))


class _Table:
    """The rungs of the view it was last shown. Only runs that changed since are looked at; nothing else is kept."""

    def __init__(self, milestones: tuple[int, ...]) -> None:
        self._milestones = milestones
        self._runs: list[RunView] = []
        self._places: dict[Run, int] = {}
        self._changes: Sequence[int] | None = None
        self._seen = 0
        self.rungs = [_Rung() for _ in milestones]

    def show(self, view: SweepView) -> list[_Rung]:
        """The view's rungs."""
        if len(view.runs) < len(self._runs):
            self._runs, self._places, self.rungs = [], {}, [_Rung() for _ in self._milestones]
        known = len(self._runs)
        changed = [i for i in self._to_look_at(view, known) if self._runs[i] is not view.runs[i]]
        for i in changed:
            self._count(self._runs[i], -1)
        for i in changed:
            self._runs[i] = view.runs[i]
            self._count(view.runs[i], 1)
        for run in view.runs[known:]:
            self._places[run.run] = len(self._runs)
            self._runs.append(run)
            self._count(run, 1)
        return self.rungs

    def view_of(self, run: Run) -> RunView:
        """A run as the view has it."""
        return self._runs[self._places[run]]

    def _to_look_at(self, view: SweepView, known: int) -> Iterable[int]:
        """Places below `known` that may have changed since the last view: all of them where another list of changes comes."""
        before, seen = self._changes, self._seen
        self._changes, self._seen = view.changes, len(view.changes or ())
        if view.changes is None or view.changes is not before:
            return range(known)
        return {place for place in view.changes[seen:] if place < known}

    def _count(self, run: RunView, sign: int) -> None:
        goal = bisect_left(self._milestones, run.target)
        failed = run.state == "failed"
        lost = failed and not any(math.isnan(value) for value in run.values.values())
        for k, milestone in enumerate(self._milestones[: goal + 1]):
            rung = self.rungs[k]
            if k < goal and not failed:
                rung.beyond += sign
            value = run.values.get(milestone)
            if value is None:
                rung.coming += sign if k == goal and run.state == "running" else 0
                continue
            rung.results += sign
            if not math.isfinite(value) or lost:
                continue
            if milestone in run.vectors:
                rung.fronts = None
                if sign > 0:
                    rung.members[run.order] = run
                else:
                    del rung.members[run.order]
            else:
                key = (value, run.order)
                place = bisect_left(rung.ranked, key)
                if sign > 0:
                    rung.ranked.insert(place, (*key, run))
                else:
                    del rung.ranked[place]
                if _waits(run, milestone):
                    place = bisect_left(rung.ready, key)
                    if sign > 0:
                        rung.ready.insert(place, key)
                    else:
                        del rung.ready[place]


def _waits(run: RunView, milestone: int) -> bool:
    """Whether a run waits for its promotion at a milestone."""
    return run.state == "waiting" and run.target == milestone


class ASHAScheduler:
    """Every decision is made from the view alone; between calls it only remembers its last table of the rungs.

    Args:
        milestones: the rungs, ascending, the total last.
        eta: one in eta goes on (the paper's η).
        finalists: trials guaranteed to reach the total.

    Raises:
        ValueError: if the milestones do not ascend, or eta or finalists is too small.
    """

    left_behind = "not promoted at {}"

    def __init__(self, milestones: tuple[int, ...], eta: int = 3, finalists: int = 1) -> None:
        if not milestones or list(milestones) != sorted(set(milestones)) or milestones[0] < 1:
            raise ValueError(f"milestones must ascend from at least 1, but got {milestones}")
        if eta < 2 or finalists < 1:
            raise ValueError(f"eta must be at least 2 and finalists at least 1, but got {eta} and {finalists}")
        self.milestones = milestones
        self.eta = eta
        self.finalists = finalists
        self._table = _Table(milestones)

    @classmethod
    def of(cls, config: ASHAConfig, milestones: tuple[int, ...], finalists: int) -> ASHAScheduler:
        """From the sweep file's section."""
        return cls(milestones, config.eta, finalists)

    def on_report(self, run: Run, resource: int, view: SweepView) -> list[Decision]:
        """Goes on where the reporting run is the one that would be leased next; else it ends here and may be promoted later."""
        if resource >= self.milestones[-1]:
            return [Decision(run, "stop", resource, "reached the total")]
        if resource not in self.milestones:
            return [Decision(run, "continue", resource, "between rungs")]
        rungs = self._table.show(view)
        chosen = self._choose(rungs, view)
        rung = rungs[self.milestones.index(resource)]
        if chosen is not None and chosen.run == run:
            return [Decision(run, "continue", resource, chosen.reason)]
        place = rung.place(self._table.view_of(run), resource)
        reason = "diverged" if place is None else self._place(place, rung, resource)
        return [Decision(run, "stop", resource, reason)]

    def next_lease(self, view: SweepView) -> Decision | None:
        """The best promotable run of the highest rung that has one."""
        return self._choose(self._table.show(view), view)

    def expected(self, trials: int) -> tuple[int, ...]:
        """How many of so many trials reach each milestone when nothing fails."""
        runs = [trials]
        for _ in self.milestones[1:]:
            runs.append(min(runs[-1], max(1, runs[-1] // self.eta, self.finalists)))
        return tuple(runs)

    def _choose(self, rungs: list[_Rung], view: SweepView) -> Decision | None:
        chosen: Decision | None = None
        closed = not view.more_to_come
        for milestone, rung in zip(self.milestones[:-1], rungs, strict=False):
            closed = closed and rung.coming == 0
            place = self._promotable(rung, milestone, closed)
            if place is not None:
                closed = False
                chosen = Decision(rung.at(place, milestone), "promote", milestone, self._place(place, rung, milestone))
        return chosen

    def _promotable(self, rung: _Rung, milestone: int, closed: bool) -> int | None:
        """Place in the rung's ranking of the run to promote, or None."""
        wanted = closed and rung.beyond < max(1, self.finalists)
        place = rung.first_ready(milestone)
        return place if place is not None and (wanted or place < rung.results // self.eta) else None

    def _place(self, place: int, rung: _Rung, milestone: int) -> str:
        return f"{place + 1} of {rung.results} at {milestone}"
