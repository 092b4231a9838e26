"""The loop: order of leases, failures, stops, budgets, duplicates, seeds, what is kept."""

import math
import os
import random
from pathlib import Path

import pytest
from plans import FINITE, LINE, backend, curve, plan

from evaluators.base import ItemSet, Report, summarise
from sweeps.checkpoints import Checkpoint, DiskCheckpoints, newest_whole
from sweeps.engine import Engine
from sweeps.events import Event
from sweeps.failures import Failure
from sweeps.fold import fold
from sweeps.keep import Holding, Sized, surplus
from sweeps.ledger import Ledger
from sweeps.paths import SweepPaths
from sweeps.replay import differences
from sweeps.simulate import MemoryCheckpoints, drive
from sweeps.space import Axis, Choice, Space
from sweeps.standings import DUPLICATES
from sweeps.stopping import request_stop, stop_text
from sweeps.trial import Attempt, Run


class Hand:
    """An engine driven by hand."""

    def __init__(self, root, sweep, slots=1, checkpoints=True):
        self.root, self.sweep, self.now = root, sweep, 1e9
        self.paths = SweepPaths(root)
        self.kept = MemoryCheckpoints(self.paths)
        self.checkpoints = checkpoints
        fresh = not self.paths.ledger.exists()
        self.ledger = Ledger.create(root, durable=False) if fresh else Ledger.open(root, durable=False)
        self.ledger.clock = lambda: self.now
        if fresh:
            self.ledger.append([Event("sweep_created", {"name": "s", "spec": {}, "versions": {}, "space": {}})])
        self.ledger.append([Event("driver_started", {"pid": 0, "host": "", "version": ""})])
        self.engine = Engine(sweep, self.ledger, self.paths, slots, lambda: self.now, self.kept, keep_every=0)

    def report(self, lease, resource, value=0.5, **telemetry):
        self.now += 1
        item_set = ItemSet(("a", "b"))
        scores = () if value is None else (summarise("loss", "tune", "minimize", item_set, [value, value]),)
        checkpoint = None
        if self.checkpoints and value is not None:
            self.kept.write(lease, resource)
            checkpoint = f"checkpoint-{resource}"
        return self.engine.report(lease.id, Report(resource, scores, telemetry, checkpoint))

    def finish(self, lease, resource, value=0.5):
        assert self.report(lease, resource, value) == "stop"
        self.engine.ended(lease.id)

    def kinds(self, after=0):
        return [event.kind for event in self.ledger.events(after)]

    def run(self, lease):
        return self.engine.state.runs[lease.attempt.run.id]


def test_a_lease_says_all_a_worker_needs(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9))
    lease = hand.engine.ask()
    assert lease.id == f"{lease.attempt.run.trial}-s0-a0-l0"
    assert (lease.milestones, lease.from_resource, lease.from_checkpoint) == ((1, 3, 9), 0, None)
    assert (lease.replay, lease.changes) == (False, None)
    assert lease.config["kwargs"]
    assert hand.engine.ask() is None
    assert not hand.engine.over
    started = list(hand.ledger.events())[-2:]
    assert [event.kind for event in started] == ["suggested", "lease_started"]
    assert started[0].time == started[1].time


def test_report_decision_and_end_are_one_transaction(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9))
    lease = hand.engine.ask()
    before = hand.engine.state.seq
    assert hand.report(lease, 1) == "stop"
    events = list(hand.ledger.events(before))
    assert [e.kind for e in events] == ["reported", "decided", "lease_ended"]
    assert len({e.time for e in events}) == 1
    stored = hand.ledger.items(lease.attempt.run.id, 1, "loss", "tune")
    assert stored.values.tolist() == [0.5, 0.5]
    hand.engine.ended(lease.id)
    assert hand.kinds(before) == ["reported", "decided", "lease_ended"]


