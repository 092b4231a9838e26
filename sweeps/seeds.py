"""A configuration's score over its tuning seeds: one rule for the leaderboard, the winner, soups, progress and `keep`.

A trial stands at the highest rung that any of its living runs has reported, with the mean over those that have reported
there, as the scheduler compares it. One with fewer seeds there (the others are on their way, diverged, or failed) stands
behind those with more: what was repeated less often looks better by luck alone (Eimer et al. 2023, arXiv 2306.01324).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import TYPE_CHECKING

from sweeps.state import RunState

if TYPE_CHECKING:
    from sweeps.board import Measured

CAUGHT_UP = "this seed has caught up"
"""Why a seed that follows its trial's first one ended where that waits."""


@dataclass(frozen=True)
class Standing:
    """Where a trial stands.

    Attributes:
        resource: its rung.
        left: rungs that are still before it.
        runs: those that have reported there, by seed.
    """

    resource: int
    left: int
    runs: tuple[RunState, ...]


def standing(
    runs: Sequence[RunState],
    milestones: Sequence[int],
    counts: Callable[[RunState, int], bool] = lambda run, resource: True,
) -> Standing | None:
    """A trial's standing; None before its first rung.

    Args:
        runs: the trial's that count at all (the living ones).
        milestones: where they are compared, the total last.
        counts: whether a run's report at a resource counts.
    """
    for left, resource in enumerate(reversed(milestones)):
        there = [run for run in runs if resource in run.reports and counts(run, resource)]
        if there:
            return Standing(resource, left, tuple(sorted(there, key=lambda run: run.seed)))
    return None


def by_trial(runs: Mapping[str, RunState]) -> dict[str, list[RunState]]:
    """Trial -> its runs, in the order of their first ones."""
    found: dict[str, list[RunState]] = {}
    for run in runs.values():
        found.setdefault(run.trial, []).append(run)
    return found


def combined(values: Sequence[Measured]) -> Measured:
    """The mean over seeds; se² = (mean error over items)² + (variance between seeds) / k.

    The seeds share their items, so that their errors over items do not average out: the mean of them bounds the error of
    the mean.
    """
    from sweeps.board import Measured  # brings SciPy, which the engine does without

    if len(values) == 1:
        return values[0]
    mean = fmean(v.value for v in values)
    between = variance([v.value for v in values]) if math.isfinite(mean) else math.nan
    se = math.sqrt(fmean(v.se for v in values) ** 2 + between / len(values))
    counts = [v.n for v in values if v.n is not None]
    return Measured(mean, se, min(counts, default=None), max(v.unscored for v in values))


def measured(run: RunState, resource: int, metric: str) -> Measured:
    """A metric in a run's report, from its scores or its telemetry."""
    from sweeps.board import Measured

    report = run.reports[resource]
    score = report.scores.get(metric)
    if score is not None:
        return Measured(score.value, score.se, score.n, score.unscored)
    return Measured(report.telemetry.get(metric, math.nan))
