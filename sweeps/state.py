"""The fold: what the ledger's events amount to. The engine, the leaderboard and every page read this and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evaluators.base import Score
from sweeps.failures import Failure
from sweeps.ledger import Event
from sweeps.searchers.base import Suggestion

Phase = Literal["waiting", "running", "finished", "stopped", "failed", "interrupted"]


@dataclass
class ReportState:
    """One kept report of a run."""

    resource: int
    attempt: int
    scores: dict[str, Score]
    """full metric name -> score (items stay in the ledger)"""
    telemetry: dict[str, float]
    checkpoint: str | None
    time: float
    deleted: bool = False
    """whether its checkpoint was deleted"""


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
    reports: dict[int, ReportState] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0

    @property
    def id(self) -> str:
        """`Run.id`."""
        return f"{self.trial}/seed-{self.seed}"


@dataclass
class TrialState:
    """A trial as the ledger has it."""

    id: str
    order: int
    config: Mapping[str, Any]
    suggestion: Suggestion
    duplicate_of: str | None = None


@dataclass
class SoupState:
    """A soup as the ledger has it."""

    id: str
    method: str
    metric: str
    ingredients: list[dict[str, Any]]
    scored: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    finished: dict[str, Any] | None = None


@dataclass
class SweepState:
    """Everything the events amount to. Filled by `fold`."""

    name: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    trials: dict[str, TrialState] = field(default_factory=dict)
    runs: dict[str, RunState] = field(default_factory=dict)
    soups: dict[str, SoupState] = field(default_factory=dict)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    """frozen by the final step: [{role, ...}]"""
    finals: list[dict[str, Any]] = field(default_factory=list)
    """final_scored bodies with typed `scores`"""
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    test_openings: int = 0
    drivers: int = 0
    stop: str | None = None
    """who asked the present driver to stop"""
    finished: dict[str, Any] | None = None
    started_at: float = 0.0
    updated_at: float = 0.0
    seq: int = 0

    def apply(self, event: Event) -> None:
        """Take in one event."""
        raise NotImplementedError


def fold(events: Iterable[Event]) -> SweepState:
    """The state after the events."""
    state = SweepState()
    for event in events:
        state.apply(event)
    return state
