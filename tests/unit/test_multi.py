"""Several metrics through the loop: divergence, what searchers and schedulers see, kills, and what is kept."""

import math
import random
from pathlib import Path

import pytest
from plans import FINITE, LINE, backend, curve, plan
from test_engine import Hand
from test_engine_resume import doubled, facts, killed_and_resumed

from evaluators.base import ItemSet, Report, summarise
from sweeps.checkpoints import Checkpoint
from sweeps.keep import Holding, Sized, surplus, with_front
from sweeps.ledger import Ledger
from sweeps.metrics import Metric
from sweeps.pareto import fronts
from sweeps.replay import differences
from sweeps.schedulers.asha import ASHAScheduler
from sweeps.schedulers.base import RunView, SweepView
from sweeps.simulate import Known, drive
from sweeps.trial import Run

BOTH = (Metric("tune/loss", "minimize"), Metric("cost/size", "maximize"))


def size(config, resource, seed=0):
    """Grows with x and k, whatever the loss does; known from the start."""
    return config["kwargs"]["k"] + config["kwargs"]["x"] + 0.01 * seed


def two(root, slots=1, **settings):
    return backend(root, slots, more=[Known("cost/size", "maximize", size)], **settings)


def report(hand, lease, resource, loss=0.5, **telemetry):
    hand.now += 1
    scores = () if loss is None else (summarise("loss", "tune", "minimize", ItemSet(("a",)), [loss]),)
    hand.kept.write(lease, resource)
    return hand.engine.report(lease.id, Report(resource, scores, telemetry, f"checkpoint-{resource}"))


def hand(tmp_path, **settings):
    return Hand(tmp_path / "s", plan(metrics=BOTH, **{"trials": 9, "total": 9, **settings}))


@pytest.mark.parametrize(
    ("loss", "telemetry", "kind", "text"),
    [
        (0.5, {}, "user", "lacks the metric cost/size; it has tune/loss"),
        (None, {}, "user", "lacks the metric tune/loss and cost/size; it has nothing"),
        (0.5, {"cost/size": math.nan}, "nan", "cost/size is nan at 1"),
        (math.inf, {"cost/size": math.nan}, "nan", "tune/loss is inf and cost/size is nan at 1"),
    ],
)
def test_every_metric_must_be_there_and_finite(tmp_path, loss, telemetry, kind, text):
    driven = hand(tmp_path)
    lease = driven.engine.ask()
    assert report(driven, lease, 1, loss, **telemetry) == "stop"
    run = driven.run(lease)
    assert (run.phase, run.failures[0].kind) == ("failed", kind)
    assert text in run.reason


def test_searchers_are_told_all_values_and_a_diverged_one_the_worst_of_each(tmp_path):
    driven = hand(tmp_path)
    for loss, size_ in ((0.1, 5.0), (0.3, 9.0), (0.2, math.nan)):
        lease = driven.engine.ask()
        if report(driven, lease, 1, loss, **{"cost/size": size_}) == "continue":
            driven.engine.request_stop("command")
        driven.engine.ended(lease.id)
    told = driven.engine._standings.history()
    assert [t.values for t in told[:2]] == [(0.1, 5.0), (0.3, 9.0)]
    assert told[2].values == pytest.approx((0.3 + 0.2, 5.0 - 4.0))
    view = driven.engine._standings.view().runs
    assert view[0].vectors == {1: (0.1, -5.0)}
    assert view[0].values == {1: 0.1}
    assert all(map(math.isnan, view[2].vectors.get(1, (math.nan,))))


def test_with_one_metric_a_view_has_no_vectors(tmp_path):
    engine = drive(plan(trials=4), tmp_path / "s", backend(tmp_path / "s"))
    assert all(not run.vectors for run in engine._standings.view().runs)


def view_of(points, targets=(), more=True):
    runs = [
        RunView(Run(f"{i:04d}-x", 0), i, "waiting", {1: p[0]}, targets[i] if targets else 1, {1: tuple(p)})
        for i, p in enumerate(points)
    ]
    return SweepView(runs, more, (1, 3, 9))


class TestASHA:
    def test_the_best_on_one_metric_alone_does_not_suffice(self):
        scheduler = ASHAScheduler((1, 3, 9), eta=3)
        points = [(0.2, 0.9), (0.1, 2.0), (0.3, 3.0), (0.4, 0.1), (0.5, 4.0), (0.6, 5.0)]
        assert fronts(points) == [0, 0, 1, 0, 2, 3]
        first = scheduler.next_lease(view_of(points))
        assert first.run.trial == "0001-x"
        assert first.reason == "1 of 6 at 1"
        second = scheduler.next_lease(view_of(points, [1, 3, 1, 1, 1, 1]))
        assert second.run.trial == "0003-x"
        assert scheduler.next_lease(view_of(points, [1, 3, 1, 3, 1, 1])) is None

    def test_a_promoted_one_keeps_its_place_so_that_no_more_than_a_share_goes_on(self):
        """Every trial is on the front: the order within it changes with each arrival, the number promoted does not."""
        generator = random.Random(0)
        scheduler, points, targets, promoted = ASHAScheduler((1, 3, 9), eta=3), [], [], 0
        for _ in range(60):
            x = generator.random()
            points.append((x, 1 - x))
            targets.append(1)
            while (chosen := scheduler.next_lease(view_of(points, targets))) is not None:
                targets[int(chosen.run.trial[:4])] = 3
                promoted += 1
            assert promoted == len(points) // 3

    def test_what_goes_on_covers_the_front(self):
        points = [(i / 29, 1 - i / 29) for i in range(30)]
        scheduler, targets = ASHAScheduler((1, 3, 9), eta=3), [1] * 30
        gone = []
        while (chosen := scheduler.next_lease(view_of(points, targets))) is not None:
            gone.append(int(chosen.run.trial[:4]))
            targets[gone[-1]] = 3
        assert gone[:3] == [0, 29, 14]
        assert max(b - a for a, b in zip(sorted(gone), sorted(gone)[1:], strict=False)) <= 4

    def test_a_diverged_one_is_never_promoted(self):
        scheduler = ASHAScheduler((1, 3, 9), eta=3)
        shown = view_of([(math.nan, math.nan)] * 3, more=False)
        assert scheduler.next_lease(shown) is None

    def test_the_view_alone_decides(self):
        generator = random.Random(1)
        points = [(generator.random(), generator.random()) for _ in range(30)]
        scheduler = ASHAScheduler((1, 3, 9), eta=3, finalists=2)
        for n in (30, 4, 17, 30):
            fresh = ASHAScheduler((1, 3, 9), eta=3, finalists=2)
            assert scheduler.next_lease(view_of(points[:n])) == fresh.next_lease(view_of(points[:n]))


