"""Groups of runs: SciPy's numbers, Holm's adjustment, and no claim without enough runs or a significant difference."""

import math

import numpy as np
import pytest
from scipy import stats

from evaluators.groups import between
from evaluators.statistics import holm


def drawn(seed, *means, n=6, sd=1.0):
    random = np.random.default_rng(seed)
    return {f"g{i}": random.normal(mean, sd * (i + 1), n + i) for i, mean in enumerate(means)}


@pytest.mark.parametrize("seed", range(5))
def test_welch_anova_and_holm_are_scipys(seed):
    values = drawn(seed, 10, 12, 15)
    found = between(values)
    assert [(pair.left, pair.right) for pair in found.pairs] == [("g0", "g1"), ("g0", "g2"), ("g1", "g2")]
    for pair in found.pairs:
        known = stats.ttest_ind(values[pair.left], values[pair.right], equal_var=False)
        assert (pair.t, pair.p, pair.df) == pytest.approx((known.statistic, known.pvalue, known.df), rel=1e-12)
        span = known.confidence_interval(0.95)
        assert (pair.low, pair.high) == pytest.approx((span.low, span.high), rel=1e-12)
    assert [pair.p_holm for pair in found.pairs] == holm([pair.p for pair in found.pairs])
    known = stats.f_oneway(*values.values())
    assert (found.f, found.p) == pytest.approx((known.statistic, known.pvalue), rel=1e-12)


def test_two_runs_alone_claim_nothing():
    found = between({"fp32": [100.0, 101.0], "bf16": [50.0, 51.0]})
    assert found.pairs == ()
    assert [group.name for group in found.short] == ["fp32", "bf16"]
    assert math.isnan(found.p)
    mixed = between({"fp32": [100.0, 101.0, 99.0], "bf16": [50.0, 51.0], "fp16": [60.0, 61.0, 62.0]})
    assert [(pair.left, pair.right) for pair in mixed.pairs] == [("fp32", "fp16")]


def test_only_a_significant_difference_is_claimed():
    assert between({"a": [10.0, 10.2, 9.9], "b": [8.0, 8.1, 7.9]}).pairs[0].lower == "b"
    assert between({"a": [8.0, 8.1, 7.9], "b": [10.0, 10.2, 9.9]}).pairs[0].lower == "a"
    close = between({"a": [10.0, 12.0, 9.0], "b": [9.5, 11.0, 8.0]}).pairs[0]
    assert close.p > 0.05
    assert close.lower is None


def test_a_true_null_is_claimed_at_most_as_often_as_alpha_says():
    claims = [any(pair.lower for pair in between(drawn(seed, 5, 5, 5, n=4)).pairs) for seed in range(300)]
    assert np.mean(claims) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_numbers_that_never_vary_are_not_judged():
    found = between({"a": [1.0] * 3, "b": [2.0] * 3})
    assert found.pairs[0].difference == -1.0
    assert math.isnan(found.pairs[0].p)
    assert found.pairs[0].lower is None
    with pytest.raises(ValueError, match="must be finite"):
        between({"a": [1.0, math.nan, 2.0]})
