"""Killed at any append, a sweep resumes: nothing lost, nothing doubled, the same suggestions and decisions."""

import random

import pytest
from plans import FINITE, LINE, backend, curve, plan

from sweeps.checkpoints import newest_whole
from sweeps.failures import Failure
from sweeps.fold import fold
from sweeps.ledger import Ledger
from sweeps.replay import differences
from sweeps.simulate import Killed, drive, kill_at
from sweeps.trial import Attempt, Lease, Run

BOOKKEEPING = {"lease", "attempt", "worker_seconds", "telemetry", "checkpoint", "checkpoint_attempt"}
KINDS = ("suggested", "reported", "decided", "run_ended")


def facts(root):
    """What must be the same whatever happened to the drivers."""
    found = []
    for event in Ledger.read(root).events():
        if event.kind in KINDS and not (event.kind == "decided" and "checkpoint" in event.body):
            found.append((event.kind, {k: v for k, v in event.body.items() if k not in BOOKKEEPING}))
    return found


def a_plan(seed):
    choice = random.Random(seed)
    return (
        plan(
            trials=choice.randint(4, 12),
            method=choice.choice(["random", "random", "tpe", "grid"]),
            stop=choice.choice(["asha", "asha", "asha", "none"]),
            first=choice.choice([1, 2]),
            total=choice.choice([9, 14]),
            eta=choice.choice([2, 3]),
            finalists=choice.randint(1, 2),
            space=FINITE,
        )
        if choice.random() < 0.4
        else plan(
            trials=choice.randint(4, 12),
            method=choice.choice(["random", "tpe"]),
            stop=choice.choice(["asha", "asha", "none"]),
            first=choice.choice([1, 2]),
            total=choice.choice([9, 14]),
            eta=choice.choice([2, 3]),
            finalists=choice.randint(1, 2),
            space=LINE,
            seeds={"tune": choice.choice([[0], [0], [0, 1]])},
        )
    )


def killed_and_resumed(sweep, root, simulated, choice, kills, tear=0.0, within=25):
    """Drive with `kills` kills at random appends, the first of the first `within`; how many happened."""
    happened = 0
    for _ in range(kills):
        try:
            drive(sweep, root, simulated, kill_at(choice.randrange(within), choice.random() < 0.5))
            return happened
        except Killed:
            happened += 1
            if choice.random() < tear:
                state = fold(Ledger.read(root).events())
                for run in state.runs.values():
                    listed = simulated.checkpoints.listed(Run.parse(run.id))
                    if run.phase == "running" and listed:
                        simulated.checkpoints.tear(listed[0].folder)
    drive(sweep, root, simulated)
    return happened


def doubled(root):
    seen = [(e.body["run"], e.body["resource"]) for e in Ledger.read(root).events() if e.kind == "reported"]
    return len(seen) - len(set(seen))


@pytest.mark.parametrize("seed", range(60))
def test_one_at_a_time_a_killed_sweep_decides_as_an_uninterrupted_one(tmp_path, seed):
    sweep, choice = a_plan(seed), random.Random(1000 + seed)
    drive(sweep, tmp_path / "plain", backend(tmp_path / "plain"))
    root = tmp_path / "killed"
    appends = len({e.time for e in Ledger.read(tmp_path / "plain").events()})
    happened = killed_and_resumed(sweep, root, backend(root), choice, kills=1 + seed % 4, within=appends)
    assert happened
    assert facts(root) == facts(tmp_path / "plain")
    assert doubled(root) == 0
    assert differences(sweep, Ledger.read(root).events()) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_torn_checkpoint_is_passed_over_and_changes_no_decision(tmp_path, seed):
    sweep, choice = a_plan(seed), random.Random(2000 + seed)
    drive(sweep, tmp_path / "plain", backend(tmp_path / "plain"))
    root = tmp_path / "torn"
    killed_and_resumed(sweep, root, backend(root), choice, kills=6, tear=1.0)
    assert facts(root) == facts(tmp_path / "plain")
    assert doubled(root) == 0


@pytest.mark.parametrize("seed", range(30))
def test_several_at_once_decisions_follow_from_the_recorded_order(tmp_path, seed):
    sweep, choice = a_plan(seed), random.Random(3000 + seed)
    root, rate = tmp_path / "s", 0.15

    def faults(lease, resource):
        draw = random.Random(f"{seed} {lease.id} {resource}").random()
        return Failure("node", "the node went away") if draw < rate else None

    simulated = backend(root, slots=choice.randint(2, 5), faults=faults, seconds=lambda c: 0.5 + c["kwargs"]["x"])
    killed_and_resumed(sweep, root, simulated, choice, kills=3, tear=0.3)
    assert differences(sweep, Ledger.read(root).events()) == []
    assert doubled(root) == 0
    state = fold(Ledger.read(root).events())
    assert {run.phase for run in state.runs.values()} <= {"finished", "stopped", "failed"}
    reached = {run.trial for run in state.runs.values() if run.phase == "finished"}
    assert len(reached) >= min(sweep.finalists, len({r.trial for r in state.runs.values() if r.phase != "failed"}))


