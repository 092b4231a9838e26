import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evaluators.base import ItemSet, summarise
from evaluators.statistics import (
    bootstrap,
    contrast,
    holm,
    interval,
    paired,
    sign_flip,
    smallest_difference,
    smallest_share_difference,
)


def plain(n: int) -> ItemSet:
    return ItemSet(tuple(f"i{i}" for i in range(n)))


def clustered(sizes: list[int], seed: int = 0) -> ItemSet:
    groups = tuple(f"g{g}" for g, size in enumerate(sizes) for _ in range(size))
    weights = tuple(np.random.default_rng(seed).integers(1, 20, len(groups)).astype(float))
    return ItemSet(tuple(f"i{i}" for i in range(len(groups))), weights, groups)


def test_paired_is_the_paired_t_test_for_single_items() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=30), rng.normal(0.3, 1, size=30)
    result = paired(a, b, plain(30))
    reference = stats.ttest_rel(a, b)
    ci = reference.confidence_interval(0.95)
    assert result.difference == pytest.approx(a.mean() - b.mean())
    assert result.difference / result.se == pytest.approx(reference.statistic)
    assert (result.low, result.high) == pytest.approx((ci.low, ci.high))
    assert (result.n, result.clusters, result.dropped) == (30, 30, 0)


def test_a_contrast_of_two_is_paired_and_of_three_is_that_of_the_items_sums() -> None:
    a, b, c = np.random.default_rng(5).normal(size=(3, 30))
    c[3] = np.nan
    item_set = ItemSet(tuple(map(str, range(30))), groups=tuple(str(row // 2) for row in range(30)))
    assert contrast([(1.0, a), (-1.0, b)], item_set) == paired(a, b, item_set)
    found = contrast([(1.0, a), (-0.25, b), (-0.75, c)], item_set)
    assert found == paired(a - 0.25 * b, 0.75 * c, item_set)
    assert (found.n, found.dropped) == (29, 1)
    shift = np.linspace(0.0, 50.0, 30)
    moved = contrast([(1.0, a + shift), (-0.25, b + shift), (-0.75, c + shift)], item_set)
    assert moved.se == pytest.approx(found.se), "what is hard for all sides takes no part"
    with pytest.raises(ValueError, match="at least one side"):
        contrast([], item_set)
    with pytest.raises(ValueError, match="one length"):
        contrast([(1.0, a), (1.0, b[:4])], item_set)


def test_paired_agrees_with_the_difference_of_summaries() -> None:
    item_set = clustered([1, 3, 2, 5, 1, 4])
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=16), rng.normal(size=16)
    difference = summarise("m", "tune", "maximize", item_set, a - b)
    result = paired(a, b, item_set)
    assert result.difference == pytest.approx(difference.value)
    assert result.se == pytest.approx(difference.se)


def test_p_is_scipys_permutation_test_when_exact() -> None:
    rng = np.random.default_rng(3)
    for size in (3, 7, 10):
        a, b = rng.normal(0.5, 1, size=size), rng.normal(size=size)
        reference = stats.permutation_test(
            (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
        )
        # SciPy doubles the smaller tail; by symmetry of the sign flips both tails are the same
        assert paired(a, b, plain(size)).p == pytest.approx(reference.pvalue)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
def test_p_is_the_share_of_sign_vectors_that_reach_as_far(sums: list[int]) -> None:
    flips = [abs(sum(s * x for s, x in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=len(sums))]
    assert sign_flip(sums) == pytest.approx(np.mean([f >= abs(sum(sums)) for f in flips]))


def test_drawn_p_is_near_the_exact_one_and_repeats() -> None:
    s = np.random.default_rng(4).normal(0.6, 1, size=16)
    codes = np.arange(2**16, dtype=np.uint32)[:, None]
    signs = 2.0 * ((codes >> np.arange(16, dtype=np.uint32)) & 1) - 1
    exact = float((np.abs(signs @ s) >= abs(s.sum()) - 1e-9).mean())
    drawn = sign_flip(s, seed=7)
    assert abs(drawn - exact) < 4 * math.sqrt(exact * (1 - exact) / 10_000)
    assert drawn == sign_flip(s, seed=7) != sign_flip(s, seed=8)


def test_p_is_never_zero_and_1_without_a_difference() -> None:
    assert sign_flip(np.ones(50)) == pytest.approx(1 / 10_001)
    assert sign_flip(np.ones(12)) == 2 / 2**12
    assert sign_flip(np.zeros(5)) == sign_flip([]) == 1.0
    same = paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], plain(3))
    assert (same.difference, same.se, same.low, same.high, same.p) == (0, 0, 0, 0, 1)
    assert same.better("maximize") == "neither"


def test_scale_does_not_change_p() -> None:
    s = np.random.default_rng(5).normal(0.3, 1, size=20)
    assert sign_flip(s) == sign_flip(s * 1e-30) == sign_flip(s * 1e30)


def test_many_clusters_go_in_chunks_with_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    s = np.random.default_rng(6).normal(0.1, 1, size=320)
    whole = sign_flip(s)
    monkeypatch.setattr("evaluators.statistics._BYTES_AT_ONCE", 40 * 77)
    assert sign_flip(s) == whole


def test_unscored_items_are_dropped_and_counted() -> None:
    a = [1.0, math.nan, 3.0, 4.0]
    b = [0.0, 1.0, math.nan, 1.0]
    result = paired(a, b, plain(4))
    assert (result.n, result.clusters, result.dropped) == (2, 2, 2)
    assert result.difference == 2.0


def test_nothing_in_common_is_unknown() -> None:
    result = paired([1.0, math.nan], [math.nan, 1.0], plain(2))
    assert result.n == 0
    assert all(math.isnan(x) for x in (result.difference, result.se, result.low, result.p))
    assert result.better("minimize") == "neither"


def test_one_cluster_has_no_error_and_p_1() -> None:
    result = paired([1.0, 2.0], [0.0, 0.0], ItemSet(("a", "b"), groups=("g", "g")))
    assert (result.difference, result.p, result.clusters) == (1.5, 1.0, 1)
    assert math.isnan(result.se)
    assert math.isnan(result.low)


def test_an_infinite_item_decides_without_a_test() -> None:
    result = paired([math.inf, 1.0, 1.0], [2.0, 2.0, 2.0], plain(3))
    assert result.difference == math.inf
    assert math.isnan(result.p)
    assert result.better("minimize") == "right"
    assert result.better("maximize") == "left"


def test_both_infinite_is_no_pair() -> None:
    result = paired([math.inf, 1.0], [math.inf, 2.0], plain(2))
    assert (result.n, result.dropped, result.difference) == (1, 1, -1.0)


@pytest.mark.parametrize(("direction", "side"), [("maximize", "left"), ("minimize", "right")])
def test_better_follows_the_direction(direction: str, side: str) -> None:
    result = paired(np.arange(10) + 2.0, np.arange(10) + 0.0, plain(10))
    assert result.better(direction) == side  # type: ignore[arg-type]
    assert result.better(direction, p=0.2) == "neither"  # type: ignore[arg-type]


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="one number an item"):
        paired([1.0], [1.0, 2.0], plain(2))
    with pytest.raises(ValueError, match="one number an item"):
        bootstrap([1.0], plain(2))


def test_interval_is_students() -> None:
    low, high = interval(1.0, 0.5, 9, alpha=0.1)
    assert (low, high) == pytest.approx(stats.t(8, 1.0, 0.5).interval(0.9))
    assert all(math.isnan(x) for x in interval(1.0, 0.5, 1))


def simulate(effect: float, groups: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, ItemSet]:
    """Clustered differences: a shared shift a group plus noise an item, sizes and weights uneven."""
    sizes = rng.integers(1, 6, groups)
    index = np.repeat(np.arange(groups), sizes)
    weights = rng.integers(1, 9, len(index)).astype(float)
    base = rng.normal(size=len(index))
    difference = effect + rng.normal(size=groups)[index] + 0.5 * rng.normal(size=len(index))
    names = tuple(f"i{i}" for i in range(len(index)))
    return base + difference, base, ItemSet(names, tuple(weights), tuple(f"g{g}" for g in index))


def test_size_and_coverage_hold_under_clusters() -> None:
    rng = np.random.default_rng(11)
    rejected = covered = naive = 0
    goes = 600
    for _ in range(goes):
        a, b, item_set = simulate(0.0, 40, rng)
        result = paired(a, b, item_set)
        rejected += result.p <= 0.05
        covered += result.low <= 0 <= result.high
        naive += paired(a, b, ItemSet(item_set.ids, item_set.weights)).p <= 0.05
    # 600 goes: the share's own error is 0.009
    assert 0.02 <= rejected / goes <= 0.08
    assert 0.91 <= covered / goes <= 0.98
    assert naive / goes > 0.12  # ignoring the clusters would be wrong: the simulation can tell


def test_exact_test_keeps_its_size_with_few_clusters() -> None:
    rng = np.random.default_rng(12)
    rejected = np.mean([sign_flip(rng.laplace(size=9)) <= 0.05 for _ in range(1500)])
    assert 0.03 <= rejected <= 0.067


def test_smallest_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(13)
    se = 1 / math.sqrt(25)
    effect = smallest_difference(se, 25)
    found = np.mean([stats.ttest_1samp(rng.normal(effect, 1, 25), 0).pvalue <= 0.05 for _ in range(2000)])
    assert abs(found - 0.8) < 0.04


def test_smallest_difference_has_its_closed_form() -> None:
    assert smallest_difference(1.0) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    assert smallest_difference(2.0, 10_000) == pytest.approx(2 * smallest_difference(1.0), rel=1e-3)
    assert smallest_difference(1.0, 5) > smallest_difference(1.0, 50) > smallest_difference(1.0)
    assert math.isnan(smallest_difference(1.0, 1))
    t = stats.nct(9, smallest_difference(1.0, 10))
    assert t.sf(stats.t(9).ppf(0.975)) == pytest.approx(0.8, abs=1e-6)


def test_smallest_share_difference_shrinks_with_rows() -> None:
    assert smallest_share_difference(50) == pytest.approx(0.286, abs=0.002)
    assert smallest_share_difference(200) < smallest_share_difference(50)
    assert smallest_share_difference(1) == smallest_share_difference(3) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_leaves_what_was_not_tested_out() -> None:
    adjusted = holm([0.02, math.nan, 0.03])
    assert adjusted[0] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(p: list[float]) -> None:
    adjusted = holm(p)
    for raw, mended in zip(p, adjusted, strict=True):
        assert raw <= mended <= min(1.0, len(p) * raw) or mended == pytest.approx(raw)
    ranked = sorted(zip(p, adjusted, strict=True))
    assert [m for _, m in ranked] == sorted(m for _, m in ranked)


def test_bootstrap_of_single_items_is_scipys() -> None:
    x = np.random.default_rng(14).exponential(size=40)
    reference = stats.bootstrap((x,), np.mean, n_resamples=4000, rng=np.random.default_rng(0)).confidence_interval
    low, high = bootstrap(x, plain(40), resamples=4000)
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.02)
    assert (low, high) == bootstrap(x, plain(40), resamples=4000)
    assert (low, high) != bootstrap(x, plain(40), resamples=4000, seed=1)


