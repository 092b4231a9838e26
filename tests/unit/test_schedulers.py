"""Schedulers: one contract, then ASHA's own rules."""

import math
import random
import time
from typing import get_args

import pytest

from sweeps.schedulers import SCHEDULERS, build_scheduler
from sweeps.schedulers.asha import ASHAScheduler
from sweeps.schedulers.base import RunToEnd, RunView, SweepView
from sweeps.spec import ASHAConfig, EarlyTerminateConfig, NoneConfig
from sweeps.trial import Run

RUNGS = (1, 3, 9)


def run(order, values, state="waiting", target=None):
    reached = max(values, default=RUNGS[0])
    return RunView(Run(f"{order:04d}-x", 0), order, state, values, target or reached)


def view(*runs, more=True, milestones=RUNGS):
    return SweepView(list(runs), more, milestones)


def promoted(decision):
    return None if decision is None else (decision.run.trial[:4].lstrip("0") or "0", decision.resource)


def play(scheduler, curves, fails=frozenset(), more_after=True):
    """One run at a time, promotions first; order -> the highest resource it reached."""
    runs, milestones = [], scheduler.milestones

    def go(order, resource):
        failed = (order, resource) in fails
        old = runs[order].values if order < len(runs) else {}
        values = old if failed else {**old, resource: curves[order](resource)}
        diverged = not failed and math.isnan(values[resource])
        state = "failed" if failed or diverged else "finished" if resource == milestones[-1] else "waiting"
        new = RunView(Run(f"{order:04d}-x", 0), order, state, values, resource)
        runs[order : order + 1] = [new]
        if state != "failed":
            made = scheduler.on_report(new.run, resource, SweepView(runs, order_left() > 0, milestones))
            own = [d for d in made if d.run == new.run]
            assert len(own) == 1
            if own[0].action == "continue" and resource < milestones[-1]:
                go(order, milestones[milestones.index(resource) + 1])

    def order_left():
        return len(curves) - len(runs) if more_after else 0

    while True:
        chosen = scheduler.next_lease(SweepView(runs, order_left() > 0, milestones))
        if chosen is not None:
            assert chosen.action == "promote"
            go(int(chosen.run.trial[:4]), milestones[milestones.index(chosen.resource) + 1])
        elif order_left():
            go(len(runs), milestones[0])
        else:
            return {r.order: max(r.values, default=0) for r in runs}


@pytest.fixture(params=["none", "asha"])  # race compares items: tests/unit/test_racing.py
def scheduler(request):
    config = {"none": NoneConfig(), "asha": ASHAConfig(min=1, eta=3)}[request.param]
    return build_scheduler(config, RUNGS, 2)


class TestContract:
    def test_the_table_is_complete(self):
        union = get_args(get_args(EarlyTerminateConfig)[0])
        assert set(SCHEDULERS) == {config.model_fields["type"].default for config in union}

    def test_milestones_ascend_to_the_total(self, scheduler):
        assert scheduler.milestones[-1] == 9
        assert list(scheduler.milestones) == sorted(scheduler.milestones)

    def test_a_run_at_the_total_stops(self, scheduler):
        last = run(0, dict.fromkeys(scheduler.milestones, 1.0))
        made = scheduler.on_report(last.run, 9, view(last))
        assert [d.action for d in made if d.run == last.run] == ["stop"]

    def test_nothing_is_leased_from_an_empty_sweep(self, scheduler):
        assert scheduler.next_lease(view()) is None
        assert scheduler.next_lease(view(more=False)) is None

    def test_the_view_alone_decides(self, scheduler):
        random.seed(0)
        first = scheduler.milestones[0]
        runs = [run(i, {first: random.random()}) for i in range(30)]
        fresh = build_scheduler(
            ASHAConfig(min=1, eta=3) if isinstance(scheduler, ASHAScheduler) else NoneConfig(), RUNGS, 2
        )
        for size in (30, 3, 17, 30):
            shown = view(*runs[:size])
            assert scheduler.next_lease(shown) == fresh.next_lease(view(*list(runs[:size])))
            last = runs[size - 1].run
            assert scheduler.on_report(last, first, shown) == scheduler.on_report(last, first, shown)

    def test_finalists_reach_the_total(self, scheduler):
        random.seed(1)
        level = [random.random() for _ in range(9)]
        reached = play(scheduler, [lambda r, i=i: level[i] for i in range(9)])
        assert sum(r == 9 for r in reached.values()) >= 2

    def test_expected_runs_match_the_milestones_and_never_grow(self, scheduler):
        runs = scheduler.expected(9)
        assert len(runs) == len(scheduler.milestones)
        assert runs[0] == 9
        assert list(runs) == sorted(runs, reverse=True)
        assert runs[-1] >= 2

    def test_a_thousand_runs_take_under_five_milliseconds_a_report(self, scheduler):
        random.seed(2)
        milestones = scheduler.milestones
        runs = [run(i, {milestones[0]: random.random()}) for i in range(1000)]
        shown = view(*runs, milestones=milestones)
        scheduler.next_lease(shown)
        start = time.thread_time()
        for i in range(50):
            runs[i] = run(i, {milestones[0]: random.random()})
            shown = view(*runs, milestones=milestones)
            scheduler.on_report(runs[i].run, milestones[0], shown)
            scheduler.next_lease(shown)
        assert (time.thread_time() - start) / 50 < 0.005


