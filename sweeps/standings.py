"""What schedulers and searchers see of a sweep, kept up with the ledger's events one by one.

A trial stands for its runs: the first tuning seed leads, and the trial's value at a rung is the mean over the seeds that
have reported there. The others follow a trial that is about to go beyond its rung, or has reached the total, so that a
hopeless first seed ends a trial at the cost of one run.

Runs of different lengths (never with rungs in between) have one milestone, their own total, which counts as `total` where
they are compared.

With several metrics a value is a vector: the same rules hold for each of its numbers, a NaN in one of them is a divergence,
and the primary metric stands where one number is asked for.

Everything here follows from the events alone: the engine, a resume and `sweeps.replay` see the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from evaluators.base import Report
from sweeps.events import Event
from sweeps.fold import apply_event
from sweeps.plan import Plan
from sweeps.schedulers.base import ItemReader, RunView, SweepView, no_items
from sweeps.schedulers.base import RunState as ViewState
from sweeps.searchers.base import Suggestion, Told
from sweeps.state import RunState, SweepState, TrialState
from sweeps.trial import Run, config_hash

Vector = tuple[float, ...]
"""One number a metric, in the sweep's order."""

DUPLICATES = 100
"""So many suggestions in a row that were there before end the asking: the space is used up in all but name."""