def test_promotions_come_before_new_trials_and_keep_their_attempt(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=9, total=9))
    leases = []
    for value in (0.1, 0.2, 0.3):
        leases.append(hand.engine.ask())
        hand.finish(leases[-1], 1, value)
    again = hand.engine.ask()
    assert again.attempt == leases[0].attempt
    assert (again.from_resource, again.milestones, again.id[-3:]) == (1, (3, 9), "-l1")
    assert Path(again.from_checkpoint) == hand.paths.checkpoint(again.attempt, 1)
    assert [e.kind for e in list(hand.ledger.events())[-2:]] == ["decided", "lease_started"]


def test_a_torn_checkpoint_makes_a_promotion_a_new_attempt(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9))
    leases = []
    for value in (0.1, 0.2, 0.3):
        leases.append(hand.engine.ask())
        if value == 0.1:
            hand.kept.tear(str(hand.paths.checkpoint(leases[0].attempt, 1)))
        hand.report(leases[-1], 1, value)
        if value == 0.1:
            hand.kept.tear(str(hand.paths.checkpoint(leases[0].attempt, 1)))
        hand.engine.ended(leases[-1].id)
    again = hand.engine.ask()
    assert (again.attempt.n, again.from_resource, again.milestones) == (1, 0, (1, 3, 9))
    assert hand.report(again, 1, 0.7) == "continue"
    assert hand.run(again).reports[1].attempt == 1
    assert hand.run(again).reports[1].scores["tune/loss"].value == 0.1


def test_the_best_goes_on_in_the_same_lease(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=9, total=9))
    for value in (0.3, 0.2):
        hand.finish(hand.engine.ask(), 1, value)
    lease = hand.engine.ask()
    assert hand.report(lease, 1, 0.1) == "continue"
    decided = list(hand.ledger.events())[-1]
    assert (decided.kind, decided.body["action"], decided.body["target"]) == ("decided", "continue", 3)
    assert hand.run(lease).target == 3
    assert hand.report(lease, 3, 0.1) == "stop"


def test_a_run_on_its_way_to_a_later_milestone_is_not_judged(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=9, total=9))
    lease = hand.engine.ask()
    hand.run(lease).target = 9
    assert [hand.report(lease, resource) for resource in (1, 3, 9)] == ["continue", "continue", "stop"]
    assert hand.run(lease).phase == "finished"


def test_telemetry_goes_on_and_is_kept(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=1, total=9, first=3))
    lease = hand.engine.ask()
    assert hand.report(lease, 1, None, **{"train/loss": math.nan}) == "continue"
    assert hand.run(lease).reports[1].telemetry.keys() == {"train/loss"}
    assert hand.kinds()[-1] == "reported"


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (math.nan, "nan", "tune/loss is nan at 3"),
        (math.inf, "nan", "tune/loss is inf at 3"),
        (None, "user", "lacks the metric tune/loss; it has a"),
    ],
)
def test_a_bad_metric_at_a_milestone_fails_that_run_alone(tmp_path, value, kind, text):
    hand = Hand(tmp_path / "s", plan(trials=2, total=9, first=3))
    lease = hand.engine.ask()
    assert hand.report(lease, 3, value, a=1.0) == "stop"
    hand.engine.ended(lease.id)
    run = hand.run(lease)
    assert (run.phase, run.failures[0].kind) == ("failed", kind)
    assert text in run.reason
    assert hand.kinds()[-3:] == ["reported", "failed", "run_ended"]
    assert not hand.engine.stopping
    assert hand.engine.ask() is not None


def test_a_pipeline_that_skips_its_milestone_fails(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=2, total=9, first=3))
    lease = hand.engine.ask()
    assert hand.report(lease, 4) == "stop"
    assert "without a report at its milestone 3" in hand.run(lease).reason
    other = hand.engine.ask()
    assert other is None
    hand.engine.ended(lease.id)
    other = hand.engine.ask()
    hand.engine.ended(other.id)
    assert "ended without reporting its milestone 3" in hand.run(other).reason


