"""When a sweep's trials will be over, with an honest range.

Work is counted in the pipeline's resource: what runs at work lack to their targets, at their own pace, and what is still to
be begun, at the mean pace so far. Of the runs that will yet arrive at a rung, one in eta goes on, as successive halving
promotes asynchronously (early arrivals that fall back later were promoted all the same), and no fewer than the plan says;
their number varies as a binomial one does. With work W on m slots and a longest chain L that no second slot can shorten, the
rest takes at least max(W/m, L) and at most W/m + (1 - 1/m)·L (Graham 1966, list scheduling): the estimate is the middle, and
the range is widened by two standard deviations of promotions and of how unlike each other runs are. Not counted: the start
of a worker, what a lost worker costs, the soup and the final step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep
    from sweeps.state import RunState, SweepState

COVER = 2.0
"""Standard deviations to each side."""
UNKNOWN_SPREAD = 0.5
"""Relative standard deviation of a run's pace while fewer than three runs were measured."""
AT_WORK = ("running", "interrupted")
ENDED = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class Estimate:
    """Seconds from now until the last trial ends.

    Attributes:
        seconds: expected.
        low: of the range.
        high: of the range.
        by: `work` done, or the budget's `hours` used up.
    """

    seconds: float
    low: float
    high: float
    by: str

    def record(self) -> dict[str, float | str]:
        """JSON-ready."""
        return {"seconds": self.seconds, "low": self.low, "high": self.high, "by": self.by}


@dataclass(frozen=True)
class Ahead:
    """Resource that is still to come.

    Attributes:
        begun: what runs at work lack to their targets.
        planned: expected of runs and promotions that have not begun.
        sd: standard deviation of `planned`.
        likely: the longest way that one run has still to go and has not begun, expected.
        possible: the same, where luck would have it.
    """

    begun: int
    planned: float
    sd: float
    likely: int
    possible: int

    @property
    def units(self) -> int:
        """All of it, expected."""
        return self.begun + round(self.planned)


def ahead(state: SweepState, loaded: LoadedSweep, rungs: Sequence[Mapping[str, Any]]) -> Ahead:
    """What is still to come.

    Args:
        state: the fold of the ledger.
        loaded: the sweep.
        rungs: the plan, as `sweeps.describe.describe` has it.
    """
    runs = list(state.runs.values())
    begun = sum(max(0, run.target - run.done) for run in runs if run.phase in AT_WORK)
    seeds = len({run.seed for run in runs}) or 1
    gone = sum(run.phase in ENDED for run in runs) + seeds * sum(
        t.duplicate_of is not None for t in state.trials.values()
    )
    share = 1 / loaded.spec.early_terminate.eta if loaded.spec.early_terminate.type == "asha" else 0.0
    more, variance, planned, spread, before, likely, possible = 0.0, 0.0, 0.0, 0.0, 0, 0, 0
    for index, rung in enumerate(rungs):
        resource = rung["resource"]
        reached = [_reported(run) >= resource or (run.phase in AT_WORK and run.target >= resource) for run in runs]
        if not index:
            arrived = sum(there and run.phase not in ENDED for there, run in zip(reached, runs, strict=True))
            more = float(max(0, rung["runs"] - arrived - gone))
            if (
                runs and not more and all(run.phase in ENDED for run in runs)
            ):  # a plan's later rungs were for fewer to leave
                return Ahead(0, 0.0, 0.0, 0, 0)
        else:
            arriving = more + sum(run.phase in AT_WORK and _reported(run) < run.target == before for run in runs)
            least = max(0, rung["runs"] - sum(reached)) if state.stop is None else 0
            more, variance = max(least, arriving * share), share * (1 - share) * arriving + share**2 * variance
        step = resource - before
        planned, spread = planned + more * step, spread + variance * step**2
        furthest = max(
            (_reported(run) for run in runs if run.phase == "waiting" and _reported(run) < resource), default=0
        )
        likely = resource - furthest if more >= 0.5 else likely
        possible = resource - furthest if more + 2 * math.sqrt(variance) >= 1 else possible
        before = resource
    return Ahead(begun, planned, math.sqrt(spread), likely, possible)


def _reported(run: RunState) -> int:
    return max(run.reports, default=0)


def _seconds(run: RunState, now: float) -> float:
    """That it took to where it is: `RunState.seconds` end at its newest report."""
    return run.seconds + (max(0.0, now - run.heard) if run.done > _reported(run) else 0.0)


def estimate(
    state: SweepState, loaded: LoadedSweep, rungs: Sequence[Mapping[str, Any]] | None, now: float
) -> Estimate | None:
    """The estimate at `now`, or None before anything is known.

    Args:
        state: the fold of the ledger.
        loaded: the sweep.
        rungs: the plan, as `sweeps.describe.describe` has it; None when only the hours end the sweep.
        now: seconds since the epoch.
    """
    hours = loaded.spec.budget.hours
    left = None
    if hours is not None:
        left = max(0.0, hours * 3600 - state.spent - max(0.0, now - state.driver_started_at))
    work = _work(state, loaded, rungs, now) if rungs is not None else None
    if left is None:
        return work
    if work is None:
        return Estimate(left, left, left, "hours") if rungs is None else None
    by = "hours" if left < work.seconds else "work"
    return Estimate(min(left, work.seconds), min(left, work.low), min(left, work.high), by)


def _work(state: SweepState, loaded: LoadedSweep, rungs: Sequence[Mapping[str, Any]], now: float) -> Estimate | None:
    paced = [(run.done, _seconds(run, now)) for run in state.runs.values()]
    measured = [(done, seconds) for done, seconds in paced if done and seconds > 0]
    units = sum(done for done, _ in measured)
    if not units:
        return None
    pace = math.fsum(seconds for _, seconds in measured) / units
    left = ahead(state, loaded, rungs)
    chains = [_left(run, pace, now) for run in state.runs.values() if run.phase in AT_WORK]
    slots = max(1, int(state.driver.get("slots") or len(chains)))
    work = math.fsum(chains) + left.planned * pace
    longest = max([left.likely * pace, *chains])
    n = left.planned * len(measured) / units
    sd = math.hypot(left.sd * pace, _spread(measured, pace) * (n / math.sqrt(len(measured)) + math.sqrt(n)))
    least = max(work / slots, longest)
    low = max((work - COVER * sd) / slots, max(chains, default=0.0))
    high = (work + COVER * sd) / slots + (1 - 1 / slots) * max([left.possible * pace, *chains])
    middle = (least + work / slots + (1 - 1 / slots) * longest) / 2
    return Estimate(middle, min(low, middle), max(high, middle), "work")


def _left(run: RunState, pace: float, now: float) -> float:
    """Seconds until a run at work reaches its target, at its own pace once it has one.

    One that is overdue does what its pace does not tell, as answers that are written at its end alone: it is taken to need once
    more what it has been overdue.
    """
    done, seconds = run.done, _seconds(run, now)
    own = seconds / done if done and seconds > 0 else pace
    at_work = max(0.0, now - max(run.heard, run.moved_at)) if run.phase == "running" else 0.0
    return abs((run.target - done) * own - at_work)


def _spread(measured: list[tuple[int, float]], pace: float) -> float:
    """Standard deviation of a run's seconds around its pace, in seconds."""
    n = len(measured)
    if n < 3:
        return UNKNOWN_SPREAD * pace * sum(units for units, _ in measured) / n
    return math.sqrt(math.fsum((seconds - pace * units) ** 2 for units, seconds in measured) / (n - 1))
