"""What a sweep amounts to: its trials, runs, reports, soups and final steps, as `sweeps.fold` fills them from the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evaluators.base import Score
from sweeps.failures import Failure
from sweeps.fitting import TooLarge
from sweeps.searchers.base import Suggestion

Phase = Literal["waiting", "running", "finished", "stopped", "failed", "interrupted"]
"""`waiting` at a rung, to be promoted or not; `interrupted`: its lease ended early and it goes again from its checkpoint."""


@dataclass
class ReportState:
    """One kept report of a run."""

    resource: int
    attempt: int
    """whose folder holds the checkpoint"""
    scores: dict[str, Score]
    """full metric name -> score (items stay in the ledger)"""
    telemetry: dict[str, float]
    checkpoint: str | None
    time: float
    deleted: bool = False
    """whether its checkpoint was deleted"""

    def value(self, metric: str) -> float | None:
        """A metric by its full name, from the scores or the telemetry."""
        score = self.scores.get(metric)
        return score.value if score is not None else self.telemetry.get(metric)


@dataclass
class RunState:
    """A run as the ledger has it."""

    trial: str
    seed: int
    order: int
    phase: Phase = "waiting"
    attempt: int = -1
    lease: str | None = None
    leases: int = 0
    target: int = 0
    """the milestone that its present or last lease was meant for"""
    reports: dict[int, ReportState] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    adjusted: str = ""
    """why it began with less than its configuration says"""
    reason: str = ""
    seconds: float = 0.0
    heard: float = 0.0
    """when its newest lease started, or last reported"""
    reached: int = 0
    """the resource that its lease has told of since, without a report; no ledger has it, only the driver's own state"""
    moved_at: float = 0.0
    """when it last told so"""

    @property
    def id(self) -> str:
        """`Run.id`."""
        return f"{self.trial}/seed-{self.seed}"

    @property
    def done(self) -> int:
        """Resource of the highest report, or what its running lease has told of beyond that."""
        reported = max(self.reports, default=0)
        return max(reported, self.reached) if self.phase == "running" else reported

    def moved(self, at: int | None, when: float) -> None:
        """Take in a sign of life of its lease."""
        self.reached, self.moved_at = self.reached if at is None else at, when

    @property
    def newest(self) -> ReportState | None:
        """The report with the highest resource."""
        return self.reports[max(self.reports)] if self.reports else None


@dataclass
class TrialState:
    """A trial as the ledger has it."""

    id: str
    order: int
    config: Mapping[str, Any]
    suggestion: Suggestion
    duplicate_of: str | None = None
    baseline: str | None = None
    """the name of the baseline that it is (`sweeps.baselines`)"""


@dataclass
class SoupState:
    """A soup as the ledger has it."""

    id: str
    method: str
    metric: str
    ingredients: list[dict[str, Any]]
    scored: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    """what the recipe found on the way: paths, learned weights, the search"""
    told: list[dict[str, Any]] = field(default_factory=list)
    """decisions and notes in one order, each with its `kind`"""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """what workers found out about the weights"""
    settings: dict[str, Any] = field(default_factory=dict)
    """the recipe's; empty in ledgers of older versions"""
    finished: dict[str, Any] | None = None

    @property
    def over(self) -> str:
        """What it was made from, in words: `over 5 runs`; a sparse soup begins with one."""
        if self.method == "sparse":
            return f"from {self.ingredients[0]['run']}"
        return f"over {len(self.ingredients)} runs"


@dataclass(frozen=True)
class Round:
    """A final step that was begun before the sweep was given another budget.

    Attributes:
        trials: suggested by then.
        candidates: as frozen.
        finals: final_scored bodies with typed `scores`.
        verdicts: as recorded.
    """

    trials: int
    candidates: list[dict[str, Any]]
    finals: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]


@dataclass
class SweepState:
    """Everything the events amount to. Filled by `fold`."""

    name: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    trials: dict[str, TrialState] = field(default_factory=dict)
    runs: dict[str, RunState] = field(default_factory=dict)
    too_large: list[TooLarge] = field(default_factory=list)
    """what ran out of memory, in order"""
    soups: dict[str, SoupState] = field(default_factory=dict)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    """frozen by the final step: [{role, ...}]"""
    finals: list[dict[str, Any]] = field(default_factory=list)
    """final_scored bodies with typed `scores`"""
    baselines: list[dict[str, Any]] = field(default_factory=list)
    """baseline_scored bodies with typed `scores`: the baseline on the split that decides"""
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """run id, or `baseline` -> body of its `probed` event"""
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    earlier: list[Round] = field(default_factory=list)
    """final steps of earlier budgets; the three above are the present one's"""
    test_openings: int = 0
    tuned_after_test: int = 0
    """reports of trials after the first opening"""
    drivers: int = 0
    driver: Mapping[str, Any] = field(default_factory=dict)
    """the newest driver, as `driver_started` tells it"""
    driver_ended: str | None = None
    """how the newest driver ended; None while it is at work, and where it was killed"""
    driver_ended_why: str = ""
    """what broke the newest driver off; empty where nothing did, or nobody knows"""
    held_back: tuple[str, int] | None = None
    """sweep of the cluster, with its priority, that the present driver lets go first; no name: all places are taken"""
    unplaced: frozenset[str] = frozenset()
    """leases of the present driver that had no place on the cluster when it was last said; some may have ended since"""
    priority_before: int | None = None
    """the priority that the newest `resume --priority` changed; None where there was none"""
    stop: str | None = None
    """who asked the present driver to stop"""
    finished: dict[str, Any] | None = None
    started_at: float = 0.0
    driver_started_at: float = 0.0
    spent: float = 0.0
    """seconds that earlier drivers were at work, each from its start to its end, or to its last event where it was killed"""
    ended_at: float = 0.0
    """when the newest driver ended; 0 while it is at work, and where it was killed"""
    updated_at: float = 0.0
    seq: int = 0

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked the present driver to stop, so that a resume goes on."""
        return self.stop in ("ctrl-c", "command")

    @property
    def searched(self) -> dict[str, TrialState]:
        """The trials but for the baseline's."""
        return {name: trial for name, trial in self.trials.items() if trial.baseline is None}

    @property
    def searched_runs(self) -> dict[str, RunState]:
        """The runs but for the baseline's."""
        return {name: run for name, run in self.runs.items() if self.trials[run.trial].baseline is None}

    @property
    def baseline(self) -> TrialState | None:
        """The trial that is the baseline, where one has a name."""
        return next((trial for trial in self.trials.values() if trial.baseline is not None), None)

    def phase_of(self, run: RunState) -> str:
        """A run's phase as people see it: one whose lease still waits for a place is `unplaced`, and does not run."""
        return "unplaced" if run.phase == "running" and run.lease in self.unplaced else run.phase

    @property
    def seconds_used(self) -> float:
        """What counts against `budget.hours`: the seconds of all drivers, as far as the events tell."""
        if not self.drivers:
            return 0.0
        return self.spent + max(0.0, (self.ended_at or self.updated_at) - self.driver_started_at)


def from_number(value: float | str | None) -> float:
    """The inverse of `sweeps.ledger.number`."""
    return float("nan") if value is None else float(value)


def items_owner(final: Mapping[str, Any]) -> str:
    """Under which owner the items of a `final_scored` body are stored."""
    label = final["role"] if final.get("seed") is None else f"{final['role']}/seed-{final['seed']}"
    return str(final.get("owner") or f"final/{label}")
