"""Laws that every merge method keeps, on tensors drawn by hypothesis; agreement with plain torch in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.soups import METHODS, method_function
from pipelines.soups.config import parse_method
from pipelines.soups.methods.dare import dare
from pipelines.soups.methods.della import chances
from pipelines.soups.methods.draws import uniform
from pipelines.soups.methods.model_stock import model_stock
from pipelines.soups.methods.regmean import regmean
from pipelines.soups.methods.slerp import slerp
from pipelines.soups.methods.task_arithmetic import task_arithmetic
from pipelines.soups.methods.ties import ties

WHOLE = {"ties": {"density": 1.0}, "dare": {"density": 1.0}, "della": {"density": 1.0}}
"""What makes a method keep everything, so that identity must hold."""
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SHAPES = [(1,), (7,), (3, 5), (4, 3, 2)]


def method(name: str, **parameters: object) -> Callable[..., torch.Tensor]:
    return method_function(parse_method({"type": name, **parameters}))


def draw(seed: int, count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    tolerance = TOLERANCE[right.dtype]
    assert left.dtype == right.dtype
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


cases = st.tuples(
    st.integers(0, 2**31), st.integers(1, 6), st.sampled_from(SHAPES), st.sampled_from(list(TOLERANCE)), st.booleans()
)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=20, deadline=None)
@given(case=cases, weights=st.lists(st.floats(0.1, 1.0), min_size=6, max_size=6))
def test_one_and_equal_ingredients_are_themselves(
    name: str, case: tuple[int, int, tuple[int, ...], torch.dtype, bool], weights: list[float]
) -> None:
    """One ingredient, and n equal ones, whatever weights that sum to one, with a base and without."""
    seed, count, shape, dtype, based = case
    ingredient, base = draw(seed, 2, shape, dtype)
    total = math.fsum(weights[:count])
    merged = method(name, **WHOLE.get(name, {}))(
        [ingredient] * count,
        [weight / total for weight in weights[:count]],
        base if based else None,
        name="t",
        seed=seed,
    )
    close(merged, ingredient)


@pytest.mark.parametrize("name", ["average", "slerp", "task_arithmetic", "ties", "model_stock"])
@settings(max_examples=20, deadline=None)
@given(case=cases, weights=st.lists(st.floats(0.1, 1.0), min_size=6, max_size=6), order=st.permutations(range(6)))
def test_the_order_does_not_matter(
    name: str, case: tuple[int, int, tuple[int, ...], torch.dtype, bool], weights: list[float], order: list[int]
) -> None:
    seed, count, shape, dtype, based = case
    *tensors, base = draw(seed, count + 1, shape, dtype)
    places = [place for place in order if place < count]
    total = math.fsum(weights[:count])
    own = [weight / total for weight in weights[:count]]
    merge = method(name)
    left = merge(tensors, own, base if based else None)
    right = merge([tensors[i] for i in places], [own[i] for i in places], base if based else None)
    close(left, right)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=20, deadline=None)
@given(case=cases)
def test_finite_in_finite_out(name: str, case: tuple[int, int, tuple[int, ...], torch.dtype, bool]) -> None:
    """Also where ingredients equal the base, each other, or each other's opposite."""
    seed, count, shape, dtype, based = case
    tensors = draw(seed, count, shape, dtype)
    tensors += [torch.zeros(shape, dtype=dtype), -tensors[0], tensors[0]]
    base = tensors[1] if based else None
    merged = method(name)(tensors, [1 / len(tensors)] * len(tensors), base, name="t", seed=seed)
    assert merged.shape == shape
    assert bool(torch.isfinite(merged).all())


@pytest.mark.parametrize("name", ["average", "slerp", "task_arithmetic", "ties", "regmean"])
def test_weights_of_a_model_count_as_often_as_it_stands_there(name: str) -> None:
    """Weight 1/2 is the same as standing there twice with 1/4."""
    a, b, base = draw(3, 3, (6, 5), torch.float64)
    merge = method(name, **WHOLE.get(name, {}))
    close(merge([a, a, b], [0.25, 0.25, 0.5], base), merge([a, b], [0.5, 0.5], base))


