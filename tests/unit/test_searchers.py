"""Searchers: one contract, then each one's own."""

import json
import math
import subprocess
import sys
from typing import get_args

import pytest

from sweeps.searchers import SEARCHERS, build_searcher
from sweeps.searchers.base import Told
from sweeps.searchers.basic import GridSearcher, RandomSearcher
from sweeps.searchers.gp import GPSearcher
from sweeps.searchers.optuna import TPESearcher
from sweeps.searchers.rungs import comparable
from sweeps.searchers.studies import tpe_past
from sweeps.space import Axis, Branch, Choice, Group, Interval, Space
from sweeps.spec import CMAESConfig, GPConfig, GridConfig, MethodConfig, NSGA2Config, RandomConfig, TPEConfig
from sweeps.trial import canonical

CHOICES = Space(
    (Axis("k", "k", Choice((1, True, 1.5, "a"))), Axis("m", "m", Choice((["q"], ["q", "v"], {"a": 1}, None)))),
    (Group("pair", ({"a": 1, "b": 2}, {"a": 3, "b": 4})),),
    (
        Branch(
            "opt",
            {
                "sgd": Space((Axis("opt.sgd.momentum", "opt.momentum", Choice((0.0, 0.9))),)),
                "adam": Space((Axis("opt.adam.beta", "opt.beta", Choice((0.9, 0.99, 0.999))),)),
            },
        ),
    ),
)
MIXED = Space(
    (
        Axis("lr", "lr", Interval(1e-5, 1e-2, log=True)),
        Axis("w", "w", Interval(0.0, 0.3, step=0.1)),
        Axis("r", "r", Interval(2, 64, log=True, integer=True)),
        Axis("s", "s", Interval(8, 64, step=8, log=True, integer=True)),
        Axis("n", "n", Interval(1, 9, step=2, integer=True)),
        *CHOICES.axes,
    ),
    CHOICES.groups,
    CHOICES.branches,
)
CONFIGS = {
    "random": RandomConfig(seed=3),
    "grid": GridConfig(seed=3, shuffle=True),
    "tpe": TPEConfig(seed=3),
    "gp": GPConfig(seed=3, n_startup_trials=4),
    "cmaes": CMAESConfig(seed=3),
    "nsga2": NSGA2Config(seed=3),
}


LONG, GP_LONG = 20, 8
"""Suggestions of a history; the process costs half a second each from the sixth on, two orders more than the others."""


@pytest.fixture(params=sorted(SEARCHERS), scope="module")
def make(request):
    space = CHOICES if request.param == "grid" else MIXED
    return lambda: build_searcher(CONFIGS[request.param], space, ("minimize",))


@pytest.fixture(scope="module")
def long(make):
    return GP_LONG if isinstance(make(), GPSearcher) else LONG


@pytest.fixture(scope="module")
def whole(make, long):
    """The history of one searcher from the first suggestion on."""
    return ask(make(), long)


def loss(suggestion):
    p = suggestion.parameters
    return abs(math.log10(p.get("lr", 1e-3)) + 3) + (0.5 if p["opt.type"] == "sgd" else 0.0) + p["a"] / 10


def told(suggestion, index):
    """A history with everything in it: complete at two rungs, running, failed."""
    if index % 5 == 3:
        return Told(suggestion, "running")
    if index % 7 == 6:
        return Told(suggestion, "failed")
    return Told(suggestion, "complete", (loss(suggestion),), 9 if index % 3 == 0 else 3)


def ask(searcher, count, history=()):
    history = list(history)
    while len(history) < count:
        history.append(told(searcher.suggest(len(history), history), len(history)))
    return history


class TestContract:
    def test_the_table_names_them(self):
        union = get_args(get_args(MethodConfig)[0])
        assert set(SEARCHERS) == set(CONFIGS) == {config().type for config in union}

    def test_the_same_seed_index_and_history_give_the_same(self, make, long, whole):
        searcher = make()
        assert [searcher.suggest(i, whole[:i]) for i in range(long)] == [t.suggestion for t in whole]
        assert searcher.suggest(long - 3, whole[: long - 3]) == whole[long - 3].suggestion

    def test_a_fresh_searcher_goes_on_where_another_stopped(self, make, long, whole):
        assert ask(make(), long, history=whole[: long - 2]) == whole

    def test_a_suggestion_survives_the_ledger(self, make, whole):
        for entry in whole[:12]:
            made = entry.suggestion
            for part in (made.parameters, made.choices, made.distributions, made.attributes):
                back = json.loads(canonical(part))
                assert back == part
                assert canonical(back) == canonical(part)
            assert make().space.replay(made.choices) == made.parameters

    def test_values_are_legal_and_only_of_the_open_arm(self, make, whole):
        space = make().space
        axes = {axis.name: axis.domain for axis in space.all_axes()}
        for entry in whole:
            made = entry.suggestion
            arm = made.choices["opt"]
            assert made.parameters["opt.type"] == arm
            assert ("opt.momentum" in made.parameters) == (arm == "sgd")
            for name, value in made.choices.items():
                domain = axes.get(name)
                if isinstance(domain, Choice):
                    assert canonical(value) in [canonical(v) for v in domain.values]
                elif domain is not None:
                    assert domain.snap(value) == pytest.approx(value)
                    assert domain.low <= value <= domain.high
                    assert isinstance(value, int) == domain.integer

    def test_a_finite_one_ends_and_repeats_nothing(self, make):
        searcher = make()
        if searcher.finite is None:
            assert searcher.suggest(500, []) is not None
            return
        made = [searcher.suggest(i, []) for i in range(searcher.finite)]
        assert len({canonical(s.choices) for s in made}) == searcher.finite == CHOICES.size
        assert searcher.suggest(searcher.finite, []) is None

    def test_seeds_differ(self, make):
        searcher = make()
        other = type(searcher)(searcher.space, seed=4, **({"shuffle": True} if searcher.finite else {}))
        assert [t.suggestion.choices for t in ask(other, 6)] != [t.suggestion.choices for t in ask(searcher, 6)]


