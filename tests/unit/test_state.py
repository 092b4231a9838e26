"""The fold: what each kind of event amounts to, and which reports count."""

import math
import re

import pytest

import sweeps.events
from sweeps.events import Event
from sweeps.fold import _TAKE, apply_event, fold

RUN = "0000-aa/seed-0"
SCORE = {
    "name": "loss",
    "split": "tune",
    "value": 0.5,
    "se": 0.1,
    "n": 9,
    "unscored": 1,
    "direction": "minimize",
    "item_set": None,
}
CREATED = ("sweep_created", {"name": "s", "spec": {"a": 1}, "versions": {}, "space": {}})
SUGGESTED = (
    "suggested",
    {"trial": "0000-aa", "order": 0, "config": {"x": 1}, "parameters": {"x": 1}, "choices": {"x": 1}},
)


def lease(attempt=0, start=0, target=3, **more):
    body = {"lease": f"l{attempt}", "run": RUN, "attempt": attempt, "from_resource": start, "from_checkpoint": None}
    return "lease_started", {**body, "milestones": [3, 9], "target": target, "changes": None, **more}


def report(resource, attempt=0, value=0.5, **more):
    body = {"lease": f"l{attempt}", "run": RUN, "attempt": attempt, "resource": resource, "telemetry": {"a": None}}
    body |= {"scores": [{**SCORE, "value": value}], "checkpoint": f"checkpoint-{resource}", "worker_seconds": 2.0}
    return "reported", {**body, **more}


def folded(*events):
    listed = [CREATED, ("driver_started", {"pid": 1, "host": "h", "version": "0"}), SUGGESTED, *events]
    return fold(Event(kind, body, i + 1, 100.0 + i) for i, (kind, body) in enumerate(listed))


def test_every_kind_of_the_contract_is_taken_in():
    listed = re.findall(r"^    ([a-z_]+) +\{", sweeps.events.__doc__, re.MULTILINE)
    assert len(listed) > 15
    passed_over = {"driver_ended", "phase"}  # a phase is folded by itself, from what it holds (`sweeps.inner`)
    assert set(listed) - passed_over <= set(_TAKE)


def test_a_run_goes_through_its_phases():
    state = folded(lease())
    run = state.runs[RUN]
    assert (run.phase, run.attempt, run.lease, run.target, run.order) == ("running", 0, "l0", 3, 0)
    apply_event(state, Event(*report(3), 10, 200.0))
    assert run.reports[3].scores["tune/loss"].value == 0.5
    assert math.isnan(run.reports[3].telemetry["a"])
    assert (run.seconds, run.newest.resource, run.reports[3].time) == (2.0, 3, 200.0)
    for kind, body, phase in [
        ("lease_ended", {"lease": "l0", "run": RUN, "reason": "stopped"}, "waiting"),
        ("decided", {"run": RUN, "resource": 3, "action": "promote", "target": 9, "reason": ""}, "waiting"),
        (*lease(target=9), "running"),
        ("lease_ended", {"lease": "l0", "run": RUN, "reason": "interrupted"}, "interrupted"),
        ("run_ended", {"run": RUN, "state": "stopped", "reason": "why"}, "stopped"),
    ]:
        apply_event(state, Event(kind, body))
        assert run.phase == phase
    assert (run.target, run.leases, run.reason) == (9, 2, "why")


def test_a_dead_driver_s_running_runs_are_interrupted_and_its_time_is_counted():
    state = folded(lease())
    apply_event(state, Event("driver_started", {"pid": 2, "host": "h", "version": "0"}, 9, 500.0))
    assert state.runs[RUN].phase == "interrupted"
    assert (state.drivers, state.spent, state.driver_started_at) == (2, 2.0, 500.0)


