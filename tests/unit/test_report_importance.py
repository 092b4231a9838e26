"""Importance against functions whose main effects are known, and against itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sweeps.report.importance import LEAST, Importance, importance


def main_effects(f, dimensions: int) -> list[float]:
    """Var(E[rank | x_d]) / Var(rank) of a function of uniform variables, by brute force."""
    x = np.random.default_rng(0).random((40_000, dimensions))
    rank = np.argsort(np.argsort(f(x))) / len(x)
    cells = (x * 25).astype(int)
    return [float(np.var([rank[cells[:, d] == k].mean() for k in range(25)]) / rank.var()) for d in range(dimensions)]


FUNCTIONS = {
    "one alone": lambda x: x[:, 0],
    "two to one": lambda x: x[:, 0] + 0.5 * x[:, 1],
    "a bowl": lambda x: (x[:, 0] - 0.4) ** 2 + 0.3 * (x[:, 1] - 0.6) ** 2,
    "only together": lambda x: (x[:, 0] - 0.5) * (x[:, 1] - 0.5),
}


def found(f, n: int, seed: int, dimensions: int = 3) -> dict[str, object]:
    x = np.random.default_rng(seed).random((n, dimensions))
    made = importance({str(d): x[:, d] for d in range(dimensions)}, f(x), seed=seed)
    return {index.name: index for index in made.indices}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_comes_to_the_known_main_effects(name: str) -> None:
    f, truth = FUNCTIONS[name], main_effects(FUNCTIONS[name], 3)
    values = np.mean([[found(f, 200, seed)[str(d)].value for d in range(3)] for seed in range(2)], axis=0)
    assert values == pytest.approx(truth, abs=0.1)


def test_twenty_trials_find_the_strong_one_and_hold_back_on_the_rest() -> None:
    told, false = 0, 0
    for seed in range(10):
        indices = found(FUNCTIONS["two to one"], LEAST, seed)
        told += indices["0"].value > indices["0"].noise
        false += indices["2"].value > indices["2"].noise
    assert told >= 9
    assert false <= 2


def test_noise_alone_is_told_from_chance_once_in_twenty() -> None:
    false = 0
    for seed in range(15):
        rng = np.random.default_rng(seed)
        x = rng.random((30, 4))
        made = importance({str(d): x[:, d] for d in range(4)}, rng.random(30), seed=seed)
        false += any(index.value > index.noise for index in made.indices)
    assert false <= 3


def test_intervals_cover_the_truth() -> None:
    truth = main_effects(FUNCTIONS["two to one"], 3)
    hits = [
        index.low <= truth[int(name)] <= index.high
        for seed in range(8)
        for name, index in found(FUNCTIONS["two to one"], 64, seed).items()
    ]
    assert np.mean(hits) >= 0.8


def test_only_the_order_of_the_scores_counts() -> None:
    x = np.random.default_rng(3).random((40, 2))
    y = x[:, 0] + 0.1 * x[:, 1]
    columns = {"a": x[:, 0], "b": x[:, 1]}
    diverged = np.exp(20 * y)
    assert importance(columns, y) == importance(columns, diverged)


def test_categories_and_ties() -> None:
    codes = np.arange(60, dtype=np.int64) % 3
    rng = np.random.default_rng(0)
    made = importance({"kind": codes, "x": rng.random(60)}, codes.astype(float))
    first, second = made.indices
    assert (first.name, second.name) == ("kind", "x")
    assert first.value > 0.95
    assert second.value < second.noise


def test_a_parameter_of_a_branch_is_judged_among_the_trials_that_set_it() -> None:
    rng = np.random.default_rng(0)
    y = rng.random(60)
    set_by_half = np.where(np.arange(60) % 2 == 0, y, math.nan)
    few = np.where(np.arange(60) < 7, y, math.nan)
    indices = {index.name: index for index in importance({"half": set_by_half, "few": few}, y).indices}
    assert indices["half"].n == 30
    assert indices["half"].value > 0.9
    assert math.isnan(indices["few"].value)
    assert indices["few"].reason == "set by 7 trials; it takes 20"


def test_says_why_there_is_none() -> None:
    assert importance({"x": np.zeros(19)}, np.zeros(19)) == Importance(
        19, reason="19 of the 20 ended trials that it takes: with fewer, chance decides"
    )
    (index,) = importance({"x": np.ones(25)}, np.arange(25.0)).indices
    assert index.reason == "it had one value only"
    assert index.record()["value"] is None


def test_equal_scores_have_no_importance() -> None:
    (index,) = importance({"x": np.random.default_rng(0).random(25)}, np.zeros(25)).indices
    assert index.value == 0.0


def test_many_trials_are_thinned_not_refused() -> None:
    x = np.random.default_rng(0).random(1500)
    made = importance({"x": x}, x)
    assert made.n == 1500
    assert made.indices[0].n == 400
    assert made.indices[0].value > 0.95