class TestRandom:
    def test_draws_are_spread_and_history_plays_no_part(self):
        searcher = RandomSearcher(MIXED, 0)
        made = [searcher.suggest(i, []) for i in range(300)]
        low = sum(s.parameters["lr"] < 10**-3.5 for s in made)
        assert 110 < low < 190
        assert {s.choices["n"] for s in made} == {1, 3, 5, 7, 9}
        assert {s.choices["together.pair"] for s in made} == {0, 1}
        assert made[5] == searcher.suggest(5, ask(searcher, 5))


class TestGrid:
    def test_the_file_s_order_first_axis_slowest(self):
        space = Space((Axis("a", "a", Choice((1, 2))), Axis("b", "b", Choice(("x", "y")))))
        made = [GridSearcher(space).suggest(i, []).parameters for i in range(4)]
        assert made == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]

    def test_any_index_may_be_asked_first(self):
        assert GridSearcher(CHOICES).suggest(40, []) == [GridSearcher(CHOICES).suggest(i, []) for i in (3, 40)][1]

    def test_a_continuous_axis_is_refused(self):
        with pytest.raises(ValueError, match="continuous axis lr"):
            GridSearcher(MIXED)


class TestTPE:
    def test_it_beats_random_on_a_smooth_bowl(self):
        space = Space((Axis("x", "x", Interval(0, 1)), Axis("y", "y", Interval(0, 1))))

        def bowl(s):
            return (s.parameters["x"] - 0.7) ** 2 + (s.parameters["y"] - 0.2) ** 2

        def late(searcher):
            history = []
            for i in range(40):
                s = searcher.suggest(i, history)
                history.append(Told(s, "complete", (bowl(s),), 9))
            return sum(t.values[0] for t in history[20:]) / 20

        tpe = [late(TPESearcher(space, ("minimize",), seed)) for seed in range(3)]
        plain = [late(RandomSearcher(space, seed)) for seed in range(3)]
        assert max(tpe) < min(plain)

    def test_the_direction_is_obeyed(self):
        space = Space((Axis("x", "x", Interval(0, 1)),))
        means = {}
        for direction in ("minimize", "maximize"):
            searcher, history = TPESearcher(space, (direction,), 0), []
            for i in range(30):
                s = searcher.suggest(i, history)
                history.append(Told(s, "complete", (s.parameters["x"],), 1))
            means[direction] = sum(t.values[0] for t in history[10:]) / 20
        assert means["minimize"] < 0.3 < 0.7 < means["maximize"]

    def test_a_higher_rung_outranks_a_better_value_below(self):
        import optuna

        searcher = TPESearcher(MIXED, ("minimize",), 0)
        made = searcher.suggest(0, [])
        state = optuna.trial.TrialState
        history = [Told(made, "complete", (0.1,), 3), Told(made, "complete", (0.9,), 9)]
        history += [Told(made, "running"), Told(made, "failed")]
        low, high, running, failed = tpe_past(history, comparable(history, ("minimize",)))
        assert (low.state, list(low.intermediate_values)) == (state.PRUNED, [3])
        assert high.state == state.COMPLETE
        assert (running.state, failed.state) == (state.RUNNING, state.FAIL)
        assert low.params["k"] == canonical(made.choices["k"])

    def test_running_trials_are_part_of_the_answer(self):
        searcher = TPESearcher(MIXED, ("minimize",), 0)
        history = [Told(t.suggestion, "complete", (loss(t.suggestion),), 9) for t in ask(searcher, 16)]
        best = min(range(16), key=lambda i: history[i].values)
        told_running = [Told(t.suggestion, "running") if i == best else t for i, t in enumerate(history)]
        assert searcher.suggest(16, history) != searcher.suggest(16, told_running)

    def test_several_metrics(self):
        searcher = TPESearcher(MIXED, ("minimize", "maximize"), 0)
        history = []
        for i in range(14):
            s = searcher.suggest(i, history)
            history.append(Told(s, "complete", (loss(s), s.parameters["a"]), 3 + i % 2))
        assert searcher.suggest(14, history) == searcher.suggest(14, history)


def test_optuna_is_loaded_at_the_first_suggestion_and_neither_ray_nor_torch_at_all():
    code = (
        "import sys, sweeps.engine, sweeps.simulate, sweeps.replay, sweeps.searchers.gp, sweeps.searchers.cmaes, sweeps.searchers.nsga2\n"
        "print([m for m in ('optuna', 'cmaes', 'ray', 'torch', 'transformers', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