def test_reports_of_older_attempts_are_dropped_and_earlier_ones_stay():
    state = folded(lease(), report(3, value=0.3), report(9, value=0.9), lease(attempt=1, start=3, target=9))
    run = state.runs[RUN]
    assert sorted(run.reports) == [3, 9]
    apply_event(state, Event(*report(5, attempt=0)))
    assert 5 not in run.reports
    apply_event(state, Event(*report(9, attempt=1, value=0.1)))
    assert (run.reports[9].scores["tune/loss"].value, run.reports[9].attempt) == (0.9, 0)
    apply_event(state, Event(*report(5, attempt=1)))
    assert run.reports[5].attempt == 1


def test_a_checkpoint_made_again_moves_and_its_score_stays():
    state = folded(lease(), report(3, value=0.3), lease(attempt=1))
    gone = {"run": RUN, "attempt": 0, "resource": 3, "bytes": 9}
    apply_event(state, Event("checkpoint_deleted", gone))
    assert state.runs[RUN].reports[3].deleted
    body = {"run": RUN, "resource": 3, "action": "continue", "reason": "", "attempt": 1, "checkpoint": "checkpoint-3"}
    apply_event(state, Event("decided", body))
    kept = state.runs[RUN].reports[3]
    assert (kept.attempt, kept.deleted, kept.scores["tune/loss"].value) == (1, False, 0.3)
    apply_event(state, Event("checkpoint_deleted", gone))
    assert not state.runs[RUN].reports[3].deleted


def test_a_replayed_report_points_to_the_folder_that_holds_it():
    state = folded(lease(), lease(attempt=1, start=3), report(3, attempt=1, checkpoint_attempt=0))
    assert state.runs[RUN].reports[3].attempt == 0


@pytest.mark.parametrize(("final", "phase"), [(False, "interrupted"), (True, "failed")])
def test_failures_are_kept_with_what_the_retry_changes(final, phase):
    body = {
        "lease": "l0",
        "run": RUN,
        "attempt": 0,
        "kind": "oom",
        "message": "full",
        "traceback": "tb",
        "final": final,
    }
    run = folded(lease(), ("failed", {**body, "changes": {"micro_batch_size": 1}})).runs[RUN]
    assert (run.phase, run.reason, run.changes) == (phase, "full", {"micro_batch_size": 1})
    assert run.failures[0].kind == "oom"
    assert run.lease is None


def test_soups_finals_and_the_rest():
    state = folded(
        lease(),
        ("stop_requested", {"by": "command"}),
        ("soup_started", {"soup": "a", "method": "greedy", "metric": "tune/loss", "ingredients": [{"run": RUN}]}),
        ("soup_scored", {"soup": "a", "mixture": [[RUN, 1.0]], "score": SCORE}),
        ("soup_decided", {"soup": "a", "run": RUN, "decision": "accept", "score": 1, "best": 1, "reason": ""}),
        ("soup_finished", {"soup": "a", "ingredients": [RUN], "folder": "f", "score": SCORE, "hash": "h"}),
        ("final_frozen", {"candidates": [{"role": "winner", "run": RUN}]}),
        ("test_opened", {"by": "final", "candidates": [], "metrics": []}),
        ("final_scored", {"role": "winner", "candidate": RUN, "scores": [{**SCORE, "split": "test"}], "seed": 0}),
        ("verdict", {"left": "soup", "right": "winner", "p": 0.5}),
        ("something_new", {"x": 1}),
        ("sweep_finished", {"trials": 1, "failed": 0, "best": None, "seconds": 1.0}),
    )
    soup = state.soups["a"]
    assert (len(soup.scored), len(soup.decisions), soup.finished["hash"]) == (1, 1, "h")
    assert state.candidates == [{"role": "winner", "run": RUN}]
    assert state.finals[0]["scores"]["test/loss"].value == 0.5
    assert (state.test_openings, len(state.verdicts), state.stop, state.finished["trials"]) == (1, 1, "command", 1)
    assert (state.name, state.spec, state.seq, state.started_at) == ("s", {"a": 1}, 15, 100.0)
