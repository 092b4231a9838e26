"""The virtual clock: sweeps of hundreds of trials in a second, hangs noticed, calls answered."""

import pytest
from plans import backend, plan

from sweeps.engine import CallFailed
from sweeps.failures import Failure
from sweeps.ledger import Ledger
from sweeps.simulate import Killed, drive, kill_at


def answer(payload):
    if payload["x"] < 0:
        raise MemoryError
    return {"x": payload["x"] + 1}


def test_hundreds_of_trials_save_most_of_the_resource(tmp_path):
    def level(config, resource, seed=0):
        return (config["kwargs"]["x"] - 0.3) ** 2 + 1 / resource

    sweep = plan(trials=600, total=81, eta=3)
    engine = drive(sweep, tmp_path / "s", backend(tmp_path / "s", slots=16, of=level))
    seen = engine.snapshot()
    assert seen["trials_done"] == 600
    assert seen["resource_done"] < 0.08 * 600 * 81
    assert seen["best"]["value"] == min(level(trial.config, 81) for trial in engine.state.trials.values())


def test_slots_share_the_time(tmp_path):
    sweep, spent = plan(trials=16, stop="none", total=10), {}
    for slots in (1, 4):
        spent[slots] = drive(sweep, tmp_path / str(slots), backend(tmp_path / str(slots), slots)).snapshot()["elapsed"]
    assert spent == {1: 160.0, 4: 40.0}


def test_a_loop_that_would_hang_is_noticed(tmp_path):
    class Idle:
        over, stopping = False, False

        def tick(self):
            pass

        def ask(self):
            return None

    with pytest.raises(RuntimeError, match="hands out nothing and runs nothing"):
        backend(tmp_path).run(Idle())


def test_a_silent_trial_is_taken_for_stalled_and_goes_again(tmp_path):
    def faults(lease, resource):
        return Failure("stall", "") if lease.attempt.n == 0 and resource == 3 else None

    sweep = plan(trials=1, total=9, first=3, stall_after=60)
    engine = drive(sweep, tmp_path / "s", backend(tmp_path / "s", faults=faults))
    run = next(iter(engine.state.runs.values()))
    assert ([f.kind for f in run.failures], run.phase, run.attempt) == (["stall"], "finished", 1)


def test_telemetry_between_milestones(tmp_path):
    engine = drive(plan(trials=1, total=9), tmp_path / "s", backend(tmp_path / "s", report_every=2))
    run = next(iter(engine.state.runs.values()))
    assert sorted(run.reports) == [1, 2, 3, 4, 6, 8, 9]
    assert run.reports[4].scores == {}


def test_calls_are_answered_or_fail_with_their_kind(tmp_path):
    simulated = backend(tmp_path)
    assert simulated.call("test_simulate:answer", {"x": 1}) == {"x": 2}
    with pytest.raises(CallFailed) as caught:
        simulated.call("test_simulate:answer", {"x": -1})
    assert caught.value.failure.kind == "oom"


@pytest.mark.parametrize("written", [True, False])
def test_a_kill_happens_where_it_was_asked_for(tmp_path, written):
    with pytest.raises(Killed):
        drive(plan(), tmp_path / "s", backend(tmp_path / "s"), kill_at(2, written))
    kinds = [event.kind for event in Ledger.read(tmp_path / "s").events()]
    assert kinds == ["sweep_created", "driver_started"] + ["suggested", "lease_started"] * written
