"""How far a sweep is, kept up with every event: what progress and the estimate of the time left are made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sweeps.describe import runs_at
from sweeps.standings import Standings
from sweeps.state import RunState
from sweeps.trial import finite


class Pace:
    """Counts once at the start what the ledger holds, and then report by report."""

    def __init__(self, standings: Standings) -> None:
        self._standings = standings
        self._reached: dict[str, int] = {}
        self._tried: set[str] = set()
        self._done = 0
        self._best: dict[str, tuple[int, int, float, int, str]] = {}
        for run in standings.state.runs.values():
            for resource in sorted(run.reports):
                self.reported(run, resource)
            if run.phase == "failed":
                self.ended(run)
        self._at_start = self._done

    def reported(self, run: RunState, resource: int) -> None:
        """A report was taken in."""
        before = self._reached.get(run.id, 0)
        if resource > before:
            self._reached[run.id] = resource
            self._done += resource - before
        if resource not in self._standings.milestones_of(run.trial) or self._standings.is_baseline(run.trial):
            return
        self._tried.add(run.trial)
        if finite(self._standings.value(run, resource)):
            self._rank(run, resource)

    def _rank(self, run: RunState, resource: int) -> None:
        """Where the run's trial stands now: the mean over the seeds there, one with more of them before one with fewer."""
        mean, seeds = self._standings.seed_mean(run.trial, resource)
        entry = (-self._standings.level(run.trial, resource), -seeds, mean, run.order, run.trial)
        known = self._best.get(run.trial)
        if known is None or entry[:2] <= known[:2]:
            self._best[run.trial] = entry

    def ended(self, run: RunState) -> None:
        """A run failed for good."""
        if not self._standings.is_baseline(run.trial):
            self._tried.add(run.trial)

    def record(self, expected: Callable[[int], tuple[int, ...]]) -> dict[str, Any]:
        """The figures, JSON-ready.

        Args:
            expected: how many of so many trials reach each milestone.
        """
        total = self._standings.limit
        best = None
        if self._best:
            resource, _, oriented, _, trial = min(self._best.values())
            best = {"trial": trial, "value": self._standings.oriented(oriented), "resource": -resource}
        return {
            "trials_done": len(self._tried) + self._standings.duplicates,
            "trials_started": self._standings.suggestions,
            "trials_total": total,
            "best": best,
            "resource_done": self._done,
            "resource_at_start": self._at_start,
            "resource_expected": None
            if total is None
            else self._expected(expected(total - self._standings.duplicates)),
        }

    def _expected(self, trials: tuple[int, ...]) -> int:
        before, spent = 0, 0
        own = self._standings.named_baseline is not None
        for milestone, runs in zip(
            self._standings.milestones, runs_at(trials, len(self._standings.seeds)), strict=True
        ):
            spent += (milestone - before) * (runs + own * len(self._standings.seeds))
            before = milestone
        return spent
