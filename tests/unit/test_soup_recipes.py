"""Recipes as pure decisions: order, ties, NaN, both directions, and what they tell about each ingredient."""

from __future__ import annotations

import json
import math
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from soup_table import Table, ingredients

from evaluators.base import Direction
from pipelines.soups import SOUPS
from pipelines.soups.base import Blend, Recipe, method_text, uniform
from pipelines.soups.recipes import build_recipe
from pipelines.soups.recipes.greedy import GreedySoup
from pipelines.soups.recipes.learned import LearnedSoup
from pipelines.soups.recipes.pruned import PrunedSoup
from pipelines.soups.recipes.search import SearchSoup
from pipelines.soups.recipes.toward_base import TowardBase
from pipelines.soups.recipes.uniform import MergedSoup, UniformSoup, WeightedSoup
from sweeps.soup_spec import SOUP_CONFIGS, parse_soup

NAN = float("nan")
TIES = method_text({"type": "ties", "density": 0.2})


def test_a_blend_is_known_by_its_record_and_older_records_are_averages() -> None:
    plain = Blend((("a", 0.5), ("b", 0.5)))
    assert plain.record() == {"mixture": [["a", 0.5], ["b", 0.5]]}
    assert Blend.from_record({"mixture": [["a", 0.5], ["b", 0.5]], "score": {}, "step": 3}) == plain
    other = Blend(plain.mixture, TIES, scale=0.5, seed=3, rank=8)
    assert Blend.from_record(json.loads(json.dumps(other.record()))) == other
    assert Blend((("a", 1.0),)).single == "a"
    assert Blend((("a", 1.0),), rank=4).single == "a"
    assert Blend((("a", 1.0),), scale=0.5).single is None
    assert plain.single is None


def test_greedy_scores_singles_first_and_tries_best_first() -> None:
    table = Table({"a": 0.5, "b": 0.7, "c": 0.6, "bc": 0.65, "ab": 0.8})
    blend = GreedySoup().mix(ingredients("a", "b", "c"), table)
    assert blend == Blend((("b", 0.5), ("a", 0.5)))
    assert [one.mixture for one in table.asked] == [
        (("a", 1.0),),
        (("b", 1.0),),
        (("c", 1.0),),
        (("b", 0.5), ("c", 0.5)),
        (("b", 0.5), ("a", 0.5)),
    ]
    assert table.decisions == {"b": "start", "c": "reject", "a": "accept"}
    assert [event.best for event in table.events] == [0.7, 0.7, 0.8]


def test_greedy_minimises_where_smaller_is_better() -> None:
    table = Table({"a": 0.5, "b": 0.7, "c": 0.6, "ac": 0.45, "abc": 0.46}, "minimize")
    assert GreedySoup().mix(ingredients("a", "b", "c"), table).mixture == (("a", 0.5), ("c", 0.5))
    assert table.decisions == {"a": "start", "c": "accept", "b": "reject"}


@pytest.mark.parametrize(("tie", "expected"), [("accept", 2), ("reject", 1)])
def test_greedy_tie(tie: str, expected: int) -> None:
    table = Table({"a": 0.5, "b": 0.4, "ab": 0.5})
    recipe = build_recipe(parse_soup({"method": "greedy", "tie": tie, "barrier": False}))
    assert len(recipe.mix(ingredients("a", "b"), table).mixture) == expected
    assert table.events[1].reason == "the score is equal"


def test_greedy_over_another_merge_method_tries_that() -> None:
    table = Table({"a": 0.5, "b": 0.4, "ab": 0.6})
    assert GreedySoup(merge=TIES, seed=4).mix(ingredients("a", "b"), table) == Blend(uniform("ab"), TIES, seed=4)
    assert table.asked[-1].method == TIES
    assert GreedySoup(merge=TIES).mix(ingredients("a"), table) == Blend((("a", 1.0),))


def test_equal_singles_go_by_trial_order() -> None:
    table = Table({"a": 0.5, "b": 0.5, "ab": 0.1})
    assert GreedySoup().mix(list(reversed(ingredients("a", "b"))), table).mixture == (("a", 1.0),)


def test_nan_never_gets_in() -> None:
    table = Table({"a": 0.5, "b": NAN, "c": 0.4, "d": 0.3, "ac": NAN, "ad": 0.6})
    assert GreedySoup().mix(ingredients("b", "a", "c", "d"), table).mixture == (("a", 0.5), ("d", 0.5))
    assert table.decisions == {"a": "start", "c": "reject", "d": "accept", "b": "reject"}
    reasons = {event.run: event.reason for event in table.events}
    assert reasons["c"] == "the mixture could not be scored"
    assert reasons["b"] == "could not be scored alone"