def a_plan(seed):
    choice = random.Random(seed)
    finite = choice.random() < 0.4
    return plan(
        trials=choice.randint(4, 12),
        method=choice.choice(["random", "tpe", "nsga2"]) if not finite else choice.choice(["grid", "tpe"]),
        stop=choice.choice(["asha", "asha", "none"]),
        first=choice.choice([1, 2]),
        total=choice.choice([9, 14]),
        eta=choice.choice([2, 3]),
        finalists=choice.randint(1, 2),
        space=FINITE if finite else LINE,
        metrics=BOTH,
        seeds={"tune": choice.choice([[0], [0], [0, 1]])},
    )


@pytest.mark.parametrize("seed", range(16))
def test_a_killed_sweep_decides_as_an_uninterrupted_one(tmp_path, seed):
    sweep, choice = a_plan(seed), random.Random(1000 + seed)
    drive(sweep, tmp_path / "plain", two(tmp_path / "plain"))
    root = tmp_path / "killed"
    appends = len({e.time for e in Ledger.read(tmp_path / "plain").events()})
    assert killed_and_resumed(sweep, root, two(root), choice, kills=1 + seed % 3, within=appends)
    assert facts(root) == facts(tmp_path / "plain")
    assert doubled(root) == 0
    assert differences(sweep, Ledger.read(root).events()) == []


@pytest.mark.parametrize("seed", range(4))
def test_several_at_once_follow_from_the_recorded_order(tmp_path, seed):
    sweep, root = a_plan(seed), tmp_path / "s"
    simulated = two(root, slots=3, seconds=lambda config: 0.5 + config["kwargs"]["x"])
    killed_and_resumed(sweep, root, simulated, random.Random(seed), kills=2)
    assert differences(sweep, Ledger.read(root).events()) == []


def test_asha_brings_the_whole_front_to_the_end(tmp_path):
    """Of what was tried, the trials that end hold most of the volume; the best on the loss alone would not."""
    from sweeps.pareto import hypervolume

    engine = drive(plan(trials=54, total=27, finalists=4, metrics=BOTH), tmp_path / "s", two(tmp_path / "s", of=curve))
    configs = {trial.id: trial.config for trial in engine.state.trials.values()}
    every = {name: (curve(config, 27), -size(config, 27)) for name, config in configs.items()}
    ended = [every[run.trial] for run in engine.state.runs.values() if run.phase == "finished"]
    reference = [max(p[m] for p in every.values()) for m in range(2)]
    whole = hypervolume(list(every.values()), reference)
    greedy = sorted(every.values())[: len(ended)]
    assert hypervolume(ended, reference) > 0.9 * whole
    assert hypervolume(ended, reference) > hypervolume(greedy, reference)
    assert len(ended) < 12


def held(order, vector, rank=None):
    checkpoint = Checkpoint(f"{order:04d}-x/seed-0", 0, 9, f"/c{order}")
    return Holding((Sized(checkpoint, 10),), False, True, rank or (-9.0, vector[0]), order, vector)


def test_the_fronts_checkpoints_are_protected():
    holdings = [held(0, (0.1, 5.0)), held(1, (0.2, 6.0)), held(2, (0.3, 1.0)), held(3, (0.4, 2.0))]
    gone = {Path(s.checkpoint.folder).name for s in surplus(with_front(holdings), best=1, protected=1, limit=None)}
    assert gone == {"c1", "c3"}
    gone = {Path(s.checkpoint.folder).name for s in surplus(with_front(holdings), best=4, protected=1, limit=1)}
    assert gone == {"c1", "c3"}


def test_no_more_of_a_front_is_protected_than_the_final_step_judges():
    holdings = [held(i, (float(i), float(-i))) for i in range(20)]
    marked = [h.order for h in with_front(holdings) if h.front]
    assert len(marked) == 5
    assert {0, 19} <= set(marked)


def test_an_engine_keeps_the_fronts_checkpoints(tmp_path):
    root = tmp_path / "s"
    simulated = two(root)
    engine = drive(plan(trials=8, stop="none", total=9, metrics=BOTH), root, simulated)
    runs = [run for run in engine.state.runs.values() if run.phase == "finished"]
    vectors = [(engine._standings.vector(run, 9)[0], -engine._standings.vector(run, 9)[1]) for run in runs]
    front = {run.id for run, number in zip(runs, fronts(vectors), strict=True) if number == 0}
    left = {run.id for run in runs if simulated.checkpoints.listed(Run(run.trial, run.seed))}
    assert 1 < len(front) <= 5
    assert front == left
