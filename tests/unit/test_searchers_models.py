"""Searchers with a model for some axes: what they cover, what they are told, and that they search."""

import math
from statistics import median

import pytest
from plans import LINE, backend, plan
from sweep_files import SFT, load
from test_searchers import MIXED, ask

from sweeps.ledger import Ledger
from sweeps.replay import differences
from sweeps.searchers.base import Told
from sweeps.searchers.basic import RandomSearcher
from sweeps.searchers.cmaes import CMAESSearcher, decode
from sweeps.searchers.cover import axes_of, division
from sweeps.searchers.gp import GPSearcher
from sweeps.searchers.nsga2 import NSGA2Searcher
from sweeps.searchers.rungs import comparable
from sweeps.simulate import drive
from sweeps.space import Axis, Choice, Interval, Space

BOWL = Space(
    (
        Axis("lr", "lr", Interval(1e-5, 1e-1, log=True)),
        Axis("x", "x", Interval(-1.0, 1.0)),
        Axis("y", "y", Interval(0.0, 4.0)),
        Axis("n", "n", Interval(1, 16, integer=True)),
    )
)


def bowl(p):
    return (
        (math.log10(p["lr"]) + 2.5) ** 2 / 4 + (p["x"] - 0.4) ** 2 + (p["y"] - 1.0) ** 2 / 4 + ((p["n"] - 5) / 8) ** 2
    )


def best_of(searcher, trials):
    history = []
    for i in range(trials):
        made = searcher.suggest(i, history)
        history.append(Told(made, "complete", (bowl(made.parameters),), 1))
    return min(told.values[0] for told in history)


class TestDivision:
    def test_each_axis_is_covered_once(self):
        for method in ("gp", "cmaes", "nsga2"):
            parts = division(method, MIXED)
            assert sorted(parts[method] + parts["tpe"]) == sorted(axes_of(MIXED))
        arms = {"opt", "opt.sgd.momentum", "opt.adam.beta"}
        assert set(division("gp", MIXED)["tpe"]) == arms
        assert set(division("cmaes", MIXED)["cmaes"]) == {"lr", "w", "r", "s", "n"}
        assert set(division("nsga2", MIXED)["tpe"]) == arms - {"opt"}
        assert division("tpe", MIXED) is None


class TestRungs:
    def test_one_rung_is_told_as_it_is_and_smaller_is_better(self):
        history = [Told(None, "complete", (2.0, 3.0), 9), Told(None, "running"), Told(None, "failed")]
        assert comparable(history, ("minimize", "maximize")) == [(2.0, -3.0), None, None]

    def test_a_higher_rung_comes_first_then_the_value(self):
        values, rungs = [0.1, 0.9, 0.2, 0.8, 0.2], [3, 9, 3, 9, 3]
        history = [Told(None, "complete", (v,), r) for v, r in zip(values, rungs, strict=True)]
        told = [value[0] for value in comparable(history, ("minimize",))]
        assert sorted(range(5), key=lambda i: (told[i], i)) == [3, 1, 0, 2, 4]
        assert told[2] == told[4]
        assert sum(told) == pytest.approx(0.0, abs=0.2)


class TestGP:
    def test_branches_do_not_turn_it_into_random(self):
        searcher = GPSearcher(MIXED, seed=1, n_startup_trials=4)
        history = ask(searcher, 7)
        assert any(key.startswith("gp:relative_params") for key in history[-1].suggestion.attributes["gp"])
        assert {"lr", "k", "together.pair"} <= set(history[-1].suggestion.distributions)

    def test_running_points_are_part_of_the_answer(self):
        searcher = GPSearcher(BOWL, seed=1, n_startup_trials=4)
        history = [Told(t.suggestion, "complete", (bowl(t.suggestion.parameters),), 1) for t in _asked(searcher, 8)]
        running = [*history[:7], Told(history[7].suggestion, "running")]
        assert searcher.suggest(8, history) != searcher.suggest(8, running)

    def test_a_model_is_fitted_with_one_thread_and_the_others_come_back(self, monkeypatch):
        import torch

        from sweeps.searchers import gp

        seen, plain, before = [], gp.ask, torch.get_num_threads()
        monkeypatch.setattr(gp, "ask", lambda *given: seen.append(torch.get_num_threads()) or plain(*given))
        searcher = GPSearcher(BOWL, seed=1, n_startup_trials=4)
        torch.set_num_threads(2)
        try:
            _asked(searcher, 5)
            assert (seen, torch.get_num_threads()) == ([2, 2, 2, 2, 1], 2)
        finally:
            torch.set_num_threads(before)


