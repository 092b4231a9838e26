"""The fold: what the ledger's events amount to. The engine, the leaderboard and every page read this and nothing else.

Which reports count
    A run keeps one report a resource: the first that the ledger has. A report of an older attempt than the run's newest is
    dropped. What an older attempt had reported before stays for good, also above the point that the newer attempt starts
    from: the newer attempt reports those resources again, and nothing is appended for them. One case leaves a trace: the
    checkpoint behind a kept report was torn or lost, and the newer attempt made it again. Then a `decided` event carries
    `attempt` and `checkpoint`, and the report points there; its score stays the one that was decided on.

Keys beside those listed in `sweeps.events`
    suggested: milestones (the trial's own), baseline (its name, of trial 0 where that is one). lease_started: target, replay, why (new, again, promoted, seed). reported:
    checkpoint_attempt (whose folder holds the checkpoint, where it is not `attempt`: a report made again from a checkpoint).
    decided: target (the milestone the run now goes for), attempt and checkpoint (above). failed: changes (for the retry).

Kinds this version does not know change nothing, so that an older reader shows what it understands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from evaluators.base import Score
from sweeps.budget import with_budget
from sweeps.changes import with_priority
from sweeps.events import Event
from sweeps.failures import Failure, halved
from sweeps.fitting import TooLarge
from sweeps.searchers.base import Suggestion
from sweeps.state import ReportState, Round, RunState, SoupState, SweepState, TrialState, from_number


def fold(events: Iterable[Event]) -> SweepState:
    """The state after the events."""
    state = SweepState()
    for event in events:
        apply_event(state, event)
    return state


def apply_event(state: SweepState, event: Event) -> None:
    """Let a state take in one event."""
    take = _TAKE.get(event.kind)
    if take is not None:
        take(state, event.body, event)
    state.updated_at = event.time
    state.seq = event.seq


def _scores(records: Iterable[Mapping[str, Any]]) -> dict[str, Score]:
    scores = (Score.from_record(record) for record in records)
    return {score.key: score for score in scores}


def _sweep_created(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.name, state.spec, state.started_at = body["name"], body["spec"], event.time


def _driver_started(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.spent, state.ended_at = state.seconds_used, 0.0
    state.drivers += 1
    state.driver, state.driver_ended, state.driver_ended_why = dict(body), None, ""
    state.driver_started_at = event.time
    state.stop = state.held_back = None
    state.unplaced = frozenset()
    for run in state.runs.values():
        if run.phase == "running":
            run.phase, run.lease = "interrupted", None


def _budget_changed(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    """Another round: the final step so far is set aside, and what the end of the last round stopped waits again."""
    state.spec = with_budget(state.spec, body)
    if state.candidates:
        state.earlier.append(Round(len(state.searched), state.candidates, state.finals, state.verdicts))
    state.candidates, state.finals, state.verdicts, state.finished = [], [], [], None
    for run in state.runs.values():
        if run.phase == "stopped":
            run.phase, run.reason = "waiting" if run.target in run.reports else "interrupted", ""


def _priority_changed(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.spec = with_priority(state.spec, body)
    state.priority_before = body["before"]


def _suggested(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    suggestion = Suggestion(
        parameters=body["parameters"],
        choices=body["choices"],
        distributions=body.get("distributions") or {},
        attributes=body.get("attributes") or {},
    )
    state.trials[body["trial"]] = TrialState(
        body["trial"], body["order"], body["config"], suggestion, body.get("duplicate_of"), body.get("baseline")
    )


def _run(state: SweepState, name: str) -> RunState:
    if name not in state.runs:
        trial, _, seed = name.partition("/seed-")
        state.runs[name] = RunState(trial, int(seed), state.trials[trial].order)
    return state.runs[name]


def _lease_started(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    run = _run(state, body["run"])
    run.phase, run.lease, run.reason = "running", body["lease"], ""
    run.attempt, run.heard, run.reached = body["attempt"], event.time, 0
    run.leases += 1
    run.target = body["target"] if "target" in body else body["milestones"][0]
    run.changes = dict(body.get("changes") or {})


def _adjusted(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    run = _run(state, body["run"])
    run.changes, run.adjusted = dict(body["changes"]), body["reason"]


def _reported(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    run = state.runs[body["run"]]
    if body["attempt"] < run.attempt or body["resource"] in run.reports:
        return
    run.heard = event.time
    state.tuned_after_test += state.test_openings > 0
    run.seconds += body.get("worker_seconds") or 0.0
    run.reports[body["resource"]] = ReportState(
        resource=body["resource"],
        attempt=body.get("checkpoint_attempt", body["attempt"]),
        scores=_scores(body["scores"]),
        telemetry={name: from_number(value) for name, value in (body.get("telemetry") or {}).items()},
        checkpoint=body.get("checkpoint"),
        time=event.time,
    )


def _decided(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    run = state.runs[body["run"]]
    if "target" in body:
        run.target = body["target"]
    if "checkpoint" in body:
        kept = run.reports[body["resource"]]
        run.reports[body["resource"]] = replace(
            kept, attempt=body["attempt"], checkpoint=body["checkpoint"], deleted=False
        )


def _lease_ended(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    run = state.runs[body["run"]]
    run.phase = "interrupted" if body["reason"] == "interrupted" else "waiting"
    run.lease = None


def _failed(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    run = _run(state, body["run"])
    config = {**state.trials[run.trial].config, **run.changes}
    if body["kind"] == "oom" and "micro_batch_size" in config:
        goes_on = (body.get("changes") or halved(config) or {"micro_batch_size": 1})["micro_batch_size"]
        state.too_large.append(TooLarge(run.id, config, goes_on))
    run.failures.append(Failure(body["kind"], body["message"], body.get("traceback", "")))
    run.phase = "failed" if body["final"] else "interrupted"
    run.lease, run.reason = None, body["message"]
    if body.get("changes"):
        run.changes = dict(body["changes"])


def _run_ended(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    run = state.runs[body["run"]]
    run.phase, run.reason, run.lease = body["state"], body.get("reason", ""), None


def _checkpoint_deleted(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    report = state.runs[body["run"]].reports.get(body["resource"])
    if report is not None and report.attempt == body["attempt"]:
        report.deleted = True


def _held_back(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.held_back = None if body["by"] is None else (body["by"], body["priority"])


def _unplaced(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.unplaced = frozenset(body["leases"])


def _stop_requested(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.stop = body["by"]


def _probed(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.probes[body["run"]] = dict(body)


def _final_frozen(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.candidates = [dict(candidate) for candidate in body["candidates"]]


def _test_opened(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.test_openings += 1


def _final_scored(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.finals.append({**body, "scores": _scores(body["scores"])})


def _baseline_scored(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.baselines.append({**body, "scores": _scores(body["scores"])})


def _verdict(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.verdicts.append(dict(body))


def _soup_started(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.soups[body["soup"]] = SoupState(
        body["soup"],
        body["method"],
        body["metric"],
        [dict(ingredient) for ingredient in body["ingredients"]],
        settings=dict(body.get("settings") or {}),
    )


def _soup_scored(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.soups[body["soup"]].scored.append(dict(body))


def _soup_decided(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.soups[body["soup"]].decisions.append(dict(body))
    state.soups[body["soup"]].told.append({"kind": event.kind, **body})


def _soup_noted(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.soups[body["soup"]].notes.append(dict(body))
    state.soups[body["soup"]].told.append({"kind": event.kind, **body})


def _soup_answered(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.soups[body["soup"]].answers.append(dict(body))


def _soup_finished(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.soups[body["soup"]].finished = dict(body)


def _driver_ended(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.driver_ended, state.ended_at = body["reason"], event.time
    state.driver_ended_why = body.get("why", "")


def _sweep_finished(state: SweepState, body: Mapping[str, Any], event: Event) -> None:
    state.finished = dict(body)


_TAKE: dict[str, Callable[[SweepState, Mapping[str, Any], Event], None]] = {
    "sweep_created": _sweep_created,
    "driver_started": _driver_started,
    "budget_changed": _budget_changed,
    "priority_changed": _priority_changed,
    "suggested": _suggested,
    "adjusted": _adjusted,
    "lease_started": _lease_started,
    "reported": _reported,
    "decided": _decided,
    "lease_ended": _lease_ended,
    "failed": _failed,
    "run_ended": _run_ended,
    "checkpoint_deleted": _checkpoint_deleted,
    "held_back": _held_back,
    "unplaced": _unplaced,
    "stop_requested": _stop_requested,
    "probed": _probed,
    "final_frozen": _final_frozen,
    "test_opened": _test_opened,
    "final_scored": _final_scored,
    "baseline_scored": _baseline_scored,
    "verdict": _verdict,
    "soup_started": _soup_started,
    "soup_scored": _soup_scored,
    "soup_decided": _soup_decided,
    "soup_noted": _soup_noted,
    "soup_answered": _soup_answered,
    "soup_finished": _soup_finished,
    "driver_ended": _driver_ended,
    "sweep_finished": _sweep_finished,
}