def test_task_arithmetic_with_scaling_and_negative_weights() -> None:
    a, b, base = draw(0, 3, (6, 5), torch.float64)
    close(task_arithmetic([a, b], [1.0, -0.5], base, scaling=0.4), base + 0.4 * (a - base) - 0.2 * (b - base))


def test_slerp_is_its_formula_and_for_more_the_spherical_mean() -> None:
    a, b, c, base = draw(1, 4, (40,), torch.float64)
    x, y = a - base, b - base
    angle = torch.arccos(x @ y / x.norm() / y.norm())
    expected = base + torch.sin(0.3 * angle) / torch.sin(angle) * x + torch.sin(0.7 * angle) / torch.sin(angle) * y
    close(slerp([a, b], [0.3, 0.7], base), expected)
    units = [tensor / tensor.norm() for tensor in (a, b, c)]
    weights = [0.5, 0.2, 0.3]
    mean = slerp(units, weights)
    assert float(mean.norm()) == pytest.approx(1, abs=1e-12)
    log = torch.zeros_like(mean)
    for unit, weight in zip(units, weights, strict=True):
        cosine = mean @ unit
        log += weight * torch.arccos(cosine) / torch.sqrt(1 - cosine**2) * (unit - cosine * mean)
    assert float(log.norm()) < 1e-9, "at the mean the pulls cancel"


def test_slerp_refuses_negative_weights() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        slerp(draw(0, 2, (3,), torch.float64), [1.5, -0.5])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("density", [0.001, 0.2, 0.73])
def test_ties_is_its_definition(dtype: torch.dtype, density: float) -> None:
    *tensors, base = draw(2, 4, (37, 11), dtype)
    weights = [0.5, 0.3, 0.2]
    deltas = [tensor - base for tensor in tensors]
    count = max(1, int(density * base.numel()))
    trimmed = []
    for delta in deltas:
        kept = torch.zeros_like(delta).flatten()
        top = delta.flatten().abs().topk(count).indices
        kept[top] = delta.flatten()[top]
        trimmed.append(kept.reshape(delta.shape))
    sign = torch.sign(sum(w * d for w, d in zip(weights, trimmed, strict=True)))
    above = sum(w * d * (d.sign() == sign) for w, d in zip(weights, trimmed, strict=True))
    below = sum(w * (d.sign() == sign).to(dtype) for w, d in zip(weights, trimmed, strict=True))
    close(
        ties(tensors, weights, base, density=density), base + torch.where(sign == 0, 0, above / below.clamp(min=1e-30))
    )


def test_dare_keeps_the_expectation_and_draws_by_name_seed_and_place() -> None:
    (delta,) = draw(4, 1, (200, 300), torch.float64)
    merged = dare([delta], [1.0], None, name="a", seed=1, density=0.3)
    kept = merged != 0
    assert float(kept.double().mean()) == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / delta.numel()))
    torch.testing.assert_close(merged[kept], delta[kept] / 0.3)
    assert torch.equal(merged, dare([delta], [1.0], None, name="a", seed=1, density=0.3))
    for other in ({"name": "b", "seed": 1}, {"name": "a", "seed": 2}):
        assert not torch.equal(merged, dare([delta], [1.0], None, density=0.3, **other))  # type: ignore[arg-type]
    two = dare([delta, delta], [0.5, 0.5], None, name="a", seed=1, density=0.3)
    assert len(set((two / delta).flatten().round(decimals=9).tolist())) == 3, "kept by none, by one, by both"


def test_dare_l1_keeps_the_sum_of_magnitudes() -> None:
    (delta,) = draw(5, 1, (50, 40), torch.float64)
    merged = dare([delta], [1.0], None, name="a", density=0.1, rescale="l1")
    assert float(merged.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-12)