class TestCMAES:
    def test_recorded_generations_stand_when_values_change_later(self):
        searcher = CMAESSearcher(BOWL, seed=1, population_size=4)
        history = [Told(t.suggestion, "complete", (bowl(t.suggestion.parameters),), 3) for t in _asked(searcher, 9)]
        told = [entry.suggestion.attributes["cmaes"].get("told") for entry in history]
        assert [sorted(t) for t in told if t] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        changed = [Told(history[0].suggestion, "complete", (9.0,), 9), *history[1:]]
        assert searcher.suggest(9, changed) == searcher.suggest(9, history)

    def test_a_late_one_is_told_with_the_next_generation(self):
        searcher = CMAESSearcher(BOWL, seed=1, population_size=4)
        history = []
        for i in range(10):
            made = searcher.suggest(i, history)
            history.append(Told(made, "complete", (bowl(made.parameters),), 1) if i else Told(made, "running"))
            if i == 6:
                history[0] = Told(history[0].suggestion, "complete", (bowl(history[0].suggestion.parameters),), 1)
        told = [t.suggestion.attributes["cmaes"].get("told") for t in history]
        assert [sorted(t) for t in told if t] == [[1, 2, 3, 4], [0, 5, 6, 7]]

    def test_ends_of_a_range_are_reached(self):
        for domain in (Interval(1e-5, 1e-1, log=True), Interval(1, 16, integer=True), Interval(0.0, 0.3, step=0.1)):
            assert (decode(domain, 0.0), decode(domain, 1.0)) == (domain.low, pytest.approx(domain.high))

    def test_it_refuses_what_it_can_not_do(self):
        with pytest.raises(ValueError, match="one metric, but got 2"):
            CMAESSearcher(BOWL, ("minimize", "minimize"))
        with pytest.raises(ValueError, match="numeric range"):
            CMAESSearcher(Space((Axis("a", "a", Choice((1, 2))),)))


class TestNSGA2:
    def test_generations_are_kept_in_the_suggestions(self):
        searcher = NSGA2Searcher(BOWL, ("minimize", "maximize"), seed=1, population_size=4)
        history = []
        for i in range(12):
            made = searcher.suggest(i, history)
            history.append(Told(made, "complete", (bowl(made.parameters), made.parameters["x"]), 1))
        generations = [t.suggestion.attributes["nsga2"]["NSGAIISampler:generation"] for t in history]
        assert generations == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("searcher", [GPSearcher, CMAESSearcher, NSGA2Searcher])
def test_it_beats_random_on_a_mixed_bowl(searcher):
    seeds, trials = range(10 if searcher is not GPSearcher else 3), 40 if searcher is not GPSearcher else 16
    own = median(best_of(searcher(BOWL, seed=seed), trials) for seed in seeds)
    plain = median(best_of(RandomSearcher(BOWL, seed), trials) for seed in seeds)
    assert own < plain


@pytest.mark.parametrize("method", ["cmaes", "nsga2", "gp"])
@pytest.mark.parametrize("slots", [1, 3])
def test_a_sweep_s_decisions_follow_from_its_ledger(tmp_path, method, slots):
    sweep = plan(trials=12, method=method, space=LINE, total=9)
    drive(sweep, tmp_path / "s", backend(tmp_path / "s", slots=slots))
    assert differences(sweep, Ledger.read(tmp_path / "s").events()) == []


def _asked(searcher, count):
    history = []
    for i in range(count):
        made = searcher.suggest(i, history)
        history.append(Told(made, "complete", (bowl(made.parameters),), 3))
    return history


@pytest.mark.parametrize(
    ("method", "trials", "says"),
    [
        ("tpe", 8, "the first 8 trials of tpe are random draws, and there are only 8"),
        ("tpe", 9, None),
        ("{type: gp, n_startup_trials: 12}", 10, "the first 12 trials of gp are random draws"),
        ("nsga2", 40, "40 trials are 5 generations of nsga2; with fewer than 10"),
        ("nsga2", 80, None),
        ("cmaes", 39, "39 trials are 9.8 generations of cmaes"),
        ("cmaes", 40, None),
        ("{type: cmaes, population_size: 10}", 40, "40 trials are 4 generations of cmaes"),
        ("random", 1, None),
    ],
)
def test_too_few_trials_for_a_method_are_said(method: str, trials: int, says: str | None, tmp_path) -> None:
    axes = "learning_rate: {min: 1.0e-5, max: 1.0e-3}\n"
    found = load(tmp_path, f"{SFT}parameters:\n  {axes}method: {method}\nbudget: {{trials: {trials}}}\n").warnings
    assert [says in one for one in found] == [True] if says else found == ()