def test_out_of_memory_goes_again_with_half_the_micro_batch(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=1, total=9, first=3))
    leases = []
    while (lease := hand.engine.ask()) is not None:
        leases.append(lease)
        hand.engine.failed(lease.id, Failure("oom", "full"))
    assert [lease.changes for lease in leases] == [
        None,
        {"micro_batch_size": 2, "gradient_accumulation_steps": 2},
        {"micro_batch_size": 1, "gradient_accumulation_steps": 4},
    ]
    assert (leases[2].attempt.n, leases[2].config["micro_batch_size"]) == (2, 1)
    assert hand.run(leases[2]).phase == "failed"
    assert hand.engine.over


def test_a_retry_is_a_new_attempt_from_the_newest_whole_checkpoint(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=1, total=27, first=3))
    lease = hand.engine.ask()
    hand.report(lease, 3)
    hand.report(lease, 9)
    hand.kept.tear(str(hand.paths.checkpoint(lease.attempt, 9)))
    hand.engine.failed(lease.id, Failure("node", "gone"))
    assert hand.run(lease).phase == "interrupted"
    again = hand.engine.ask()
    assert (again.attempt.n, again.from_resource, again.milestones) == (1, 3, (9, 27))
    assert hand.report(again, 9) == "continue"
    assert hand.kinds().count("reported") == 2
    hand.finish(again, 27)
    assert hand.run(again).phase == "finished"


def test_restarts_have_a_budget(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=1, total=9, on_failure={"max_restarts": 2}))
    attempts = []
    while (lease := hand.engine.ask()) is not None:
        attempts.append(lease.attempt.n)
        hand.engine.failed(lease.id, Failure("node", "gone"))
    assert attempts == [0, 1, 2]
    assert hand.engine.over


def test_restarts_are_counted_across_drivers_and_a_driver_that_died_is_none(tmp_path):
    sweep = plan(trials=1, total=9, on_failure={"max_restarts": 2})
    attempts, hand = [], None
    for kind in ("node", None, "stall", None, "node"):
        if hand is not None:
            hand.ledger.close()
        hand = Hand(tmp_path / "s", sweep)
        lease = hand.engine.ask()
        attempts.append(lease.attempt.n)
        if kind is not None:
            hand.engine.failed(lease.id, Failure(kind, "gone"))
    assert attempts == [0, 1, 2, 3, 4]
    assert [failure.kind for failure in hand.run(lease).failures] == ["node", "stall", "node"]
    assert (hand.run(lease).phase, hand.engine.ask(), hand.engine.over) == ("failed", None, True)


def test_the_searcher_never_sees_a_number_of_a_half_dead_trial(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9, on_failure={"max_restarts": 1}))

    def told():
        return [(one.state, one.values) for one in hand.engine._standings.history()]

    lost = hand.engine.ask()
    hand.engine.failed(lost.id, Failure("stall", "silent"))
    assert hand.report(lost, 1, 0.01) == "stop"
    assert told() == [("running", None)], "its node was healed, and it reported"
    again = hand.engine.ask()
    assert hand.report(lost, 1, 0.01) == "stop"
    assert told() == [("running", None)], "its successor has begun"
    hand.finish(again, 1, 0.7)
    assert hand.report(lost, 3, 0.01) == "stop"
    assert told() == [("complete", (0.7,))], "its successor has reported"
    other = hand.engine.ask()
    for _ in range(2):
        hand.engine.failed(other.id, Failure("node", "gone"))
        other = hand.engine.ask()
    assert told()[1] == ("failed", None), "its restarts are used up"


def test_the_same_error_everywhere_stops_the_sweep(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=9, total=9))
    for i in range(3):
        assert not hand.engine.stopping
        hand.engine.failed(hand.engine.ask().id, Failure("user", f"no column 'answer' in row {i}"))
    assert hand.engine.stopping
    assert hand.engine.state.stop == "same-error"
    assert hand.engine.abort.message == "no column 'answer' in row 2"
    assert hand.engine.ask() is None
    assert hand.engine.over


def test_different_errors_or_one_result_do_not(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=20, total=9))
    for i in range(8):
        hand.engine.failed(hand.engine.ask().id, Failure("user", "ab"[i % 2]))
    assert not hand.engine.stopping
    hand = Hand(tmp_path / "t", plan(trials=20, total=9))
    hand.finish(hand.engine.ask(), 1)
    for _ in range(8):
        hand.engine.failed(hand.engine.ask().id, Failure("user", "a"))
    assert not hand.engine.stopping