class TestRunToEnd:
    def test_nobody_stops_before_the_total(self):
        one = run(0, {1: 5.0})
        assert RunToEnd(9).on_report(one.run, 1, view(one))[0].action == "continue"
        assert RunToEnd(9).milestones == (9,)


class TestASHA:
    scheduler = ASHAScheduler(RUNGS, eta=3, finalists=1)

    def test_bad_rungs_are_refused(self):
        for milestones in ((), (3, 1), (1, 1), (0, 3)):
            with pytest.raises(ValueError, match="milestones must ascend"):
                ASHAScheduler(milestones)
        with pytest.raises(ValueError, match="eta must be at least 2"):
            ASHAScheduler((1,), eta=1)

    def test_nobody_goes_on_before_eta_results_are_there(self):
        runs = [run(0, {1: 0.1}), run(1, {1: 0.2})]
        assert self.scheduler.next_lease(view(*runs)) is None
        assert promoted(self.scheduler.next_lease(view(*runs, run(2, {1: 0.3})))) == ("0", 1)

    def test_the_reporting_run_goes_on_where_it_would_be_leased_next(self):
        runs = [run(0, {1: 0.2}), run(1, {1: 0.3}), run(2, {1: 0.1})]
        assert self.scheduler.on_report(runs[2].run, 1, view(*runs))[0].action == "continue"
        assert self.scheduler.on_report(runs[1].run, 1, view(*runs))[0].action == "stop"

    def test_the_highest_rung_comes_first(self):
        high = [run(i, {1: 0.1, 3: 0.5 - i / 10}) for i in range(3)]
        low = [run(i, {1: 0.2 + i}) for i in range(3, 12)]
        assert promoted(self.scheduler.next_lease(view(*low, *high))) == ("2", 3)

    def test_ties_go_to_the_first_suggested(self):
        assert promoted(self.scheduler.next_lease(view(*(run(i, {1: 0.5}) for i in range(3))))) == ("0", 1)

    def test_an_early_promotion_does_not_bar_a_better_one(self):
        runs = [run(0, {1: 0.5}, "running", 3), run(1, {1: 0.6}), run(2, {1: 0.7}), run(3, {1: 0.1})]
        assert promoted(self.scheduler.next_lease(view(*runs))) == ("3", 1)

    def test_diverged_runs_count_but_never_go_on(self):
        bad = [run(i, {1: math.nan}, "failed") for i in range(2)]
        assert promoted(self.scheduler.next_lease(view(*bad, run(2, {1: 9.0})))) == ("2", 1)
        assert self.scheduler.next_lease(view(*bad, run(2, {1: math.nan}))) is None
        assert self.scheduler.on_report(Run("0002-x", 0), 1, view(*bad, run(2, {1: math.nan})))[0].action == "stop"
        assert self.scheduler.next_lease(view(*bad, run(2, {1: math.inf}))) is None

    def test_a_closed_rung_promotes_at_least_one(self):
        assert self.scheduler.next_lease(view(run(0, {1: 0.1}))) is None
        assert promoted(self.scheduler.next_lease(view(run(0, {1: 0.1}), more=False))) == ("0", 1)

    def test_a_rung_is_open_while_somebody_is_on_the_way(self):
        runs = [run(0, {1: 0.1}), run(1, {}, "running", 1)]
        assert self.scheduler.next_lease(view(*runs, more=False)) is None
        runs[1] = run(1, {}, "failed", 1)
        assert promoted(self.scheduler.next_lease(view(*runs, more=False))) == ("0", 1)

    def test_a_rung_is_open_while_a_lower_one_can_promote(self):
        two = ASHAScheduler(RUNGS, eta=3, finalists=2)
        runs = [run(0, {1: 0.1, 3: 0.1}), run(1, {1: 0.2})]
        assert promoted(two.next_lease(view(*runs, more=False))) == ("1", 1)

    def test_finalists_are_guaranteed(self):
        for finalists in (1, 2, 4):
            reached = play(ASHAScheduler(RUNGS, 3, finalists), [lambda r, i=i: i for i in range(9)])
            assert sorted(order for order, r in reached.items() if r == 9) == list(range(finalists))

    def test_failed_finalists_are_replaced_by_the_next_best(self):
        curves = [lambda r, i=i: i for i in range(9)]
        reached = play(ASHAScheduler(RUNGS, 3, 2), curves, fails={(0, 9), (1, 3)})
        assert sorted(order for order, r in reached.items() if r == 9) == [2, 3]

    def test_diverged_finalists_are_replaced_too(self):
        curves = [lambda r, i=i: math.nan if (i, r) == (0, 9) else i for i in range(9)]
        reached = play(ASHAScheduler(RUNGS, 3, 2), curves)
        healthy = [order for order, r in reached.items() if r == 9 and order != 0]
        assert healthy == [1, 2]

    def test_an_infrastructure_failure_gives_its_place_back_and_a_diverged_one_keeps_it(self):
        others = [run(i, {1: float(i)}) for i in range(1, 3)]
        lost = run(0, {1: 0.0}, "failed", 3)
        assert promoted(self.scheduler.next_lease(view(lost, *others))) == ("1", 1)
        diverged = run(0, {1: 0.0, 3: math.nan}, "failed", 3)
        assert self.scheduler.next_lease(view(diverged, *others)) is None

    def test_halving_finds_the_best_of_27(self):
        random.seed(3)
        level = random.sample(range(27), 27)
        reached = play(ASHAScheduler((1, 3, 9, 27), 3, 1), [lambda r, i=i: level[i] for i in range(27)])
        best = level.index(0)
        assert reached[best] == 27
        assert sum(r > 1 for r in reached.values()) >= 9
        assert ASHAScheduler((1, 3, 9, 27), 3, 1).expected(27) == (27, 9, 3, 1)
        assert ASHAScheduler((1, 3, 9, 27), 3, 4).expected(10) == (10, 4, 4, 4)

    @pytest.mark.parametrize("several", [False, True])
    def test_what_it_keeps_between_views_changes_no_decision(self, several):
        """A table that is told what changed, one that looks at everything, and the rule itself say the same."""
        draw = random.Random(5)
        runs, changes = [], []
        kept, fresh = ASHAScheduler(RUNGS, 2, 3), ASHAScheduler(RUNGS, 2, 3)
        said = set()
        for _ in range(400):
            order = draw.randrange(len(runs) + 1) if len(runs) < 30 else draw.randrange(30)
            runs[order : order + 1] = [any_run(draw, order, several)]
            changes.append(order)
            if draw.random() < 0.4:
                continue
            more = draw.random() < 0.5
            told, plain = SweepView(runs, more, RUNGS, changes=changes), SweepView(list(runs), more, RUNGS)
            found = kept.next_lease(told)
            assert found == fresh.next_lease(plain) == ASHAScheduler(RUNGS, 2, 3).next_lease(plain)
            if not several:
                assert promoted(found) == by_the_rule(runs, more, eta=2, finalists=3)
            said.add(promoted(found))
            last = draw.choice([one for one in runs if one.values and one.state != "failed"] or [None])
            if last is not None:
                resource = max(last.values)
                assert kept.on_report(last.run, resource, told) == fresh.on_report(last.run, resource, plain)
        assert len(said) > 5


