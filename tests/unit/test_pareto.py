"""Fronts, orders and volumes against brute force, and against Optuna's own."""

import itertools
import math

import numpy as np
import pytest

from sweeps.pareto import Ranking, dominates, fronts, hypervolume, representatives, spread, worst


def clouds(metrics, count=25):
    """Point clouds with ties and duplicates, coarse and fine, from one point on."""
    generator = np.random.default_rng(metrics)
    for i in range(count):
        n = int(generator.integers(1, 30))
        yield generator.integers(0, 5, (n, metrics)).astype(float) if i % 2 else generator.random((n, metrics))


def peeled(points):
    """Front numbers by taking away what nothing dominates, again and again."""
    found, left, k = {}, set(range(len(points))), 0
    while left:
        top = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        found |= dict.fromkeys(top, k)
        left, k = left - top, k + 1
    return [found[i] for i in range(len(points))]


def by_inclusion(points, reference):
    """The union of boxes, by inclusion and exclusion."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for some in itertools.combinations(points, size):
            sides = [max(0.0, r - max(p[m] for p in some)) for m, r in enumerate(reference)]
            total -= (-1) ** size * math.prod(sides)
    return total


def test_dominating_is_nowhere_worse_and_somewhere_better():
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 3), (2, 2))
    with pytest.raises(ValueError, match="argument 2"):
        dominates((1,), (1, 2))


@pytest.mark.parametrize("metrics", [1, 2, 3, 4, 5])
def test_fronts_are_what_peeling_gives_and_what_optuna_gives(metrics):
    from optuna.study._multi_objective import _fast_non_domination_rank

    for points in clouds(metrics):
        assert fronts(points) == peeled(points.tolist())
        assert fronts(points) == _fast_non_domination_rank(points).tolist()


def test_fronts_of_nothing_and_of_no_number():
    assert fronts([]) == []
    assert fronts([[1.0, 2.0], [1.0, 2.0]]) == [0, 0]
    assert fronts([[math.inf, 1.0], [0.0, 1.0]]) == [1, 0]
    with pytest.raises(ValueError, match="NaN"):
        fronts([[1.0, math.nan]])
    with pytest.raises(ValueError, match="shape"):
        fronts([1.0, 2.0])


@pytest.mark.parametrize("metrics", [2, 3, 4])
def test_spread_takes_the_farthest_point_next(metrics):
    for points in clouds(metrics):
        order = spread(points)
        assert sorted(order) == list(range(len(points)))
        assert tuple(points[order[0]]) == min(map(tuple, points))
        extent = np.where(np.ptp(points, axis=0) > 0, np.ptp(points, axis=0), 1.0)
        scaled = (points - points.min(axis=0)) / extent
        for k in range(1, len(order)):
            away = [min(np.linalg.norm(scaled[i] - scaled[j]) for j in order[:k]) for i in order[k:]]
            assert away[0] == pytest.approx(max(away), abs=1e-9)


def test_spread_begins_with_the_chosen_and_a_metrics_unit_does_not_matter():
    points = np.random.default_rng(0).random((12, 2))
    assert spread(points, [3, 7])[:2] == [3, 7]
    assert spread(points) == spread(points * [1.0, 1e6] + [5.0, -3.0])
    assert spread([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]) == [0, 1, 2]


def ranked(*given):
    """All of a ranking."""
    return list(Ranking(*given))


def test_a_ranking_goes_front_by_front_and_keeps_those_that_were_chosen():
    for points in clouds(3):
        numbers = fronts(points)
        order = ranked(points)
        assert [numbers[i] for i in order] == sorted(numbers)
        chosen = [i % 3 == 0 for i in range(len(points))]
        kept = ranked(points, chosen)
        for front in set(numbers):
            marks = [chosen[i] for i in kept if numbers[i] == front]
            assert marks == sorted(marks, reverse=True)
    assert ranked(np.empty((0, 2))) == []


def test_what_is_asked_of_a_ranking_is_as_in_the_whole_of_it():
    rng = np.random.default_rng(3)
    for n in (1, 2, 7, 60):
        points = np.round(rng.normal(size=(n, 2)), 1)  # some are equal
        chosen, wanted = rng.random(n) < 0.3, rng.random(n) < 0.4
        whole = ranked(points, chosen)
        for index in rng.permutation(n):
            assert whole[Ranking(points, chosen).place(int(index))] == index
        best = Ranking(points, chosen).first(wanted)
        assert best == next((place for place, index in enumerate(whole) if wanted[index]), None)
        assert sorted(whole) == list(range(n))
    assert Ranking(np.empty((0, 2))).first([]) is None
    with pytest.raises(IndexError):
        Ranking([[1.0, 2.0]])[1]


def test_a_ranking_of_one_metric_is_its_order():
    values = [3.0, 1.0, 2.0]
    assert ranked([[v] for v in values]) == [1, 2, 0]


def test_representatives_are_the_front_one_a_group():
    points = [[0.0, 9.0], [1.0, 1.0], [0.5, 5.0], [9.0, 0.0], [2.0, 2.0], [1.0, 1.0]]
    assert representatives(points, range(6)) == [0, 1, 2, 3, 5]
    assert representatives(points, ["a", "b", "c", "d", "e", "b"]) == [0, 1, 2, 3]
    assert representatives(points, range(6), 2) == [0, 3]
    assert representatives([], []) == []


@pytest.mark.parametrize("metrics", [1, 2, 3, 4, 5])
def test_the_hypervolume_is_that_of_the_union_and_optunas(metrics):
    from optuna._hypervolume import compute_hypervolume

    for points in clouds(metrics):
        reference = np.full(metrics, 4.0 if points.max() > 1 else 0.9)
        inside = points[(points < reference).all(axis=1)]
        volume = hypervolume(points, reference)
        assert volume == pytest.approx(compute_hypervolume(inside, reference) if len(inside) else 0.0, rel=1e-9)
        few = inside[:9].tolist()
        assert hypervolume(few, reference) == pytest.approx(by_inclusion(few, reference), rel=1e-9)


def test_a_hypervolume_grows_with_a_point_that_is_not_dominated_and_with_no_other():
    points = np.random.default_rng(1).random((8, 3))
    reference = worst(points) + 0.1
    volume = hypervolume(points, reference)
    assert hypervolume([*points, points.max(axis=0)], reference) == pytest.approx(volume)
    assert hypervolume([*points, points.min(axis=0) - 0.1], reference) > volume
    assert hypervolume(points, worst(points)) < volume
    assert hypervolume([reference], reference) == 0.0


def test_a_reference_of_another_length_is_refused():
    with pytest.raises(ValueError, match="one number a metric"):
        hypervolume([[1.0, 2.0]], [1.0, 2.0, 3.0])