def test_late_words_of_a_lease_are_dropped(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9))
    lease = hand.engine.ask()
    hand.engine.failed(lease.id, Failure("stall", "silent"))
    before = hand.engine.state.seq
    assert hand.report(lease, 1) == "stop"
    hand.engine.ended(lease.id)
    hand.engine.failed(lease.id, Failure("node", "again"))
    assert hand.engine.report("nonsense", Report(1)) == "stop"
    assert hand.engine.state.seq == before


def test_stalled_leases_are_named(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9, first=3, stall_after=60), slots=2)
    first, second = hand.engine.ask(), hand.engine.ask()
    hand.now += 50
    hand.report(second, 1, None)
    assert hand.engine.stalled() == []
    hand.now += 20
    assert hand.engine.stalled() == [first.id]


def test_a_lease_that_moves_is_no_stalled_one_and_nothing_is_written(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9, first=3, stall_after=60), slots=2)
    first, second = hand.engine.ask(), hand.engine.ask()
    before, run = hand.engine.state.seq, hand.engine.state.runs[first.attempt.run.id]
    hand.now += 50
    hand.engine.moved(first.id, 2)
    hand.engine.moved("nonsense", 2)
    assert (run.done, hand.engine.state.seq) == (2, before)
    hand.now += 20
    assert hand.engine.stalled() == [second.id]
    hand.engine.moved(first.id, None)
    hand.now += 61
    assert hand.engine.stalled() == [first.id, second.id]
    assert hand.engine.state.runs[second.attempt.run.id].done == 0
    hand.engine.failed(first.id, Failure("stall", "silent"))
    assert run.done == 0, "what was not reported is lost with the lease"


def test_a_stop_ends_leases_at_their_next_report_and_resume_goes_on(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9, first=3))
    lease = hand.engine.ask()
    hand.engine.request_stop("ctrl-c")
    hand.engine.request_stop("command")
    assert hand.kinds().count("stop_requested") == 1
    assert not hand.engine.over
    assert hand.report(lease, 1) == "stop"
    hand.engine.ended(lease.id)
    assert hand.run(lease).phase == "interrupted"
    assert hand.engine.over
    hand.ledger.close()
    kept, hand = hand.kept, Hand(tmp_path / "s", plan(trials=3, total=9, first=3))
    assert not hand.engine.stopping
    again = hand.engine.ask()
    assert again.attempt == Attempt(lease.attempt.run, 1)
    assert kept.whole(kept.listed(lease.attempt.run)[0])


def test_a_worker_lost_while_stopping_is_no_failure(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9, first=3, on_failure={"max_restarts": 0}))
    lease = hand.engine.ask()
    hand.engine.request_stop("ctrl-c")
    hand.engine.failed(lease.id, Failure("node", "killed"))
    assert (hand.run(lease).phase, hand.run(lease).failures) == ("interrupted", [])
    assert hand.engine.over


def test_a_stop_request_is_polled_and_an_old_one_ignored(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9))
    hand.paths.stop_request.touch()
    os.utime(hand.paths.stop_request, (hand.now - 5, hand.now - 5))
    hand.engine.tick()
    assert not hand.engine.stopping
    assert not hand.paths.stop_request.exists()
    hand.paths.stop_request.touch()
    hand.engine.tick()
    assert hand.engine.state.stop == "command"
    assert not hand.paths.stop_request.exists()


def test_a_stop_gives_running_leases_its_grace_and_a_later_one_can_only_shorten_it(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9, first=3))
    lease = hand.engine.ask()
    assert not hand.engine.overdue
    request_stop(hand.paths, stop_text(30.0))
    hand.engine.tick()
    assert (hand.engine.stopping, hand.engine.overdue) == (True, False)
    hand.now += 10
    request_stop(hand.paths, stop_text(60.0))
    hand.engine.tick()
    hand.now += 19
    assert not hand.engine.overdue
    hand.now += 1
    assert hand.engine.overdue
    hand.engine.failed(lease.id, Failure("node", "ended"))
    assert hand.run(lease).phase == "interrupted"
    assert hand.kinds().count("stop_requested") == 1


