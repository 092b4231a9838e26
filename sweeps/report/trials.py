"""Each trial as a page shows it: its place, its numbers, its curves, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sweeps.board import Leaderboard, Row
from sweeps.ledger import number
from sweeps.report.redact import cut
from sweeps.state import ReportState, RunState, SweepState

POINTS = 15_000
"""Points of all curves together at most; beyond, telemetry between milestones is thinned out."""
REASON = 600
"""Characters of a reason at most."""


def trial_records(
    state: SweepState, board: Leaderboard, milestones: Iterable[int], driven: bool
) -> list[dict[str, Any]]:
    """Every trial, in the leaderboard's order; JSON-ready.

    Args:
        state: the folded ledger.
        board: its leaderboard.
        milestones: resources whose points are never thinned.
        driven: whether a driver is at work; else nothing runs any more.
    """
    runs: dict[str, list[RunState]] = {}
    for run in state.runs.values():
        runs.setdefault(run.trial, []).append(run)
    keep = frozenset(milestones)
    points = sum(len(r.scores) + len(r.telemetry) for run in state.runs.values() for r in run.reports.values())
    every = max(1, math.ceil(points / POINTS))
    return [_trial(row, state, sorted(runs.get(row.name, []), key=_seed), keep, every, driven) for row in board.trials]


def _seed(run: RunState) -> int:
    return run.seed


def _trial(
    row: Row, state: SweepState, runs: Sequence[RunState], keep: frozenset[int], every: int, driven: bool
) -> dict[str, Any]:
    record = row.record()
    phase = "interrupted" if row.state == "running" and not driven else row.state
    return {
        **{key: record[key] for key in ("rank", "tie", "p", "rung", "whole", "resource", "seconds", "cost", "seeds")},
        **{
            key: record[key]
            for key in (
                "score",
                "scores",
                "front",
                "possible",
                "parameters",
                "trainable",
                "changes",
                "test",
                "tests",
                "also",
                "latency",
                "baseline",
            )
        },
        "id": row.name,
        "order": state.trials[row.name].order,
        "state": phase,
        "reason": cut(row.reason, REASON),
        "kind": _kind(row, runs),
        "runs": [_run(run, keep, every, driven) for run in runs],
    }


def _kind(row: Row, runs: Sequence[RunState]) -> str:
    """The kind of failure that ended a trial; empty for all others."""
    if row.state != "failed":
        return ""
    return next((run.failures[-1].kind for run in runs if run.phase == "failed" and run.failures), "unknown")


def _run(run: RunState, keep: frozenset[int], every: int, driven: bool) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "state": "interrupted" if run.phase == "running" and not driven else run.phase,
        "reason": cut(run.reason, REASON),
        "attempts": run.attempt + 1,
        "leases": run.leases,
        "failures": [{"kind": failure.kind, "message": cut(failure.message)} for failure in run.failures],
        "curves": _curves(run, keep, every),
    }


def _curves(run: RunState, keep: frozenset[int], every: int) -> dict[str, list[list[Any]]]:
    """Metric -> [[resource, value, se], ...] in order; telemetry has no error."""
    curves: dict[str, list[list[Any]]] = {}
    for place, resource in enumerate(sorted(run.reports)):
        report = run.reports[resource]
        if every > 1 and resource not in keep and not report.scores and place % every:
            continue
        for name, value, se in _numbers(report):
            curves.setdefault(name, []).append([resource, _short(value), _short(se)])
    return curves


def _numbers(report: ReportState) -> Iterable[tuple[str, float, float]]:
    for key, score in report.scores.items():
        yield key, score.value, score.se
    for name, value in report.telemetry.items():
        if name.startswith("train/") and name not in report.scores:
            yield name, value, math.nan


def _short(value: float) -> float | str | None:
    """Six digits are more than any picture shows."""
    return float(f"{value:.6g}") if math.isfinite(value) else number(value)


def evaluation_seconds(row: Mapping[str, Any]) -> float | None:
    """What of a trial's seconds went into evaluation; None where it was not told."""
    value = row["cost"].get("evaluation_seconds")
    return float(value) if isinstance(value, int | float) else None
