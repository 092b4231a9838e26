"""Racing over questions: all configurations answer one block after another, and leave when they are shown not to be best.

Every configuration sees the same random order of questions, so differences are paired (`evaluators.racing`). When all that
are still in have answered a block, those that are shown not to be the best leave; the others get the next block, up to
the last question. With `finalists` so many stay in whatever the evidence; with `most` no more than so many, the best by their
means, go into the last block; with `stop_when_tied` only `finalists` go on once nobody is likely to be put out any more. Those
cut so were not shown to be worse. A race needs all its configurations from the beginning: the first block is over when no
new trial can come.

A run that fails is out; a run that is started again is waited for. Decisions depend on the items in the ledger alone, in
the order of trials, whatever the order of reports was.

Example:
    >>> RaceScheduler((20, 40, 60), alpha=0.05, finalists=1).expected(36)
    (36, 36, 36)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from evaluators.racing import Race
from sweeps.schedulers.base import Decision, RunView, SweepView
from sweeps.trial import Run

if TYPE_CHECKING:
    from sweeps.spec import RaceConfig

TIED = "not told from the best after {}, nor likely to be by the last question"


class RaceScheduler:
    """Between calls it only remembers the race so far, which the items make again.

    Args:
        milestones: numbers of questions after which the field is looked at, ascending, all questions last.
        alpha: chance of ever putting out one that is best.
        finalists: so many reach the last question.
        most: so many at most go into the last block; None for all that are still in.
        stop_when_tied: finalists alone go on when the questions left can't tell those who are still in apart.

    Raises:
        ValueError: if the milestones do not ascend, or finalists is too small.
    """

    left_behind = "shown not to be the best after {} questions"

    def __init__(
        self,
        milestones: tuple[int, ...],
        alpha: float = 0.05,
        finalists: int = 1,
        most: int | None = None,
        stop_when_tied: bool = False,
    ) -> None:
        if not milestones or list(milestones) != sorted(set(milestones)) or milestones[0] < 1:
            raise ValueError(f"milestones must ascend from at least 1, but got {milestones}")
        if finalists < 1:
            raise ValueError(f"finalists must be at least 1, but got {finalists}")
        self.milestones = milestones
        self.alpha = alpha
        self.finalists = finalists
        self.most = most
        self.stop_when_tied = stop_when_tied
        self._field: tuple[str, ...] = ()
        self._race: Race | None = None
        self._out: dict[str, int] = {}
        self._cut: dict[str, str] = {}
        self._looked = 0

    @classmethod
    def of(cls, config: RaceConfig, milestones: tuple[int, ...], finalists: int) -> RaceScheduler:
        """From the sweep file's section."""
        return cls(milestones, config.alpha, finalists, config.most, config.stop_when_tied)

    def on_report(self, run: Run, resource: int, view: SweepView) -> list[Decision]:
        """Goes on where the block is over and it is still in; the others that are out are stopped for good."""
        if resource not in self.milestones:
            return [Decision(run, "continue", resource, "between blocks")]
        rung = self._rung(view)
        others = [
            Decision(one.run, "stop", self._out[one.run.id], self._reason(one.run))
            for one in view.runs
            if one.run.id in self._out and one.run != run and one.state == "waiting"
        ]
        if resource >= self.milestones[-1]:
            return [Decision(run, "stop", resource, "reached the last question"), *others]
        if rung is None or rung < resource:
            return [Decision(run, "stop", resource, f"waits for the others at {resource}"), *others]
        if run.id in self._out:
            return [Decision(run, "stop", resource, self._reason(run)), *others]
        return [Decision(run, "continue", resource, f"still in after {resource}"), *others]

    def next_lease(self, view: SweepView) -> Decision | None:
        """The first trial that is still in and has not begun the next block."""
        rung = self._rung(view)
        if rung is None:
            return None
        for one in view.runs:
            ready = one.state == "waiting" and one.target == rung and rung in one.values
            if ready and one.run.id not in self._out:
                return Decision(one.run, "promote", rung, f"still in after {rung}")
        return None

    def expected(self, trials: int) -> tuple[int, ...]:
        """All of them: how many leave depends on the answers."""
        return (trials,) * len(self.milestones)

    def _reason(self, run: Run) -> str:
        return self._cut.get(run.id, self.left_behind).format(self._out[run.id])

    def _rung(self, view: SweepView) -> int | None:
        """The highest block below the last that all who are in have answered, the race brought up to it; None for none."""
        if view.more_to_come or not view.runs:
            return None
        field = tuple(one.run.id for one in view.runs)
        if field != self._field:
            self._field, self._race, self._out, self._cut, self._looked = field, None, {}, {}, 0
        if self._race is None:
            self._race = Race(len(field), self.alpha, self.finalists)
        over = None
        for place, milestone in enumerate(self.milestones[:-1]):
            if place < self._looked:
                over = milestone if self._answered(view, milestone) else over
                continue
            if not self._answered(view, milestone):
                break
            self._look(view, self._race, milestone)
            self._looked = place + 1
            over = milestone
        return over

    def _answered(self, view: SweepView, milestone: int) -> bool:
        """Whether all who are in have answered a block: nobody who may still come is missing."""
        return all(milestone in one.values for one in view.runs if self._in(one))

    def _in(self, one: RunView) -> bool:
        return one.run.id not in self._out and one.state != "failed"

    def _look(self, view: SweepView, race: Race, milestone: int) -> None:
        """Take in one block, and put out who is shown not to be the best.

        Who failed before the block was over is left out of it; who failed later answered it like the others, so that a
        resume comes to the same field.
        """
        before = race.asked
        items = np.full((len(view.runs), milestone - before), np.nan)
        for place, one in enumerate(view.runs):
            if one.run.id in self._out:
                continue
            if not math.isfinite(one.values.get(milestone, math.nan)):
                race.drop(place)
                continue
            found = view.items(one.run, milestone)
            if len(found) != milestone:
                raise ValueError(f"{one.run.id} must have {milestone} items at {milestone}, but got {len(found)}")
            items[place] = found[before:]
        race.ask(items)
        for place in race.eliminate():
            self._out[view.runs[place].run.id] = milestone
        if self.stop_when_tied and race.settled(self.milestones[-1] - milestone):
            self._keep_best(view, race, milestone, self.finalists, TIED)
        if self.most is not None and milestone == self.milestones[-2]:
            why = f"still in after {{}}, but not among the {self.most} best"
            self._keep_best(view, race, milestone, self.most, why)

    def _keep_best(self, view: SweepView, race: Race, milestone: int, count: int, reason: str) -> None:
        """Cut all but the best by their means of those who are still in and have answered; who failed later has, too."""
        left = [
            (one.values[milestone], place, one.run.id)
            for place, one in enumerate(view.runs)
            if one.run.id not in self._out and math.isfinite(one.values.get(milestone, math.nan))
        ]
        for _, place, run in sorted(left)[count:]:
            race.drop(place)
            self._out[run] = milestone
            self._cut[run] = reason
