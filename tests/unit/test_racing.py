"""Racing: the evidence against a plain reading of its definition, its error rates, and the scheduler in any order of reports."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from evaluators.racing import CAP, FIRST_BET, PSEUDO, PSEUDO_VARIANCE, RIVALS, Race, differences
from sweeps.schedulers.base import RunView, SweepView
from sweeps.schedulers.race import RaceScheduler
from sweeps.trial import Run


def drawn(seed, means, questions=60, correlation=0.6):
    """(configurations, questions) scores of 0 and 1 whose differences are easier than their values."""
    generator = np.random.default_rng(seed)
    shared = generator.random(questions)
    own = generator.random((len(means), questions))
    use_shared = generator.random(questions) < correlation
    return (np.where(use_shared, shared, own) < np.asarray(means)[:, None]).astype(float)


def plain(scores):
    """Largest log-wealth of every candidate, written down as the docstring says it."""
    count, questions = scores.shape
    wealth, best = [0.0] * count, [0.0] * count
    for t in range(questions):
        before = scores[:, :t]
        order = sorted(range(count), key=lambda i: (-before[i].mean() if t else 0, i))
        for i in range(count):
            rivals = [j for j in (order[:RIVALS] if t else order) if j != i]
            d = np.mean([scores[j, : t + 1] - scores[i, : t + 1] for j in rivals], axis=0)
            mean = d[:t].sum() / (t + PSEUDO)
            variance = ((d[:t] ** 2).sum() + PSEUDO * PSEUDO_VARIANCE) / (t + PSEUDO)
            share, difference = min(max(mean / variance, 0), CAP) if t else FIRST_BET, d[t]
            wealth[i] += math.log1p(share * difference)
            best[i] = max(best[i], wealth[i])
    return best


@pytest.mark.parametrize("seed", range(4))
def test_evidence_is_what_the_definition_says(seed):
    scores = drawn(seed, [0.9, 0.7, 0.5, 0.5], 30)
    race = Race(4)
    race.ask(scores)
    assert race.evidence == pytest.approx(plain(scores), abs=1e-9)


def test_a_rival_without_a_score_counts_as_an_equal_and_nobody_is_its_own_rival():
    scores, known = np.array([0.9, 0.6, 0.0, 0.3, 0.0]), np.array([True, True, False, True, False])
    found, there = differences(scores, known, np.array([0, 1, 2]))
    assert found == pytest.approx([(0.6 - 0.9) / 2, (0.9 - 0.6) / 2, 0, (0.6 + 0.3) / 3, 0])
    assert there.tolist() == [True, True, False, True, False]
    two, both = differences(np.stack([scores, scores], axis=1), np.stack([known, known], axis=1), np.array([0, 1, 2]))
    assert np.array_equal(two, np.stack([found, found], axis=1))
    assert np.array_equal(both[:, 0], there)
    assert not differences(scores[:1], known[:1], np.array([0]))[1].any()


def test_blocks_do_not_matter():
    scores = drawn(1, [0.9, 0.6, 0.4], 50)
    whole, parts = Race(3), Race(3)
    whole.ask(scores)
    for start in range(0, 50, 7):
        parts.ask(scores[:, start : start + 7])
    assert np.array_equal(whole.evidence, parts.evidence)


def test_the_clearly_worse_leave_and_the_best_stays():
    race = Race(4, keep=1)
    race.ask(drawn(3, [0.95, 0.9, 0.3, 0.2], 100))
    gone = race.eliminate()
    assert set(gone) == {2, 3}
    assert race.alive.tolist() == [True, True, False, False]
    assert race.eliminate() == []


def test_so_many_always_stay():
    race = Race(4, keep=3)
    race.ask(drawn(3, [0.95, 0.3, 0.3, 0.2], 200))
    assert len(race.eliminate()) == 1
    assert race.eliminate() == []


def test_equal_candidates_are_hardly_ever_put_out():
    wrong = 0
    for seed in range(80):
        race = Race(6)
        scores = drawn(seed, [0.6] * 6, 120)
        for start in range(0, 120, 10):
            race.ask(scores[:, start : start + 10])
            race.eliminate()
        wrong += not race.alive.all()
    assert wrong <= 10, "5 % of 80 are 4; more than 10 would happen by chance about once in 1,000 times"


def test_the_best_stays_among_close_ones():
    lost = 0
    for seed in range(80):
        race = Race(8)
        scores = drawn(seed, [0.8, *np.linspace(0.75, 0.4, 7)], 120)
        for start in range(0, 120, 10):
            race.ask(scores[:, start : start + 10])
            race.eliminate()
        lost += not race.alive[0]
    assert lost <= 10


def test_what_one_lacks_says_nothing_about_it():
    scores = drawn(5, [0.9, 0.5], 40)
    holes = scores.copy()
    holes[1, ::2] = np.nan
    some, none = Race(2), Race(2)
    some.ask(holes)
    none.ask(np.where(np.isnan(holes), np.nan, np.nan))
    assert none.evidence.tolist() == [0.0, 0.0]
    half = Race(2)
    half.ask(scores[:, 1::2])
    assert some.evidence[1] > 0
    assert half.asked == 20


@pytest.mark.parametrize("scores", [[[0.5, 1.5]], [[-0.1, 0.2]], [[0.1], [0.2]]])
def test_bad_scores_are_refused(scores):
    with pytest.raises(ValueError, match="must"):
        Race(1).ask(scores)


class Field:
    """A small engine: runs report blocks in any order; items are read from a table."""

    def __init__(self, scores, milestones, fails=(), finalists=1, most=None, stop_when_tied=False):
        self.scores, self.milestones, self.fails = scores, milestones, dict(fails)
        self.make = lambda: RaceScheduler(milestones, finalists=finalists, most=most, stop_when_tied=stop_when_tied)
        self.scheduler = self.make()
        self.runs = []

    def items(self, run, resource):
        return self.scores[int(run.trial[:4]), :resource]

    def view(self, more):
        return SweepView(list(self.runs), more, self.milestones, self.items)

    def play(self, seed, slots=3, restart=False):
        """Reports in a random order; returns how far each came and what each was told last."""
        chooser = random.Random(seed)
        count, running, told = len(self.scores), [], {}
        while True:
            while len(running) < slots:
                more = len(self.runs) < count
                chosen = self.scheduler.next_lease(self.view(more))
                if chosen is not None:
                    place = int(chosen.run.trial[:4])
                    following = next(m for m in self.milestones if m > chosen.resource)
                    self.runs[place] = replace(self.runs[place], state="running", target=following)
                    running.append(place)
                elif more:
                    order = len(self.runs)
                    self.runs.append(RunView(Run(f"{order:04d}-x", 0), order, "running", {}, self.milestones[0]))
                    running.append(order)
                else:
                    break
            if not running:
                return {run.order: max(run.values, default=0) for run in self.runs}, told
            place = running.pop(chooser.randrange(len(running)))
            run = self.runs[place]
            if self.fails.get(place) == run.target:
                self.runs[place] = replace(run, state="failed")
                continue
            value = -float(np.nanmean(self.items(run.run, run.target)))
            self.runs[place] = replace(run, state="waiting", values={**run.values, run.target: value})
            if restart:
                self.scheduler = self.make()
            decisions = self.scheduler.on_report(run.run, run.target, self.view(len(self.runs) < count))
            for decision in decisions:
                at = int(decision.run.trial[:4])
                told[at] = decision.reason
                if decision.run == run.run and decision.action == "continue":
                    following = next(m for m in self.milestones if m > run.target)
                    self.runs[place] = replace(self.runs[place], state="running", target=following)
                    running.append(place)
                elif decision.run != run.run:
                    assert decision.action == "stop"
                    self.runs[at] = replace(self.runs[at], state="stopped")
                elif run.target == self.milestones[-1]:
                    self.runs[place] = replace(self.runs[place], state="finished")


MILESTONES = (20, 40, 60, 80)


def test_the_order_of_reports_and_restarts_change_nothing():
    scores = drawn(11, [0.95, 0.9, 0.5, 0.3, 0.2], 80)
    first, told = Field(scores, MILESTONES).play(0)
    assert first[0] == first[1] == 80
    assert first[4] < 80
    assert "shown not to be the best" in told[4] or first[4] < 80
    for seed in range(6):
        for restart in (False, True):
            assert Field(scores, MILESTONES).play(seed, slots=1 + seed % 4, restart=restart)[0] == first


def test_a_run_that_fails_is_not_waited_for_and_its_answers_still_count_where_it_gave_them():
    scores = drawn(11, [0.95, 0.9, 0.5, 0.3, 0.2], 80)
    for restart in (False, True):
        reached, _ = Field(scores, MILESTONES, {0: 40}).play(2, restart=restart)
        assert reached[0] == 20
        assert reached[1] == 80


def test_nobody_leaves_while_trials_are_still_to_come():
    field = Field(drawn(1, [0.9, 0.1], 80), MILESTONES)
    field.runs = [RunView(Run("0000-x", 0), 0, "waiting", {20: -0.9}, 20)]
    assert field.scheduler.next_lease(field.view(more=True)) is None
    assert field.scheduler.next_lease(field.view(more=False)) is not None


def test_finalists_answer_every_question():
    scores = drawn(4, [0.95, 0.3, 0.25, 0.2, 0.1], 80)
    reached, _ = Field(scores, MILESTONES, finalists=3).play(1)
    assert sum(resource == 80 for resource in reached.values()) >= 3


def test_items_that_do_not_fit_are_an_error():
    field = Field(drawn(4, [0.9, 0.2], 10), MILESTONES)
    with pytest.raises(ValueError, match="must have 20 items"):
        field.play(0)


def test_no_more_than_so_many_go_into_the_last_block():
    scores = drawn(7, [0.8, 0.79, 0.78, 0.77, 0.2], 80)
    for seed in range(4):
        reached, told = Field(scores, MILESTONES, finalists=2, most=2).play(seed, restart=seed % 2 == 1)
        best = sorted(range(4), key=lambda i: (-scores[i, :60].mean(), i))[:2]
        assert sorted(order for order, resource in reached.items() if resource == 80) == sorted(best)
        cut = [order for order, resource in reached.items() if resource == 60]
        assert all("shown" not in told.get(order, "") for order in cut)


def test_a_race_is_settled_when_nobody_is_likely_to_leave():
    race = Race(4)
    race.ask(drawn(7, [0.8, 0.8, 0.8, 0.8], 40))
    assert race.settled(5)
    assert not race.settled(100_000)
    race = Race(3)
    race.ask(drawn(3, [0.9, 0.9, 0.6], 40))
    assert not race.settled(100)
    assert Race(3, keep=3).settled(100)


def test_a_race_that_is_settled_goes_on_with_the_finalists_alone():
    scores = drawn(8, [0.8, 0.79, 0.8, 0.79, 0.2], 80)
    whole, _ = Field(scores, MILESTONES, finalists=2).play(0)
    assert [order for order, resource in whole.items() if resource == 80] == [0, 1, 2, 3]
    for seed in range(4):
        field = Field(scores, MILESTONES, {0: 80} if seed == 3 else (), finalists=2, stop_when_tied=True)
        reached, told = field.play(seed, restart=seed % 2 == 1)
        tied = [order for order, reason in told.items() if "not told from the best" in reason]
        rung = {reached[order] for order in tied}
        assert (len(tied), len(rung)) == (2, 1)
        assert 4 not in tied
        best = sorted(range(4), key=lambda i: (-scores[i, : min(rung)].mean(), i))[:2]
        assert set(best).isdisjoint(tied)
        assert all(reached[order] == 80 for order in best if not (seed == 3 and order == 0))
