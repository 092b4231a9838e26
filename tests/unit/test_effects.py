"""What axes are worth: a whole grid is the plain average of matched differences, and what can't be told is not told."""

import itertools
import json
import math

import numpy as np
import pytest

from evaluators.base import ItemSet
from evaluators.statistics import items_to_tell, paired
from sweeps.effects import Trial, effects, lines
from sweeps.events import StoredItems

ITEMS = ItemSet(tuple(f"q{i}" for i in range(50)))


def stored(values, item_set=ITEMS):
    return StoredItems(item_set, np.asarray(values, dtype=np.float32))


def grid(seed=0, noise=0.1):
    """2 stores x 3 sizes: the store is worth 0.1, the size 0.2 and 0.3."""
    generator = np.random.default_rng(seed)
    hard = generator.random(50)
    trials = []
    for store, size in itertools.product(("flat", "hnsw"), (200, 400, 800)):
        true = 0.2 + 0.1 * (store == "hnsw") + {200: 0.0, 400: 0.2, 800: 0.3}[size]
        trials.append(
            Trial({"store.type": store, "size": size}, stored(true + 0.3 * hard + generator.normal(0, noise, 50)))
        )
    return trials


def test_on_a_grid_an_effect_is_the_mean_of_matched_differences():
    trials = grid()
    found = {(one.path, one.value): one for one in effects(trials, "maximize")}
    by = {(t.parameters["store.type"], t.parameters["size"]): t.items.values.astype(float) for t in trials}
    store = np.mean([by["hnsw", size] - by["flat", size] for size in (200, 400, 800)], axis=0)
    size = np.mean([by[store, 800] - by[store, 200] for store in ("flat", "hnsw")], axis=0)
    plain = paired(store, np.zeros(50), ITEMS)
    assert found["store.type", "hnsw"].difference == pytest.approx(store.mean())
    assert found["store.type", "hnsw"].se == pytest.approx(plain.se)
    assert found["size", "800"].difference == pytest.approx(size.mean())
    assert found["size", "800"].base == "200"
    assert {one.trials for one in found.values()} == {6}


def test_true_effects_are_inside_their_intervals_and_shown():
    found = {(one.path, one.value): one for one in effects(grid(), "maximize")}
    for key, true in {("store.type", "hnsw"): 0.1, ("size", "400"): 0.2, ("size", "800"): 0.3}.items():
        assert found[key].low < true < found[key].high
        assert found[key].better == 1
    assert {one.better for one in effects(grid(), "minimize")} == {-1}


def test_noise_alone_is_hardly_ever_shown():
    shown = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        trials = [Trial({"a": a, "b": b}, stored(generator.random(50))) for a in (1, 2) for b in (1, 2, 3)]
        shown += any(one.better for one in effects(trials, "maximize"))
    assert shown <= 9, "5 % of 60 are 3; 9 would happen by chance less than once in 500 times"


def test_the_largest_stands_first():
    assert [one.value for one in effects(grid(), "maximize")] == ["800", "400", "hnsw"]


def test_an_axis_of_one_arm_is_fitted_on_its_arm():
    trials = [Trial({"type": "bm25", "k1": k1}, stored(np.full(50, 0.5 + 0.1 * (k1 == 1.5)))) for k1 in (0.9, 1.5)] + [
        Trial({"type": "dense"}, stored(np.full(50, 0.2)))
    ]
    found = {(one.path, one.value): one for one in effects(trials, "maximize")}
    assert found["k1", "1.5"].difference == pytest.approx(0.1)
    assert found["k1", "1.5"].trials == 2
    assert ("type", "dense") in found


def test_what_moves_together_is_not_told_apart():
    trials = [Trial({"a": x, "b": x}, stored(np.full(50, float(x)))) for x in (1, 2)]
    assert effects(trials, "maximize") == []


def test_stopped_trials_are_compared_on_what_all_answered():
    trials = grid()
    head = ItemSet(ITEMS.ids[:20])
    trials[0] = Trial(trials[0].parameters, stored(trials[0].items.values[:20], head))
    assert {one.n for one in effects(trials, "maximize")} == {20}


def test_other_items_and_wide_axes_are_left_out():
    trials = grid()
    other = ItemSet(tuple(f"x{i}" for i in range(50)))
    assert (
        effects([*trials[:-1], Trial(trials[-1].parameters, stored(trials[-1].items.values, other))], "maximize") == []
    )
    many = [Trial({"x": x}, stored(np.full(50, x / 20))) for x in range(10)]
    assert effects(many, "maximize") == []
    assert effects(trials[:1], "maximize") == []


def test_records_and_lines_can_be_read():
    found = effects(grid(), "maximize")
    json.dumps([one.record() for one in found], allow_nan=False)
    first = lines(found, "tune/span_recall")[0]
    assert first[:2] == ["size", "200 -> 800"]
    assert first[4] == "better"


def test_items_to_tell_is_the_sample_size_of_a_paired_test():
    generator = np.random.default_rng(0)
    left = generator.random(50)
    result = paired(left, left - generator.normal(0.05, 0.3, 50), ITEMS)
    deviation = result.se * math.sqrt(50)
    assert items_to_tell(result) == pytest.approx(
        ((1.959964 + 0.841621) * deviation / result.difference) ** 2, rel=1e-5
    )
    assert math.isinf(items_to_tell(paired(left, left, ITEMS)))
    assert math.isnan(items_to_tell(paired(left[:1], left[:1], ItemSet(("a",)))))