def test_a_stop_without_grace_is_overdue_at_once_and_the_budgets_never(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9, first=3))
    hand.engine.ask()
    hand.engine.request_stop("budget")
    hand.now += 1e6
    assert not hand.engine.overdue
    request_stop(hand.paths, stop_text(0.0))
    os.utime(hand.paths.stop_request, (hand.now, hand.now))
    hand.engine.tick()
    assert hand.engine.overdue


def test_who_goes_first_on_a_shared_cluster_is_an_event_once_and_ends_with_the_driver(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9, first=3))
    for first in (None, "high", "high", None, None, "high"):
        hand.engine.held_back(first, 5)
    assert hand.kinds().count("held_back") == 3
    assert fold(hand.ledger.events()).held_back == ("high", 5)
    assert hand.engine.ask() is not None, "the loop itself decides nothing by it"
    hand.ledger.close()
    assert Hand(tmp_path / "s", plan(trials=3, total=9, first=3)).engine.state.held_back is None


def test_leases_without_a_place_are_an_event_once_and_none_of_them_outlives_its_lease(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=3, total=9, first=3))
    lease = hand.engine.ask()
    run = hand.engine.state.runs[lease.attempt.run.id]
    for leases in ([], [lease.id], [lease.id], ["nobody's", lease.id]):
        hand.engine.unplaced(leases)
    assert hand.kinds().count("unplaced") == 1
    assert hand.engine.state.phase_of(run) == "unplaced"
    hand.engine.failed(lease.id, Failure("node", "gone"))
    hand.engine.unplaced([])
    assert hand.kinds().count("unplaced") == 1
    assert hand.engine.state.phase_of(run) == "interrupted"
    hand.ledger.close()
    assert Hand(tmp_path / "s", plan(trials=3, total=9, first=3)).engine.state.unplaced == frozenset()


def test_hours_count_all_drivers_together_and_end_what_waits(tmp_path):
    sweep = plan(trials=100, total=9, budget={"hours": 1})
    hand = Hand(tmp_path / "s", sweep)
    hand.finish(hand.engine.ask(), 1)
    hand.now += 3000
    hand.finish(hand.engine.ask(), 1)
    hand.ledger.close()
    later = hand.now + 1e6
    hand = Hand(tmp_path / "s", sweep)
    hand.ledger.drop()
    ledger = Ledger.open(tmp_path / "s", durable=False)
    ledger.clock = lambda: later
    ledger.append([Event("driver_started", {"pid": 0, "host": "", "version": ""})])
    now = [later]
    engine = Engine(sweep, ledger, hand.paths, 1, lambda: now[0], hand.kept)
    assert engine.ask() is not None
    now[0] += 700
    engine.tick()
    assert engine.state.stop == "budget"
    lease = next(iter(engine._leases))
    engine.report(lease, Report(1, (summarise("loss", "tune", "minimize", ItemSet(("a",)), [0.1]),)))
    engine.ended(lease)
    assert engine.over
    assert {run.phase for run in engine.state.runs.values()} == {"stopped"}


def test_a_configuration_suggested_twice_is_not_run_twice(tmp_path):
    sweep = plan(trials=30, total=9, space=FINITE, method="random")
    engine = drive(sweep, tmp_path / "s", backend(tmp_path / "s"))
    duplicates = [t for t in engine.state.trials.values() if t.duplicate_of]
    assert duplicates
    assert all(engine.state.trials[t.duplicate_of].config == t.config for t in duplicates)
    assert len(engine.state.runs) == 6
    snapshot = engine.snapshot()
    assert snapshot["trials_done"] == snapshot["trials_started"] == snapshot["trials_total"]