def test_the_report_of_a_checkpoint_that_never_reached_the_ledger_is_made_again(tmp_path):
    sweep, root = plan(trials=1, total=9, first=3), tmp_path / "s"
    simulated = backend(root)
    with pytest.raises(Killed):
        drive(sweep, root, simulated, kill_at(3, written=False))
    assert [e.kind for e in Ledger.read(root).events()][-1] == "lease_started"
    assert [c.resource for c in simulated.checkpoints.listed(next(iter_runs(root)))] == [3]
    drive(sweep, root, simulated)
    leases = [e.body for e in Ledger.read(root).events() if e.kind == "lease_started"]
    assert (leases[1]["from_resource"], leases[1]["replay"], leases[1]["attempt"]) == (3, True, 1)
    state = fold(Ledger.read(root).events())
    reports = next(iter(state.runs.values())).reports
    assert sorted(reports) == [3, 9]
    assert (reports[3].attempt, reports[3].checkpoint, reports[9].attempt) == (0, "checkpoint-3", 1)


def test_a_report_between_milestones_is_made_again_from_its_checkpoint_too(tmp_path):
    """A worker that was cut off wrote the checkpoint, and what it had to say of it never came."""
    sweep, root = plan(trials=1, total=9, first=3), tmp_path / "s"
    simulated = backend(root)
    with pytest.raises(Killed):
        drive(sweep, root, simulated, kill_at(3, written=True))
    run = next(iter_runs(root))
    simulated.checkpoints.write(Lease("l", Attempt(run, 0), {}, (9,)), 5)
    drive(sweep, root, simulated)
    state = fold(Ledger.read(root).events())
    assert sorted(state.runs[run.id].reports) == [3, 5, 9]
    assert differences(sweep, Ledger.read(root).events()) == []


def test_a_checkpoint_made_again_is_found_where_it_lies_now(tmp_path):
    sweep, root = plan(trials=1, total=27, first=3), tmp_path / "s"
    simulated = backend(root)
    with pytest.raises(Killed):
        drive(sweep, root, simulated, kill_at(4, written=True))
    run = next(iter_runs(root))
    for checkpoint in simulated.checkpoints.listed(run):
        if checkpoint.resource == 9:
            simulated.checkpoints.tear(checkpoint.folder)
    torn = []
    assert newest_whole(simulated.checkpoints, run, 27, torn.append).resource == 3
    assert [c.resource for c in torn] == [9]
    drive(sweep, root, simulated)
    reports = fold(Ledger.read(root).events()).runs[run.id].reports
    assert {r: report.attempt for r, report in reports.items()} == {3: 0, 9: 1, 27: 1}
    assert doubled(root) == 0


def test_pipelines_without_checkpoints_begin_again_and_go_on(tmp_path):
    sweep = plan(trials=9, total=9)
    drive(sweep, tmp_path / "plain", backend(tmp_path / "plain", checkpoints=None))
    root, choice = tmp_path / "killed", random.Random(0)
    assert killed_and_resumed(sweep, root, backend(root, checkpoints=None), choice, kills=8, within=12) > 3
    assert facts(root) == facts(tmp_path / "plain")
    assert doubled(root) == 0


def test_a_finished_sweep_resumes_to_nothing(tmp_path):
    sweep, root = plan(trials=6, total=9), tmp_path / "s"
    drive(sweep, root, backend(root))
    before = facts(root)
    assert drive(sweep, root, backend(root)).over
    assert facts(root) == before


def test_losing_the_live_ledger_costs_nothing_that_was_shipped(tmp_path):
    sweep, root = plan(trials=6, total=9), tmp_path / "s"
    drive(sweep, root, backend(root))
    before = facts(root)
    for path in root.glob("ledger.sqlite*"):
        path.unlink()
    Ledger.open(root).close()
    assert facts(root) == before


def test_the_replay_check_sees_a_decision_that_does_not_follow(tmp_path):
    sweep, root = plan(trials=9, total=9), tmp_path / "s"
    drive(sweep, root, backend(root, slots=2))
    events = list(Ledger.read(root).events())
    assert differences(sweep, events) == []
    noticed = 0
    for index, event in enumerate(events):
        if event.kind == "decided":
            other = {"stop": "continue", "continue": "stop", "promote": "stop"}[event.body["action"]]
            wrong = type(event)("decided", {**event.body, "action": other})
            assert differences(sweep, [*events[:index], wrong, *events[index + 1 :]])
        if event.kind == "reported":
            score = event.body["scores"][0]
            wrong = {**event.body, "scores": [{**score, "value": -score["value"]}]}
            noticed += bool(differences(sweep, [*events[:index], type(event)("reported", wrong), *events[index + 1 :]]))
    assert noticed > 5
    assert differences(plan(trials=9, total=9, method={"type": "random", "seed": 1}), events)


def test_curves_cross_so_that_order_matters():
    slow, fast = ({"kwargs": {"x": x, "k": 1}} for x in (0.3, 0.9))
    assert curve(slow, 1) > curve(fast, 1)
    assert curve(slow, 14) < curve(fast, 14)


def iter_runs(root):
    return iter([Run.parse(run) for run in fold(Ledger.read(root).events()).runs])
