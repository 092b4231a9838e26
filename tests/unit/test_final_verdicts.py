"""Verdicts against formulas: pairing, training seeds, and what can't be paired."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evaluators.base import Direction, ItemSet, summarise
from evaluators.statistics import paired
from sweeps.events import StoredItems
from sweeps.verdicts import Side, compare, verdict, with_holm

N = 60
ROWS = ItemSet(tuple(f"row-{i}" for i in range(N)), groups=tuple(f"group-{i // 2}" for i in range(N)))


def made(name: str, *vectors: np.ndarray, item_set: ItemSet | None = ROWS, seeds: tuple[int, ...] = ()) -> Side:  # type: ignore[type-arg]
    scores = tuple(summarise("loss", "test", "minimize", item_set or ROWS, vector) for vector in vectors)
    stored = tuple(None if item_set is None else StoredItems(item_set, vector.astype(np.float32)) for vector in vectors)
    return Side(name, scores, stored, seeds)


def draw(seed: int, mean: float = 0.0, spread: float = 1.0) -> np.ndarray:  # type: ignore[type-arg]
    return np.float32(np.random.default_rng(seed).normal(mean, spread, N)).astype(np.float64)


def test_one_training_a_side_is_the_paired_comparison() -> None:
    a, b = draw(0), draw(1)
    comparison = compare(made("a", a), made("b", b))
    assert comparison.result == paired(a, b, ROWS)
    assert (comparison.covers, comparison.note) == ("data", "")


def test_training_seeds_widen_the_interval() -> None:
    a, base = [draw(seed, 0.1 * seed) for seed in range(3)], draw(9)
    comparison = compare(made("a", *a, seeds=(1, 2, 3)), made("b", base))
    data = paired(np.mean(a, axis=0), base, ROWS)
    between = np.var([vector.mean() for vector in a], ddof=1) / 3
    variance = data.se**2 + between
    freedom = variance**2 / (data.se**4 / (N / 2 - 1) + between**2 / 2)
    result = comparison.result
    assert result.difference == pytest.approx(data.difference)
    assert result.se == pytest.approx(math.sqrt(variance))
    assert result.high - result.difference == pytest.approx(stats.t.ppf(0.975, freedom) * result.se)
    assert result.p == pytest.approx(2 * stats.t.sf(abs(result.difference) / result.se, freedom))
    assert comparison.covers == "data and training"
    assert result.se > data.se


def test_interval_over_training_covers() -> None:
    """200 simulated comparisons without a difference: the interval holds 0 about as often as it says."""
    held = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        rows = generator.normal(size=N)
        left = [rows + generator.normal() * 0.5 + 0.3 * generator.normal(size=N) for _ in range(3)]
        right = [rows + generator.normal() * 0.5 + 0.3 * generator.normal(size=N) for _ in range(3)]
        result = compare(made("a", *left), made("b", *right)).result
        held += result.low <= 0 <= result.high
    assert 180 <= held <= 200


@pytest.mark.parametrize(("direction", "better"), [("minimize", "right"), ("maximize", "left")])
def test_better_only_where_the_interval_excludes_zero(direction: Direction, better: str) -> None:
    a = draw(0)
    assert verdict(made("a", a + 1 + 0.1 * draw(1)), made("b", a), "test/loss", direction)["better"] == better
    assert verdict(made("a", a + 0.001 * draw(2)), made("b", a), "test/loss", direction)["better"] == "neither"


def test_equal_sides_are_no_difference() -> None:
    body = verdict(made("soup", draw(0)), made("winner", draw(0)), "test/loss", "minimize")
    assert (body["difference"], body["p"], body["better"]) == (0.0, 1.0, "neither")


def test_nothing_scored_is_null_not_zero() -> None:
    nothing = np.full(N, np.nan)
    body = verdict(made("a", nothing), made("b", draw(0)), "test/loss", "minimize")
    assert body["difference"] is body["p"] is body["low"] is None
    assert (body["n"], body["better"]) == (0, "neither")


def test_other_weights_are_averaged_and_noted() -> None:
    a, b = draw(0), draw(1)
    light = ItemSet(ROWS.ids, tuple([1.0] * N), ROWS.groups)
    heavy = ItemSet(ROWS.ids, tuple(float(1 + i % 3) for i in range(N)), ROWS.groups)
    comparison = compare(made("a", a, item_set=light), made("b", b, item_set=heavy))
    mean = ItemSet(ROWS.ids, tuple((1 + w) / 2 for w in heavy.weights or ()), ROWS.groups)
    assert comparison.result == paired(a, b, mean)
    assert "weigh the rows differently" in comparison.note


def test_without_items_the_errors_are_added() -> None:
    a, b = draw(0), draw(1, 0.5)
    comparison = compare(made("a", a, item_set=None), made("b", b, item_set=None))
    se = math.hypot(*(summarise("m", "test", "minimize", ROWS, vector).se for vector in (a, b)))
    assert comparison.result.se == pytest.approx(se)
    assert "unpaired" in comparison.note
    other = ItemSet(tuple(f"other-{i}" for i in range(N)))
    assert "different rows" in compare(made("a", a), made("b", b, item_set=other)).note


def test_holm_counts_the_earlier_verdicts() -> None:
    bodies = with_holm([{"p": 0.5}, {"p": None}], [{"p": 0.01}, {"p": 0.04}, {"p": None}])
    assert [body["p_holm"] for body in bodies] == [0.03, 0.08, None]
