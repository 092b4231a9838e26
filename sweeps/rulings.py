"""What the sweep's rules say about a report and about a free slot: pure functions of the standings.

The engine asks them before it writes; `sweeps.replay` asks them again and compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.schedulers.base import Decision, Scheduler
from sweeps.seeds import CAUGHT_UP
from sweeps.standings import Standings
from sweeps.state import RunState
from sweeps.trial import Run


@dataclass(frozen=True)
class Ruling:
    """About a run that just reported at a milestone.

    Attributes:
        goes_on: whether its lease goes on.
        reason: why, in a few words.
        target: the next milestone, where that changes.
        others: decisions about other runs.
    """

    goes_on: bool
    reason: str
    target: int | None = None
    others: Sequence[Decision] = ()


@dataclass(frozen=True)
class Promotion:
    """A run to lease now.

    Attributes:
        run: which.
        resource: the rung that it leaves, 0 for a seed that begins.
        target: the milestone it goes to.
        reason: why, in a few words.
        seed: whether it is another seed, which catches up with its trial.
    """

    run: Run
    resource: int
    target: int
    reason: str
    seed: bool = False


def on_report(standings: Standings, scheduler: Scheduler, run: RunState, resource: int) -> Ruling:
    """The ruling on a finite metric at a milestone, after the report was taken in.

    Raises:
        ValueError: if the scheduler said nothing about the run.
    """
    if resource < run.target:
        return Ruling(True, "on its way")
    if standings.is_baseline(run.trial):
        return Ruling(False, "reached the total")
    if run.seed != standings.seeds[0]:
        return Ruling(False, CAUGHT_UP)
    decisions = scheduler.on_report(
        Run(run.trial, run.seed), resource, standings.reported_view(Run(run.trial, run.seed))
    )
    own = [decision for decision in decisions if decision.run.id == run.id]
    others = [decision for decision in decisions if decision.run.id != run.id]
    if len(own) != 1:
        raise ValueError(f"a scheduler must decide once about the reporting run, but got {len(own)} decisions")
    target = standings.next_milestone(run.trial, resource)
    if own[0].action != "continue" or target is None:
        return Ruling(False, own[0].reason or "reached the total", others=others)
    if standings.following(run.trial) is not None:
        return Ruling(False, f"{own[0].reason}; its other seeds come first", others=others)
    return Ruling(True, own[0].reason, target, others)


def promotion(standings: Standings, scheduler: Scheduler) -> Promotion | None:
    """Which waiting run is leased now that a slot is free; before a trial goes on, its other seeds catch up."""
    chosen = scheduler.next_lease(standings.view())
    if chosen is None:
        return None
    found = standings.following(chosen.run.trial)
    if found is not None:
        seed, goal = found
        return _catching_up(
            standings, Run(chosen.run.trial, seed), goal, f"another seed of a trial that is {chosen.reason}"
        )
    target = standings.next_milestone(chosen.run.trial, chosen.resource)
    if target is None:
        raise ValueError(f"a scheduler must promote below the total, but got {chosen.run.id} at {chosen.resource}")
    return Promotion(chosen.run, chosen.resource, target, chosen.reason)


def follower(standings: Standings) -> Promotion | None:
    """Another seed of a trial whose first seed has reached the total."""
    found = standings.owing()
    if found is None:
        return None
    trial, seed, goal = found
    return _catching_up(standings, Run(trial, seed), goal, "another seed of a finished trial")


def _catching_up(standings: Standings, run: Run, goal: int, reason: str) -> Promotion:
    known = standings.state.runs.get(run.id)
    return Promotion(run, (standings.rung(known) or 0) if known is not None else 0, goal, reason, seed=True)