def test_a_space_that_is_used_up_in_all_but_name_ends_the_asking(tmp_path):
    space = Space((Axis("kwargs.x", "kwargs.x", Choice((0.1, 0.1, 0.1))), Axis("kwargs.k", "kwargs.k", Choice((1,)))))
    engine = drive(plan(trials=None, space=space, budget={"hours": 9}), tmp_path / "s", backend(tmp_path / "s"))
    assert len(engine.state.runs) == 1
    assert len(engine.state.trials) == DUPLICATES + 1
    assert [run.phase for run in engine.state.runs.values()] == ["finished"]


def test_duplicates_are_told_as_their_originals(tmp_path):
    engine = drive(plan(trials=30, total=9, space=FINITE), tmp_path / "s", backend(tmp_path / "s"))
    history = engine._standings.history()
    for trial, entry in zip(engine.state.trials.values(), history, strict=True):
        original = trial.duplicate_of or trial.id
        run = engine.state.runs[Run(original, 0).id]
        assert entry.values == (run.newest.scores["tune/loss"].value,)
        assert entry.suggestion == trial.suggestion


def test_diverged_runs_are_told_as_worse_than_the_worst(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=9, total=9))
    hand.finish(hand.engine.ask(), 1, math.nan)
    told = hand.engine._standings.history
    assert told()[0].state == "failed"
    hand.finish(hand.engine.ask(), 1, 0.2)
    hand.finish(hand.engine.ask(), 1, 0.5)
    lease = hand.engine.ask()
    hand.engine.failed(lease.id, Failure("nan", "loss is nan"))
    assert lease.from_resource == 1
    assert [(t.state, t.values, t.resource) for t in told()] == [
        ("complete", (pytest.approx(0.8),), 1),
        ("complete", (pytest.approx(0.8),), 1),
        ("complete", (pytest.approx(0.5),), 1),
    ]
    hand.engine.failed(hand.engine.ask().id, Failure("user", "not told"))
    assert told()[-1].state == "failed"


def test_several_seeds_follow_a_trial_that_goes_on(tmp_path):
    sweep = plan(trials=9, total=9, finalists=1, seeds={"tune": [0, 1, 2]})
    engine = drive(sweep, tmp_path / "s", backend(tmp_path / "s", slots=2))
    reached = {}
    for run in engine.state.runs.values():
        reached.setdefault(run.trial, {})[run.seed] = max(run.reports)
    finished = [seeds for seeds in reached.values() if 9 in seeds.values()]
    assert finished
    assert all(seeds == {0: 9, 1: 9, 2: 9} for seeds in finished)
    hopeless = [seeds for seeds in reached.values() if set(seeds) == {0}]
    assert len(hopeless) >= 4
    assert differences(sweep, Ledger.read(tmp_path / "s").events()) == []


def test_a_trial_of_several_seeds_is_ranked_by_their_mean(tmp_path):
    def noisy(config, resource, seed):
        return curve(config, resource) + (5.0 if seed == 1 and config["kwargs"]["x"] < 0.35 else 0.0)

    sweep = plan(trials=6, total=3, space=FINITE, method="grid", seeds={"tune": [0, 1]})
    engine = drive(sweep, tmp_path / "s", backend(tmp_path / "s", of=noisy))
    views = {view.run.trial: view.values for view in engine._standings.view().runs}
    for trial, values in views.items():
        seeds = [engine.state.runs[Run(trial, s).id] for s in (0, 1) if Run(trial, s).id in engine.state.runs]
        found = [run.reports[1].scores["tune/loss"].value for run in seeds if 1 in run.reports]
        assert values[1] == pytest.approx(sum(found) / len(found))
    assert any(len([s for s in (0, 1) if Run(t, s).id in engine.state.runs]) == 2 for t in views)


def test_all_seeds_run_to_the_end_without_early_termination(tmp_path):
    sweep = plan(trials=3, stop="none", total=9, seeds={"tune": [0, 1]})
    engine = drive(sweep, tmp_path / "s", backend(tmp_path / "s", slots=3))
    assert (
        sorted((run.seed, run.phase) for run in engine.state.runs.values())
        == [(0, "finished")] * 3 + [(1, "finished")] * 3
    )
    assert differences(sweep, Ledger.read(tmp_path / "s").events()) == []