def test_draws_depend_on_the_position_alone() -> None:
    whole = uniform(0, "t", 1, 0, 1000)
    for start, stop in itertools.combinations([0, 1, 7, 8, 9, 500, 1000], 2):
        assert torch.equal(uniform(0, "t", 1, start, stop - start), whole[start:stop])
    assert not torch.equal(uniform(0, "t", 2, 0, 1000), whole)
    assert float(whole.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * 1000))


def test_della_ranks_within_rows() -> None:
    (delta,) = draw(6, 1, (9, 5), torch.float64)
    chance = chances(delta, 0.5, 0.2)
    expected = 0.3 + 0.1 * delta.abs().argsort(1).argsort(1).double()
    torch.testing.assert_close(chance, expected)


def test_model_stock_is_its_formula() -> None:
    a, b, c, base = draw(7, 4, (30,), torch.float64)
    a, b, c = a + 2, b + 2, c + 2
    deltas = [tensor - base for tensor in (a, b, c)]
    pairs = [x @ y / x.norm() / y.norm() for x, y in itertools.combinations(deltas, 2)]
    cosine = sum(pairs) / 3
    t = 3 * cosine / (1 + 2 * cosine)
    close(model_stock([a, b, c], [1 / 3] * 3, base), t * (a + b + c) / 3 + (1 - t) * base)
    rows = [torch.stack([tensor, tensor.flip(0)]) for tensor in (a, b, c, base)]
    by_row = model_stock(rows[:3], [1 / 3] * 3, rows[3], per="row")
    close(by_row[1].flip(0), by_row[0])
    close(by_row[0], model_stock([a, b, c], [1 / 3] * 3, base))


def test_regmean_is_least_squares() -> None:
    """Against lstsq on the stacked rows; α near 1 and many rows."""
    a, b = draw(8, 2, (4, 6), torch.float64)
    xs = draw(9, 2, (50, 6), torch.float64)
    grams = [x.T @ x / len(x) for x in xs]
    merged = regmean([a, b], [0.5, 0.5], off_diagonal=1.0, grams=grams)
    solved = torch.linalg.lstsq(torch.cat(xs), torch.cat([xs[0] @ a.T, xs[1] @ b.T])).solution.T
    torch.testing.assert_close(merged, solved, rtol=1e-6, atol=1e-6)
    close(regmean([a, a], [0.5, 0.5], grams=grams), a)
    alpha = 0.7
    scaled = [alpha * g + (1 - alpha) * torch.diag(g.diagonal()) for g in grams]
    paper = (a @ scaled[0] + b @ scaled[1]) @ torch.linalg.inv(scaled[0] + scaled[1])
    torch.testing.assert_close(
        regmean([a, b], [0.5, 0.5], off_diagonal=alpha, grams=grams), paper, rtol=1e-6, atol=1e-6
    )


def test_regmean_averages_inputs_that_no_row_had() -> None:
    a, b = draw(10, 2, (4, 3), torch.float64)
    empty = torch.zeros(3, 3, dtype=torch.float64)
    close(regmean([a, b], [0.5, 0.5], grams=[empty, empty]), (a + b) / 2)
    with pytest.raises(ValueError, match="Gram matrix of"):
        regmean([a, b], [0.5, 0.5], grams=[empty])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_inputs_stay_as_they_are(name: str, dtype: torch.dtype) -> None:
    *tensors, base = draw(11, 4, (5, 4), dtype)
    before = [tensor.clone() for tensor in [*tensors, base]]
    grams = [torch.eye(4, dtype=dtype)] * 3
    method(name)(tensors, [0.2, 0.3, 0.5], base, **({"grams": grams} if name == "regmean" else {}))
    assert all(torch.equal(left, right) for left, right in zip([*tensors, base], before, strict=True))


def test_wrong_numbers_are_refused() -> None:
    a, b = draw(0, 2, (3,), torch.float32)
    with pytest.raises(ValueError, match="as many weights as tensors"):
        ties([a, b], [1.0])
    with pytest.raises(ValueError, match="one shape"):
        ties([a, b[:2]], [0.5, 0.5])
    with pytest.raises(ValueError, match="chances from"):
        parse_method({"type": "della", "density": 0.9, "epsilon": 0.2})