class Standings:
    """A `SweepState` with the two views on it.

    Args:
        plan: the loaded sweep.
        milestones: resources at which runs are compared, the total last.
        finite: how many suggestions the searcher has in all, None without end.

    Attributes:
        state: the fold of the events so far.
        metrics: what is optimised, the primary metric first.
        named_baseline: the name of a baseline that is a trial, begun or not.
        used_up: set once the searcher had no suggestion left.
        items: reads item scores for schedulers that compare items; set by who has the ledger.
    """

    def __init__(self, plan: Plan, milestones: tuple[int, ...], finite: int | None) -> None:
        self.state = SweepState()
        self.used_up = False
        self.items: ItemReader = no_items
        self.seeds = plan.spec.seeds.tune
        self.milestones = milestones
        self.total = milestones[-1]
        self.metrics = plan.metrics
        self._signs = tuple(metric.sign for metric in plan.metrics)
        self._finite = finite
        self.named_baseline = plan.spec.named_baseline
        self._limit = self._at_most(plan.spec.budget.trials)
        self._distinct = plan.space.size
        self._views: list[RunView] = []
        self._changes: list[int] = []
        self._place: dict[str, int] = {}
        self._told: list[Told] = []
        self._same: dict[str, list[int]] = {}
        self._by_config: dict[str, str] = {}
        self._repeats = 0
        self._diverged: dict[str, int] = {}
        self._bounds: dict[int, tuple[tuple[float, float], ...]] = {}
        self._owing: dict[str, None] = {}
        self._lengths: dict[str, int] = {}

    def apply(self, event: Event) -> None:
        """Take in one event."""
        apply_event(self.state, event)
        if event.kind == "suggested":
            total = event.body.get("milestones", self.milestones)[-1]
            if total != self.total:
                self._lengths[event.body["trial"]] = total
            if self.state.trials[event.body["trial"]].baseline is None:
                self._suggested(self.state.trials[event.body["trial"]])
        elif event.kind in ("driver_started", "budget_changed"):
            if event.kind == "budget_changed":
                self.set_trials(event.body["budget"]["trials"])
            for trial in self._place:
                self._refresh(trial)
        elif event.kind in _ABOUT_RUNS:
            run = self.state.runs[event.body["run"]]
            searched = run.trial in self._place
            if searched and event.kind == "reported" and event.body["resource"] in self.milestones_of(run.trial):
                self._widen(run, event.body["resource"])
            if searched:
                self._refresh(run.trial)

    def set_trials(self, trials: int | None) -> None:
        """Suggestions are made up to another `budget.trials` from here on."""
        self._limit, self._repeats, self.used_up = self._at_most(trials), 0, False

    def view(self) -> SweepView:
        """The sweep as schedulers see it; valid until the next event."""
        return SweepView(self._views, self.more_to_come, self.milestones, self.items, self._changes)

    def reported_view(self, run: Run) -> SweepView:
        """The same just after a report of `run`, which now waits at its rung for the scheduler's word."""
        place = self._place[run.trial]
        self._views[place] = replace(self._views[place], state="waiting")
        self._changes.append(place)
        return self.view()

    def history(self) -> Sequence[Told]:
        """All suggestions in order and what became of them; valid until the next event.

        A trial that waits at a rung or goes on from one is told with its value there. A diverged one is told at the first
        rung, so that it ranks behind all others, as the worst finite value there plus the observed range; before any finite
        value it is not told.
        """
        for trial, resource in self._diverged.items():
            for index in self._same[trial]:
                self._told[index] = self._penalised(self._told[index].suggestion, resource)
        return self._told

    @property
    def suggestions(self) -> int:
        """Suggestions made so far, duplicates included."""
        return len(self._told)

    @property
    def order(self) -> int:
        """The next suggestion's order among trials: a baseline that is one comes first."""
        return len(self._told) + (self.named_baseline is not None)

    @property
    def baseline_seed(self) -> int | None:
        """The first tuning seed that the baseline has not begun with; None where nothing is left of it."""
        if self.named_baseline is None:
            return None
        trial = self.state.baseline
        begun = set() if trial is None else {run.seed for run in self.state.runs.values() if run.trial == trial.id}
        return next((seed for seed in self.seeds if seed not in begun), None)

    def is_baseline(self, trial: str) -> bool:
        """Whether a trial is the baseline: it is compared with nothing on its way."""
        return self.state.trials[trial].baseline is not None

    @property
    def duplicates(self) -> int:
        """Suggestions that were there before."""
        return len(self._told) - len(self._by_config)

    @property
    def limit(self) -> int | None:
        """Suggestions in all: the budget, or the space's size where that is smaller; None when open-ended."""
        sizes = (self._limit, None if self._distinct is None else self._distinct + self.duplicates)
        return min((n for n in sizes if n is not None), default=None)

    @property
    def more_to_come(self) -> bool:
        """Whether new trials will still be suggested, as far as the ledger shows (and the searcher has said)."""
        if self.used_up:
            return False
        if self._limit is not None and len(self._told) >= self._limit:
            return False
        return self._repeats < DUPLICATES and (self._distinct is None or len(self._by_config) < self._distinct)

    def known(self, config: Mapping[str, Any]) -> str | None:
        """The trial that has this configuration already, or None."""
        return self._by_config.get(config_hash(config))

    def metrics_of(self, report: Report) -> tuple[float | None, ...]:
        """The sweep's metrics in a report, from its scores or its telemetry; None for one that is not there."""
        found = []
        for metric in self.metrics:
            score = report.score(metric.name)
            found.append(score.value if score is not None else report.telemetry.get(metric.name))
        return tuple(found)

    def value(self, run: RunState, resource: int) -> float | None:
        """The primary metric of a run at a resource it has reported."""
        report = run.reports.get(resource)
        return None if report is None else report.value(self.metrics[0].name)

    def seed_mean(self, trial: str, resource: int, metric: int = 0) -> tuple[float, int]:
        """A metric (by its place) of a trial at a resource, smaller better: the mean over the seeds there, and their number."""
        runs = [run for run in (self._run(trial, seed) for seed in self.seeds) if run is not None]
        vectors = [vector for run in runs if (vector := self.vector(run, resource)) is not None and _finite(vector)]
        if not vectors:
            return math.inf, 0
        return fmean(self.oriented_vector(vector)[metric] for vector in vectors), len(vectors)

    def vector(self, run: RunState, resource: int) -> Vector | None:
        """All metrics of a run at a resource, in order; None where it has not reported them all."""
        report = run.reports.get(resource)
        if report is None:
            return None
        found = [report.value(metric.name) for metric in self.metrics]
        values = tuple(value for value in found if value is not None)
        return values if len(values) == len(found) else None

    def oriented(self, value: float) -> float:
        """The primary metric so that smaller is better."""
        return self._signs[0] * value

    def oriented_vector(self, vector: Vector) -> Vector:
        """All metrics so that smaller is better."""
        return tuple(sign * value for sign, value in zip(self._signs, vector, strict=True))

    @property
    def several(self) -> bool:
        """Whether there are several metrics."""
        return len(self.metrics) > 1

    def milestones_of(self, trial: str) -> tuple[int, ...]:
        """Where a trial's runs are compared, its total last."""
        own = self._lengths.get(trial)
        return self.milestones if own is None else (own,)

    def rung(self, run: RunState) -> int | None:
        """The highest milestone that a run has reported."""
        return next((m for m in reversed(self.milestones_of(run.trial)) if m in run.reports), None)

    def level(self, trial: str, resource: int) -> int:
        """A milestone as it compares with other trials': a trial's own total counts as the sweep's."""
        return self.total if resource == self.milestones_of(trial)[-1] else resource

    def next_milestone(self, trial: str, resource: int) -> int | None:
        """The first one after a resource."""
        return next((m for m in self.milestones_of(trial) if m > resource), None)

    def following(self, trial: str) -> tuple[int, int] | None:
        """(seed, resource): the first other seed that the trial's lead waits for and that nothing runs yet."""
        lead = self._run(trial, self.seeds[0])
        goal = self.rung(lead) if lead is not None else None
        if goal is None:
            return None
        for seed in self.seeds[1:]:
            run = self._run(trial, seed)
            if run is None or (run.phase == "waiting" and goal not in run.reports):
                return seed, goal
        return None

    def unsettled(self, trial: str) -> bool:
        """Whether a run of a trial still has a way to go, or another seed is still to follow its lead to the total."""
        runs = [run for run in (self._run(trial, seed) for seed in self.seeds) if run is not None]
        if any(run.phase in ("waiting", "running", "interrupted") for run in runs):
            return True
        lead = self._run(trial, self.seeds[0])
        return lead is not None and lead.phase == "finished" and self.following(trial) is not None

    def owing(self) -> tuple[str, int, int] | None:
        """(trial, seed, resource) of a trial whose lead has reached the total and whose other seeds have not started to."""
        for trial in self._owing:
            found = self.following(trial)
            if found is not None:
                return trial, *found
        return None

    def _at_most(self, trials: int | None) -> int | None:
        return min((n for n in (trials, self._finite) if n is not None), default=None)

    def _run(self, trial: str, seed: int) -> RunState | None:
        return self.state.runs.get(Run(trial, seed).id)

    def _suggested(self, trial: TrialState) -> None:
        self._told.append(Told(trial.suggestion, "running"))
        first = trial.duplicate_of or trial.id
        self._same.setdefault(first, []).append(len(self._told) - 1)
        if trial.duplicate_of is not None:
            self._repeats += 1
            self._told[-1] = replace(self._told[self._same[first][0]], suggestion=trial.suggestion)
            return
        self._repeats = 0
        self._by_config[config_hash(trial.config)] = trial.id
        self._place[trial.id] = len(self._views)
        self._changes.append(len(self._views))
        self._views.append(
            RunView(Run(trial.id, self.seeds[0]), trial.order, "running", {}, self.milestones_of(trial.id)[0])
        )

    def _refresh(self, trial: str) -> None:
        lead = self._run(trial, self.seeds[0])
        if lead is None:
            return
        runs = [run for run in (self._run(trial, seed) for seed in self.seeds) if run is not None]
        values = self._values(trial, runs)
        place = self._place[trial]
        self._changes.append(place)
        oriented = {resource: self.oriented_vector(vector) for resource, vector in values.items()}
        self._views[place] = RunView(
            self._views[place].run,
            lead.order,
            self._view_state(trial, lead, runs),
            {resource: vector[0] for resource, vector in oriented.items()},
            lead.target,
            oriented if self.several else {},
        )
        self._tell(trial, lead, values)
        if len(self.seeds) > 1:
            self._owing.pop(trial, None)
            if lead.phase == "finished" and self.following(trial) is not None:
                self._owing[trial] = None

    def _values(self, trial: str, runs: Sequence[RunState]) -> dict[int, Vector]:
        """Means over the seeds that have reported, NaN where one of them diverged."""
        values: dict[int, Vector] = {}
        for milestone in self.milestones_of(trial):
            found = [vector for run in runs if (vector := self._vector_or_nan(run, milestone)) is not None]
            if found:
                whole = all(_finite(vector) for vector in found)
                values[milestone] = tuple(map(fmean, zip(*found, strict=True))) if whole else self._nowhere
        return values

    def _vector_or_nan(self, run: RunState, milestone: int) -> Vector | None:
        vector = self.vector(run, milestone)
        if vector is None and run.target == milestone and _diverged(run):
            return self._nowhere
        return vector

    @property
    def _nowhere(self) -> Vector:
        return (math.nan,) * len(self.metrics)

    def _view_state(self, trial: str, lead: RunState, runs: Sequence[RunState]) -> ViewState:
        if lead.phase == "interrupted":
            return "running"
        others = any(run.phase in ("running", "interrupted") for run in runs if run is not lead)
        if lead.phase == "waiting" and others and self.following(trial) is None:
            return "running"
        return lead.phase

    def _tell(self, trial: str, lead: RunState, values: Mapping[int, Vector]) -> None:
        suggestion = self.state.trials[trial].suggestion
        self._diverged.pop(trial, None)
        told = Told(suggestion, "running")
        if values:
            resource = max(values)
            if _finite(values[resource]):
                told = Told(suggestion, "complete", values[resource], self.level(trial, resource))
            else:
                self._diverged[trial] = self.level(trial, self.milestones_of(trial)[0])
        elif lead.phase == "failed":
            told = Told(suggestion, "failed")
        for index in self._same[trial]:
            self._told[index] = replace(told, suggestion=self._told[index].suggestion)

    def _penalised(self, suggestion: Suggestion, resource: int) -> Told:
        bounds = self._bounds.get(resource)
        if bounds is None:
            return Told(suggestion, "failed")
        worst = tuple(sign * (high + (high - low)) for sign, (low, high) in zip(self._signs, bounds, strict=True))
        return Told(suggestion, "complete", worst, resource)

    def _widen(self, run: RunState, resource: int) -> None:
        vector = self.vector(run, resource)
        if vector is None or not _finite(vector):
            return
        oriented, level = self.oriented_vector(vector), self.level(run.trial, resource)
        before = self._bounds.get(level, tuple((value, value) for value in oriented))
        self._bounds[level] = tuple(
            (min(low, value), max(high, value)) for (low, high), value in zip(before, oriented, strict=True)
        )


_ABOUT_RUNS = frozenset({"lease_started", "reported", "decided", "lease_ended", "failed", "run_ended"})


def _diverged(run: RunState) -> bool:
    return run.phase == "failed" and bool(run.failures) and run.failures[-1].kind == "nan"


def _finite(vector: Vector) -> bool:
    return all(map(math.isfinite, vector))