def test_runs_of_different_lengths_each_reach_their_own_total(tmp_path):
    space = Space((*LINE.axes, Axis("total", "total", Choice((3, 9, 27)))))
    sweep = plan(trials=12, stop="none", total=27, space=space, method="tpe")
    engine = drive(sweep, tmp_path / "s", backend(tmp_path / "s", slots=2))
    totals = {trial.config["total"] for trial in engine.state.trials.values()}
    assert len(totals) > 1
    for run in engine.state.runs.values():
        total = engine.state.trials[run.trial].config["total"]
        assert (run.phase, max(run.reports), run.target) == ("finished", total, total)
    assert {told.resource for told in engine._standings.history()} == {27}
    assert differences(sweep, Ledger.read(tmp_path / "s").events()) == []


def test_a_configuration_that_no_run_could_have_fails_alone(tmp_path):
    class Picky(type(plan())):
        def resolve(self, parameters):
            if parameters["kwargs.k"] == 2:
                raise ValueError("k must be odd, but got 2")
            return super().resolve(parameters)

    base = plan(trials=6, total=3, space=FINITE, method="grid")
    sweep = Picky(base.spec, base.space, base.milestones, base.finalists)
    engine = drive(sweep, tmp_path / "s", backend(tmp_path / "s"))
    failed = [run for run in engine.state.runs.values() if run.phase == "failed"]
    assert len(failed) == 3
    assert failed[0].failures[0].message == "ValueError: k must be odd, but got 2"
    assert any(run.phase == "finished" for run in engine.state.runs.values())


def test_snapshot_follows_the_sweep(tmp_path):
    hand = Hand(tmp_path / "s", plan(trials=9, total=9))
    assert hand.engine.snapshot()["best"] is None
    lease = hand.engine.ask()
    hand.finish(lease, 1, 0.4)
    hand.engine.ask()
    hand.now += 10
    seen = hand.engine.snapshot()
    assert seen["best"] == {"trial": lease.attempt.run.trial, "value": 0.4, "resource": 1}
    assert (seen["trials_done"], seen["trials_started"], seen["trials_total"], seen["running"]) == (1, 2, 9, 1)
    assert (seen["resource_done"], seen["resource_expected"], seen["elapsed"]) == (1, 9 + 2 * 3 + 6 * 1, 11.0)


class TestKeep:
    @staticmethod
    def holding(name, *resources, live=False, finished=False, score=0.0, size=10):
        found = tuple(Sized(Checkpoint(name, 0, r, f"{name}-{r}"), size) for r in resources)
        return Holding(found, live, finished, (-max(resources), score))

    @staticmethod
    def names(gone):
        return sorted(sized.checkpoint.folder for sized in gone)

    def test_live_runs_keep_two_and_the_best_ended_ones_their_newest(self):
        holdings = [
            self.holding("live", 9, 3, 1, live=True),
            self.holding("a", 9, 3, finished=True, score=0.1),
            self.holding("b", 9, finished=True, score=0.2),
            self.holding("c", 9, finished=True, score=0.3),
            self.holding("d", 3, score=0.0),
        ]
        assert self.names(surplus(holdings, best=2, protected=1, limit=None)) == ["a-3", "c-9", "d-3", "live-1"]
        assert self.names(surplus(holdings, best=1, protected=3, limit=None)) == ["a-3", "d-3", "live-1"]

    def test_the_disk_takes_spare_ones_but_never_protected_ones(self):
        holdings = [
            self.holding("live", 9, 3, live=True),
            self.holding("wait", 1, live=True),
            self.holding("a", 9, finished=True, score=0.1),
            self.holding("b", 9, finished=True, score=0.2),
        ]
        assert self.names(surplus(holdings, best=2, protected=1, limit=40)) == ["live-3"]
        assert self.names(surplus(holdings, best=2, protected=1, limit=1)) == ["b-9", "live-3"]

    def test_a_sweep_keeps_what_it_needs_and_says_what_it_deleted(self, tmp_path):
        sweep = plan(trials=27, total=27, finalists=2, keep={"best": 3})
        simulated = backend(tmp_path / "s", slots=3)
        engine = drive(sweep, tmp_path / "s", simulated)
        left = [c for run in engine.state.runs for c in simulated.checkpoints.listed(Run.parse(run))]
        assert len(left) == 3
        deleted = [e.body for e in Ledger.read(tmp_path / "s").events() if e.kind == "checkpoint_deleted"]
        assert len(deleted) + 3 == sum(len(run.reports) for run in engine.state.runs.values())
        finished = [run for run in engine.state.runs.values() if run.phase == "finished"]
        assert {c.run for c in left} >= {run.id for run in finished}
        for run in engine.state.runs.values():
            kept = {c.resource for c in left if c.run == run.id}
            assert {r for r, report in run.reports.items() if not report.deleted} == kept

    def test_the_disk_limit_holds_while_it_runs(self, tmp_path):
        simulated = backend(tmp_path / "s", slots=2, checkpoints=MemoryCheckpoints(SweepPaths(tmp_path / "s"), 10**8))
        most = []
        write = simulated.checkpoints.write
        simulated.checkpoints.write = lambda *a: (most.append(simulated.checkpoints.total), write(*a))[1]
        drive(plan(trials=9, stop="none", total=9, keep={"best": 9, "disk_gb": 0.35}), tmp_path / "s", simulated)
        assert max(most) <= 5 * 10**8
        assert simulated.checkpoints.total <= 3.5 * 10**8