def test_bootstrap_draws_clusters() -> None:
    """Each item ten times over is no more knowledge than each once."""
    x = np.random.default_rng(15).normal(size=25)
    once = bootstrap(x, plain(25), resamples=2000)
    groups = tuple(f"g{i}" for i in np.repeat(np.arange(25), 10))
    tenfold = ItemSet(tuple(f"i{i}" for i in range(250)), groups=groups)
    assert bootstrap(np.repeat(x, 10), tenfold, resamples=2000) == pytest.approx(once, abs=0.05)
    narrow = bootstrap(np.repeat(x, 10), ItemSet(tenfold.ids), resamples=2000)
    assert narrow[1] - narrow[0] < 0.5 * (once[1] - once[0])


def test_bootstrap_at_the_edges() -> None:
    assert bootstrap([1.0, 1.0, 1.0], plain(3)) == (1.0, 1.0)
    assert all(math.isnan(v) for v in bootstrap([1.0], plain(1)))
    assert all(math.isnan(v) for v in bootstrap([math.nan, math.nan], plain(2)))
    assert all(math.isnan(v) for v in bootstrap([math.inf, 1.0], plain(2)))
    low, high = bootstrap([0.0, 1.0, 1.0, math.nan], plain(4), resamples=500)
    assert 0 <= low <= 2 / 3 <= high <= 1


def test_bootstrap_covers() -> None:
    rng = np.random.default_rng(16)
    goes = 200
    covered = 0
    for _ in range(goes):
        a, b, item_set = simulate(0.4, 40, rng)
        low, high = bootstrap(a - b, item_set, resamples=400, method="percentile")
        covered += low <= 0.4 <= high
    assert covered / goes >= 0.88
