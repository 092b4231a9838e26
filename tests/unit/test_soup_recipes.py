"""Recipes as pure decisions: order, ties, NaN, both directions, and what they tell about each ingredient."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest

from evaluators.base import Direction, Score
from pipelines.soups import SOUPS
from pipelines.soups.base import Ingredient, Mixture, SoupEvent
from pipelines.soups.recipes import GreedySoup, UniformSoup, build_recipe
from sweeps.spec import SoupConfig

NAN = float("nan")


def score(value: float, direction: Direction = "maximize") -> Score:
    return Score("exact_match", "select", value, 0.01, 100, 0, direction)


def ingredients(*runs: str) -> list[Ingredient]:
    return [Ingredient(run, f"/{run}", f"hash-{run}", order) for order, run in enumerate(runs)]


class Table:
    """Scores by the set of runs in the mixture, and what was asked."""

    def __init__(self, values: dict[str, float], direction: Direction = "maximize") -> None:
        self.values, self.direction = values, direction
        self.asked: list[Mixture] = []

    def __call__(self, mixture: Mixture) -> Score:
        self.asked.append(mixture)
        assert sum(weight for _, weight in mixture) == pytest.approx(1.0)
        return score(self.values["".join(sorted(run for run, _ in mixture))], self.direction)


def decisions(events: list[SoupEvent]) -> dict[str, str]:
    return {event.run: event.decision for event in events}


def test_greedy_scores_singles_first_and_tries_best_first() -> None:
    table, events = Table({"a": 0.5, "b": 0.7, "c": 0.6, "bc": 0.65, "ab": 0.8}), []
    mixture = GreedySoup().mix(ingredients("a", "b", "c"), table, events.append)
    assert mixture == (("b", 0.5), ("a", 0.5))
    assert table.asked[:3] == [(("a", 1.0),), (("b", 1.0),), (("c", 1.0),)]
    assert table.asked[3:] == [(("b", 0.5), ("c", 0.5)), (("b", 0.5), ("a", 0.5))]
    assert decisions(events) == {"b": "start", "c": "reject", "a": "accept"}
    assert [event.best for event in events] == [0.7, 0.7, 0.8]


def test_greedy_minimises_where_smaller_is_better() -> None:
    table, events = Table({"a": 0.5, "b": 0.7, "c": 0.6, "ac": 0.45, "abc": 0.46}, "minimize"), []
    mixture = GreedySoup().mix(ingredients("a", "b", "c"), table, events.append)
    assert mixture == (("a", 0.5), ("c", 0.5))
    assert decisions(events) == {"a": "start", "c": "accept", "b": "reject"}


@pytest.mark.parametrize(("tie", "expected"), [("accept", 2), ("reject", 1)])
def test_greedy_tie(tie: str, expected: int) -> None:
    table = Table({"a": 0.5, "b": 0.4, "ab": 0.5})
    events: list[SoupEvent] = []
    recipe = build_recipe(SoupConfig(method="greedy", tie=tie))  # type: ignore[arg-type]
    assert len(recipe.mix(ingredients("a", "b"), table, events.append)) == expected
    assert events[1].reason == "the score is equal"


def test_equal_singles_go_by_trial_order() -> None:
    table = Table({"a": 0.5, "b": 0.5, "ab": 0.1})
    assert GreedySoup().mix(list(reversed(ingredients("a", "b"))), table, lambda event: None) == (("a", 1.0),)


def test_nan_never_gets_in() -> None:
    table, events = Table({"a": 0.5, "b": NAN, "c": 0.4, "d": 0.3, "ac": NAN, "ad": 0.6}), []
    mixture = GreedySoup().mix(ingredients("b", "a", "c", "d"), table, events.append)
    assert mixture == (("a", 0.5), ("d", 0.5))
    assert decisions(events) == {"a": "start", "c": "reject", "d": "accept", "b": "reject"}
    reasons = {event.run: event.reason for event in events}
    assert reasons["c"] == "the mixture could not be scored"
    assert reasons["b"] == "could not be scored alone"


@pytest.mark.parametrize("make", [UniformSoup, GreedySoup])
def test_nothing_scored_is_an_error(make: Callable[[], GreedySoup]) -> None:
    with pytest.raises(ValueError, match="no ingredient could be scored: a, b"):
        make().mix(ingredients("a", "b"), Table({"a": NAN, "b": NAN}), lambda event: None)
    with pytest.raises(ValueError, match="at least one"):
        make().mix([], Table({}), lambda event: None)


def test_uniform_takes_all_that_could_be_scored() -> None:
    table, events = Table({"a": 0.5, "b": 0.7, "c": NAN, "ab": 0.1}), []
    assert UniformSoup().mix(ingredients("a", "b", "c"), table, events.append) == (("b", 0.5), ("a", 0.5))
    assert decisions(events) == {"b": "start", "a": "accept", "c": "reject"}
    assert table.asked[-1] == (("b", 0.5), ("a", 0.5))


def test_mixed_directions_are_refused() -> None:
    answers = iter([score(0.1), score(0.2, "minimize")])
    with pytest.raises(ValueError, match="one direction"):
        GreedySoup().mix(ingredients("a", "b"), lambda mixture: next(answers), lambda event: None)


@pytest.mark.parametrize("seed", range(30))
def test_greedy_never_gets_worse(seed: int) -> None:
    generator = np.random.default_rng(seed)
    direction: Direction = "maximize" if seed % 2 else "minimize"
    known: dict[Mixture, Score] = {}

    def draw(mixture: Mixture) -> Score:
        known.setdefault(mixture, score(round(float(generator.normal()), 1), direction))
        return known[mixture]

    events: list[SoupEvent] = []
    mixture = GreedySoup().mix(ingredients(*"abcdefg"), draw, events.append)
    sign = 1 if direction == "maximize" else -1
    best = [sign * event.best for event in events]
    assert best == sorted(best)
    assert sign * known[mixture].value == best[-1] == max(best)
    assert {event.run for event in events} == set("abcdefg")
    taken = [event.run for event in events if event.decision != "reject"]
    assert [run for run, _ in mixture] == taken


def test_every_entry_of_the_table_resolves() -> None:
    for method, target in SOUPS.items():
        module, _, name = target.partition(":")
        recipe = build_recipe(SoupConfig(method=method))  # type: ignore[arg-type]
        assert type(recipe) is getattr(import_module(module), name)
    literals = SoupConfig.model_fields["method"].annotation.__args__  # type: ignore[union-attr]
    assert set(literals) == set(SOUPS)
