"""The path between checkpoints: barriers found in few evaluations, noise taken for none, and the gate that stands on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from soup_table import Table, ingredients, score

from evaluators.base import ItemSet, summarise
from evaluators.statistics import contrast
from pipelines.soups.base import Blend, uniform
from pipelines.soups.recipes.gate import Gate
from pipelines.soups.recipes.greedy import GreedySoup
from pipelines.soups.recipes.path import walk_path
from pipelines.soups.recipes.pruned import PrunedSoup
from pipelines.soups.recipes.uniform import UniformSoup

ROWS = 200
ROW_SET = ItemSet(tuple(map(str, range(ROWS))))


def walk(curve, se=0.01, direction="minimize", noise=0.0, **more):  # type: ignore[no-untyped-def]
    generator, asked = np.random.default_rng(0), []

    def at(alpha: float):  # type: ignore[no-untyped-def]
        asked.append(alpha)
        return score(curve(alpha) + noise * generator.normal(), direction, se)

    ends = (score(curve(0.0), direction, se), score(curve(1.0), direction, se))
    return walk_path(at, ends, **more), asked


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("centre", [0.3, 0.5, 0.62])
def test_a_planted_barrier_is_found(direction: str, centre: float) -> None:
    factor = 1 if direction == "minimize" else -1
    path, asked = walk(lambda a: factor * 0.1 * math.exp(-(((a - centre) / 0.15) ** 2)), direction=direction)
    assert not path.passes
    assert path.barrier == pytest.approx(0.1, abs=0.02)
    assert path.at == pytest.approx(centre, abs=0.1)
    assert len(asked) <= 15


def test_noise_and_a_straight_line_are_no_barrier_and_cost_three() -> None:
    for noise in (0.0, 0.004):
        path, asked = walk(lambda a: 0.5 + 0.2 * a, noise=noise)
        assert path.passes
        assert len(asked) == 3
    path, _ = walk(lambda a: (a - 0.4) ** 2)
    assert path.passes, "a valley is no barrier"
    path, _ = walk(lambda a: 0.015 if 0 < a < 1 else 0.0, max_drop=0.0)
    assert path.passes, "within two standard errors"


def test_what_cannot_be_scored_is_a_barrier() -> None:
    path, asked = walk(lambda a: math.nan if a == 0.5 else 0.1)
    assert not path.passes
    assert path.barrier == math.inf
    assert asked == [0.5]
    for broken in (0.25, 0.125):
        path, asked = walk(lambda a, broken=broken: math.nan if a == broken else math.sin(20 * a))
        assert path.barrier == math.inf
        assert path.at == asked[-1] == broken, "it ends there, whatever else waits in that round"


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_rows_that_are_hard_for_all_hide_no_barrier(direction: str) -> None:
    """Rows differ by 1, so that the ends' errors are 0.07; the path rises by 0.05, which rows' own rises tell within 0.01."""
    factor = 1.0 if direction == "minimize" else -1.0
    generator = np.random.default_rng(0)
    hard, own = generator.normal(size=ROWS), generator.normal(size=(3, ROWS))
    items: dict[float, np.ndarray] = {}

    def at(alpha: float):  # type: ignore[no-untyped-def]
        noise = own[0] * (1 - alpha) + own[1] * alpha + own[2] * alpha * (1 - alpha)
        items[alpha] = factor * (hard + 0.1 * noise + 0.2 * alpha * (1 - alpha))
        return summarise("loss", "select", direction, ROW_SET, items[alpha])  # type: ignore[arg-type]

    def rise(alpha: float) -> tuple[float, float]:
        found = contrast([(1.0, items[alpha]), (alpha - 1.0, items[0.0]), (-alpha, items[1.0])], ROW_SET)
        return found.difference, found.se

    ends = at(0.0), at(1.0)
    assert ends[0].se > 0.06
    assert walk_path(at, ends).passes, "the ends' errors would let it pass"
    path = walk_path(at, ends, rise=rise)
    assert not path.passes
    assert (path.barrier, path.at) == (pytest.approx(0.05, abs=0.01), 0.5)
    assert path.se < 0.01
    assert path.allowed == pytest.approx(2 * path.se, abs=1e-4)
    assert walk_path(at, ends, rise=rise, max_drop=0.06).passes


def test_rises_of_rounding_are_no_barrier() -> None:
    ends = score(2.0, "minimize"), score(2.0, "minimize")
    path = walk_path(lambda a: score(2.0 + 1e-6, "minimize"), ends, rise=lambda a: (1e-6, 0.0))
    assert path.passes
    path = walk_path(lambda a: score(2.0 + 1e-3, "minimize"), ends, rise=lambda a: (1e-3, 0.0))
    assert not path.passes


def hill(blend: Blend) -> float:
    """Runs a and b share a basin; c lies in another: any mixture with it is bad."""
    weights = dict(blend.mixture)
    c = weights.get("c", 0.0)
    return 0.5 - 0.01 * weights.get("b", 0.0) + 2.0 * c * (1 - c)


@pytest.mark.parametrize("make", [UniformSoup, GreedySoup, PrunedSoup])
def test_a_run_of_another_basin_is_left_out_with_the_reason_and_its_path(make) -> None:  # type: ignore[no-untyped-def]
    table = Table(hill, "minimize")
    blend = make(gate=Gate(barrier=True)).mix(ingredients("a", "b", "c"), table)
    assert "c" not in blend.runs
    assert table.decisions["c"] == "reject"
    reason = next(event.reason for event in table.events if event.run == "c")
    assert reason.startswith("behind a barrier: 0.5 ± 0.01 worse than the straight line at 0.50 of the way")
    note = next(note for note in table.notes if note.body["run"] == "c")
    assert note.body["passes"] is False
    assert len(note.body["knots"]) <= 17
    assert note.body["barrier"] > note.body["allowed"]
    assert not any(
        {"c"} < set(one.runs) and one.mixture == uniform(one.runs) and len(one.runs) > 2 for one in table.asked
    )