RECIPES: list[Recipe] = [
    UniformSoup(),
    GreedySoup(),
    PrunedSoup(),
    WeightedSoup([1.0, 1.0, 1.0, 1.0]),
    MergedSoup(TIES, "ties"),
    SearchSoup(evaluations=8),
    TowardBase(GreedySoup()),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: type(recipe).__name__)
def test_nothing_scored_is_an_error(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="no ingredient could be scored: a, b"):
        recipe.mix(ingredients("a", "b"), Table({"a": NAN, "b": NAN}))
    with pytest.raises(ValueError, match="at least one"):
        recipe.mix([], Table({}))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: type(recipe).__name__)
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_every_recipe_decides_about_every_run_once_and_leaves_the_unsound_out(
    recipe: Recipe, direction: Direction
) -> None:
    generator = np.random.default_rng(1)
    worth = {run: float(generator.normal()) for run in "abcde"}

    def value(blend: Blend) -> float:
        if "d" in blend.runs:
            return NAN
        return blend.scale * sum(weight * worth[run] for run, weight in blend.mixture)

    table = Table(value, direction, unsound={"e": "another base model"})
    blend = recipe.mix(ingredients(*"abcde"), table)
    assert set(table.decisions) == set("abcde")
    assert {run for run, decision in table.decisions.items() if decision != "reject"} == set(blend.runs)
    assert math.fsum(weight for _, weight in blend.mixture) == pytest.approx(1.0)
    assert not {"d", "e"} & set(blend.runs)
    assert all("e" not in one.runs for one in table.asked), "an unsound run is not even scored"
    reasons = {event.run: event.reason for event in table.events}
    assert (reasons["d"], reasons["e"]) == ("could not be scored alone", "another base model")
    assert blend in table.known


def test_mixed_directions_are_refused() -> None:
    table = Table({"a": 0.1, "b": 0.2})
    plain = table.score

    def turning(blend: Blend, *args: Any, **kwargs: Any) -> Any:
        table.direction = "minimize" if blend.runs == ("b",) else "maximize"
        return plain(blend, *args, **kwargs)

    table.score = turning  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="one direction"):
        GreedySoup().mix(ingredients("a", "b"), table)


@pytest.mark.parametrize("seed", range(30))
def test_greedy_and_pruned_never_get_worse(seed: int) -> None:
    direction: Direction = "maximize" if seed % 2 else "minimize"
    sign = 1 if direction == "maximize" else -1
    for recipe in (GreedySoup(), PrunedSoup()):
        generator = np.random.default_rng(seed)
        table = Table(lambda blend, generator=generator: round(float(generator.normal()), 1), direction)
        blend = recipe.mix(ingredients(*"abcdefg"), table)
        best = [sign * event.best for event in table.events]
        assert best == sorted(best)
        assert sign * table.known[blend].value == best[-1] == max(best)
        taken = {event.run for event in table.events if event.decision != "reject"}
        assert set(blend.runs) == taken


def test_pruned_takes_the_worst_out_first_and_never_the_last() -> None:
    values = {"a": 0.9, "b": 0.8, "c": 0.1, "abc": 0.5, "ab": 0.7, "a ": 0.9}
    table = Table({**values, "ac": 0.2})
    assert PrunedSoup().mix(ingredients("a", "b", "c"), table) == Blend((("a", 1.0),))
    assert [blend.runs for blend in table.asked[3:]] == [("a", "b", "c"), ("a", "b")]
    assert table.decisions == {"c": "reject", "b": "reject", "a": "accept"}
    kept = Table({"a": 0.5, "b": 0.5, "ab": 0.8})
    assert PrunedSoup().mix(ingredients("a", "b"), kept) == Blend(uniform("ab"))


def test_uniform_takes_all_that_could_be_scored() -> None:
    table = Table({"a": 0.5, "b": 0.7, "c": NAN, "ab": 0.1})
    assert UniformSoup().mix(ingredients("a", "b", "c"), table) == Blend((("b", 0.5), ("a", 0.5)))
    assert table.decisions == {"b": "start", "a": "accept", "c": "reject"}
    assert table.asked[-1] == Blend((("b", 0.5), ("a", 0.5)))


