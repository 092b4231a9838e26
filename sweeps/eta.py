"""When a sweep's trials will be over, with an honest range.

Work is counted in the pipeline's resource: what running runs lack to their targets, at their own pace, and what the plan has
still to come, at the mean pace so far. With work W on m slots and a longest chain L that no second slot can shorten, the
rest takes at least max(W/m, L) and at most W/m + (1 - 1/m)·L (Graham 1966, list scheduling). The range is that, widened by
two standard deviations of how unlike each other runs are; the estimate is its middle. Not counted: the start of a worker,
what a lost worker costs, the soup and the final step.
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


def ahead(state: SweepState, rungs: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Resource that is still to come: of runs at work or sure to go on, and of those that the plan has beyond them.

    Args:
        state: the fold of the ledger.
        rungs: as `sweeps.load.describe` has them.
    """
    begun = sum(max(0, run.target - _done(run)) for run in state.runs.values() if run.phase not in (*ENDED, "waiting"))
    seeds = len({run.seed for run in state.runs.values()}) or 1
    twice = seeds * sum(trial.duplicate_of is not None for trial in state.trials.values())
    planned, before = 0, 0
    for index, rung in enumerate(rungs):
        there = sum(
            _done(run) >= rung["resource"] or _going(run, rung["resource"]) or (not index and run.phase in ENDED)
            for run in state.runs.values()
        )
        lacking = max(0, rung["runs"] - there - (0 if index else twice))
        planned += lacking * (rung["resource"] - before)
        before = rung["resource"]
    return begun, planned


def _done(run: RunState) -> int:
    return max(run.reports, default=0)


def _going(run: RunState, resource: int) -> bool:
    return run.phase in ("running", "interrupted") and run.target >= resource


def estimate(
    state: SweepState, loaded: LoadedSweep, rungs: Sequence[Mapping[str, Any]] | None, now: float
) -> Estimate | None:
    """The estimate at `now`, or None before anything is known.

    Args:
        state: the fold of the ledger.
        loaded: the sweep.
        rungs: the plan, as `sweeps.load.describe` has it; None when only the hours end the sweep.
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
    measured = [(_done(run), run.seconds) for run in state.runs.values() if run.reports and run.seconds > 0]
    units = sum(done for done, _ in measured)
    if not units:
        return None
    pace = math.fsum(seconds for _, seconds in measured) / units
    planned = ahead(state, rungs)[1]
    chains = [_left(run, pace, now) for run in state.runs.values() if run.phase in ("running", "interrupted")]
    if planned:
        furthest = max((_done(run) for run in state.runs.values() if run.phase not in ENDED), default=0)
        reached = any(_done(run) >= loaded.total for run in state.runs.values())
        first = rungs[0]["resource"]
        chains.append(pace * min(planned, first if reached else max(first, loaded.total - furthest)))
    # The last entry of `chains` is a part of what is planned, the others are work of their own.
    slots = max(1, int(state.driver.get("slots") or len(chains)))
    own = math.fsum(chains[:-1] if planned else chains)
    work, longest = own + planned * pace, max(chains, default=0.0)
    n = planned * len(measured) / units
    sd = _spread(measured, pace) * (n / math.sqrt(len(measured)) + math.sqrt(n))
    low = max((work - COVER * sd) / slots, 0.0 if planned else longest)
    high = (work + COVER * sd) / slots + (1 - 1 / slots) * longest
    middle = (max(work / slots, longest) + work / slots + (1 - 1 / slots) * longest) / 2
    return Estimate(middle, min(low, middle), max(high, middle), "work")


def _left(run: RunState, pace: float, now: float) -> float:
    """Seconds until a run at work reaches its target, at its own pace once it has one."""
    done = _done(run)
    own = run.seconds / done if done and run.seconds > 0 else pace
    at_work = max(0.0, now - run.heard) if run.phase == "running" else 0.0
    return max(0.0, (run.target - done) * own - at_work)


def _spread(measured: list[tuple[int, float]], pace: float) -> float:
    """Standard deviation of a run's seconds around its pace, in seconds."""
    n = len(measured)
    if n < 3:
        return UNKNOWN_SPREAD * pace * sum(units for units, _ in measured) / n
    return math.sqrt(math.fsum((seconds - pace * units) ** 2 for units, seconds in measured) / (n - 1))