def any_run(draw, order, several):
    """A run in any state that a sweep can bring it to; few values, so that there are ties."""
    reached = draw.randrange(len(RUNGS) + 1)
    values = {milestone: draw.randrange(6) / 2 for milestone in RUNGS[:reached]}
    state = draw.choice(["waiting", "waiting", "running", "failed"]) if reached else draw.choice(["running", "failed"])
    target = RUNGS[max(0, reached - 1)]
    if state != "waiting":
        target = RUNGS[min(reached, len(RUNGS) - 1)]
    if state == "failed" and draw.random() < 0.5:
        values[target] = math.nan
    if reached == len(RUNGS):
        state = "finished"
    vectors = {m: (value, math.nan if math.isnan(value) else 3 - value) for m, value in values.items()}
    return RunView(Run(f"{order:04d}-x", 0), order, state, values, target, vectors if several else {})


def by_the_rule(runs, more, eta, finalists):
    """The paper's rule and ours for closed rungs, read off all runs: (order, rung) of the one to promote."""
    chosen, closed = None, not more
    for milestone in RUNGS[:-1]:
        there = [one for one in runs if milestone in one.values]
        healthy = [one for one in there if one.state != "failed" or any(map(math.isnan, one.values.values()))]
        ranked = sorted(
            (one for one in healthy if math.isfinite(one.values[milestone])),
            key=lambda one: (one.values[milestone], one.order),
        )
        coming = any(one.state == "running" and one.target == milestone and one not in there for one in runs)
        beyond = sum(one.target > milestone and one.state != "failed" for one in runs)
        closed = closed and not coming
        top = len(there) // eta
        for place, one in enumerate(ranked):
            if place >= top and not (closed and beyond < max(1, finalists)):
                break
            if one.state == "waiting" and one.target == milestone:
                chosen, closed = (str(one.order), milestone), False
                break
    return chosen