def test_weights_go_by_rank_or_by_trial() -> None:
    table = Table({"0000-aa/seed-0": 0.5, "0001-bb/seed-0": 0.7, "0002-cc/seed-0": 0.6}.__getitem__)
    runs = ["0000-aa/seed-0", "0001-bb/seed-0", "0002-cc/seed-0"]
    table.values = lambda blend: {runs[0]: 0.5, runs[1]: 0.7, runs[2]: 0.6}.get(blend.runs[0], 0.0)
    blend = WeightedSoup([3, 1]).mix(ingredients(*runs), table)
    assert blend.mixture == ((runs[1], 0.75), (runs[2], 0.25))
    assert table.decisions[runs[0]] == "reject"
    by_name = Table(table.values)
    blend = WeightedSoup({"0": 1.0, "0002-cc": 3.0}).mix(ingredients(*runs), by_name)
    assert dict(blend.mixture) == {runs[0]: 0.25, runs[2]: 0.75}
    with pytest.raises(ValueError, match="none of the runs has a weight"):
        WeightedSoup({"7": 1.0}).mix(ingredients(*runs), Table(table.values))


def test_a_learned_soup_holds_the_trained_weights() -> None:
    table = Table(lambda blend: 0.5 if len(blend.runs) == 1 else 0.8)
    columns = {"layer.0": [0.7, 0.3], "layer.1": [0.5, 0.5]}
    table.learned = lambda runs, settings: {"coefficients": columns, "losses": [1.0], "temperature": 1.2, "epochs": 1}
    blend = LearnedSoup({"per": "layer"}).mix(ingredients("a", "b"), table)
    assert blend.mixture == (("a", pytest.approx(0.6)), ("b", pytest.approx(0.4)))
    assert json.loads(blend.method) == {"type": "learned", "per": "layer", "coefficients": columns}
    assert table.decisions == {"a": "start", "b": "accept"}
    assert "0.5 to 0.7" in table.events[0].reason
    assert table.notes[0].body["temperature"] == 1.2


def bowl(blend: Blend) -> float:
    """A loss whose minimum is at weights .6, .3, .1, found by nothing but a search."""
    weights = dict(blend.mixture)
    return sum((weights.get(run, 0.0) - best) ** 2 for run, best in (("a", 0.6), ("b", 0.3), ("c", 0.1)))


def test_the_search_finds_weights_and_survives_failures() -> None:
    table = Table(bowl, "minimize")
    blend = SearchSoup(evaluations=150, seed=3).mix(ingredients("a", "b", "c"), table)
    assert table.known[blend].value < 0.01 < bowl(Blend(uniform("abc")))
    assert len(table.asked) <= 3 + 150 + 7
    count = [0]

    def failing(blend: Blend) -> float:
        count[0] += 1
        return NAN if len(blend.runs) > 1 and count[0] % 3 == 0 else bowl(blend)

    broken = Table(failing, "minimize")
    found = SearchSoup(evaluations=150, seed=3).mix(ingredients("a", "b", "c"), broken)
    assert broken.known[found].value < 0.03
    (note,) = broken.notes
    assert note.body["failed"] > 30
    again = Table(bowl, "minimize")
    assert SearchSoup(evaluations=150, seed=3).mix(ingredients("a", "b", "c"), again) == blend
    assert again.asked == table.asked


def test_the_search_moves_the_numbers_of_a_method_too() -> None:
    def value(blend: Blend) -> float:
        method = json.loads(blend.method)
        return 1.0 if len(blend.runs) == 1 else (method["density"] - 0.7) ** 2 + (blend.scale - 0.9) ** 2

    table = Table(value, "minimize")
    blend = SearchSoup(evaluations=120, merge=TIES).mix(ingredients("a", "b"), table)
    assert json.loads(blend.method)["density"] == pytest.approx(0.7, abs=0.15)
    assert blend.scale == pytest.approx(0.9, abs=0.15)


@pytest.mark.parametrize(("peak", "taken"), [(0.6, True), (1.0, False), (0.98, False)])
def test_toward_the_base_only_where_it_is_better_beyond_noise(peak: float, taken: bool) -> None:
    table = Table(lambda blend: 0.8 - (blend.scale - peak) ** 2)
    blend = TowardBase(GreedySoup(), evaluations=12).mix(ingredients("a"), table)
    (note,) = table.notes
    assert note.what == "toward_base"
    assert len(note.body["knots"]) <= 13
    if taken:
        assert blend.scale == pytest.approx(peak, abs=0.07)
        assert note.body["taken"] == blend.scale
    else:
        assert blend.scale == 1.0
        assert note.body["taken"] == 1.0


def test_every_entry_of_the_table_resolves() -> None:
    methods = {str(config.model_fields["method"].default) for config in SOUP_CONFIGS} - {"sparse"}  # phases, no recipe
    assert methods == set(SOUPS)
    for method in methods:
        module, _, name = SOUPS[method].partition(":")
        more = {"weights": [1.0]} if method == "weighted" else {}
        recipe = build_recipe(parse_soup({"method": method, **more}))
        assert type(recipe) is getattr(import_module(module), name)
    assert isinstance(build_recipe(parse_soup({"method": "ties", "toward_base": True})), TowardBase)