class TestDisk:
    def write(self, paths, attempt, resource, text="x"):
        from pipelines.finetune.checkpoint import placing, write_complete

        with placing(paths.checkpoint(attempt, resource)) as folder:
            (folder / "state.json").write_text(text)
            write_complete(folder, Report(resource, checkpoint=f"checkpoint-{resource}"))

    def test_the_newest_whole_one_of_any_attempt(self, tmp_path):
        paths, run = SweepPaths(tmp_path), Run("0000-aa", 0)
        disk = DiskCheckpoints(paths)
        assert newest_whole(disk, run, 99, lambda c: None) is None
        for attempt, resource in ((0, 3), (0, 9), (1, 9), (1, 27)):
            self.write(paths, Attempt(run, attempt), resource)
        assert [(c.resource, c.attempt) for c in disk.listed(run)] == [(27, 1), (9, 1), (9, 0), (3, 0)]
        assert newest_whole(disk, run, 20, lambda c: None).attempt == 1
        (paths.checkpoint(Attempt(run, 1), 27) / "state.json").write_text("torn")
        torn = []
        found = newest_whole(disk, run, 99, torn.append)
        assert (found.resource, found.folder) == (9, str(paths.checkpoint(Attempt(run, 1), 9)))
        assert [c.resource for c in torn] == [27]

    def test_deleting_takes_the_folder_away(self, tmp_path):
        paths, run = SweepPaths(tmp_path), Run("0000-aa", 0)
        disk = DiskCheckpoints(paths)
        self.write(paths, Attempt(run, 0), 3, "x" * 1000)
        checkpoint = disk.listed(run)[0]
        assert disk.size(checkpoint) > 1000
        disk.delete(checkpoint)
        assert disk.listed(run) == []
        disk.close()
        assert not Path(checkpoint.folder).exists()


def test_faults_of_all_kinds_leave_a_sound_ledger(tmp_path):
    kinds = ["oom", "node", "stall", "unknown", "user", "nan"]

    def faults(lease, resource):
        draw = random.Random(f"{lease.id} {resource}")
        return Failure(draw.choice(kinds), "injected") if draw.random() < 0.2 else None

    sweep = plan(trials=60, total=27, finalists=3, stall_after=100)
    engine = drive(sweep, tmp_path / "s", backend(tmp_path / "s", slots=4, faults=faults))
    state = fold(Ledger.read(tmp_path / "s").events())
    assert state.runs == engine.state.runs
    assert {f.kind for run in state.runs.values() for f in run.failures} == set(kinds)
    assert sum(run.phase == "finished" for run in state.runs.values()) >= 3
    assert differences(sweep, Ledger.read(tmp_path / "s").events()) == []
