"""Agreement with mergekit 0.1.5 on the methods both have, the masks of random ones taken from ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mergekit.merge_methods.api import merge_tensors
from mergekit.merge_methods.karcher import karcher_merge_tensors

from pipelines.soups.methods.average import average
from pipelines.soups.methods.dare import dare
from pipelines.soups.methods.della import della
from pipelines.soups.methods.draws import uniform
from pipelines.soups.methods.model_stock import model_stock
from pipelines.soups.methods.slerp import slerp
from pipelines.soups.methods.task_arithmetic import task_arithmetic
from pipelines.soups.methods.ties import ties

WEIGHTS = [0.5, 0.3, 0.2]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def draw(dtype: torch.dtype, shape: tuple[int, ...] = (33, 21)) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and three fine-tunes of it."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    shared = torch.randn(shape, generator=generator, dtype=torch.float64)
    tensors = [
        base + 0.1 * shared + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in WEIGHTS
    ]
    return base.to(dtype), [tensor.to(dtype) for tensor in tensors]


def theirs(method: str, base: torch.Tensor, tensors: list[torch.Tensor], **parameters: Any) -> torch.Tensor:
    """Mergekit's result; the base stands first."""
    each = {key: parameters.pop(key) for key in ("density", "epsilon") if key in parameters}
    ids = ["base", "a", "b", "c"][: 1 + len(tensors)]
    weight = dict(zip(ids[1:], WEIGHTS, strict=False))
    given = {"weight": weight, **{key: dict.fromkeys(ids[1:], value) for key, value in each.items()}, **parameters}
    return merge_tensors([base, *tensors], method, parameters=given, ids=ids, base_index=0)


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    tolerance = 1e-5 if right.dtype == torch.float32 else 1e-10
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@DTYPES
def test_linear(dtype: torch.dtype) -> None:
    _, tensors = draw(dtype)
    close(average(tensors, WEIGHTS), merge_tensors(tensors, "linear", parameters={"weight": WEIGHTS}))


@DTYPES
def test_slerp(dtype: torch.dtype) -> None:
    base, (a, b, _) = draw(dtype)
    a = a + 3 * base.roll(1, 0)  # beyond mergekit's threshold for a straight line
    close(slerp([a, b], [0.3, 0.7]), merge_tensors([a, b], "slerp", parameters={"t": 0.7}, base_index=0))


@DTYPES
def test_spherical_mean(dtype: torch.dtype) -> None:
    """Of tensors of one norm, as mergekit scales the mean by the norms and we scale what goes into it."""
    base, tensors = draw(dtype)
    units = [(tensor - base) / (tensor - base).norm() for tensor in tensors]
    close(slerp(units, WEIGHTS), karcher_merge_tensors(units, WEIGHTS, max_iter=200, tol=1e-12))


@DTYPES
def test_task_arithmetic(dtype: torch.dtype) -> None:
    base, tensors = draw(dtype)
    expected = theirs("task_arithmetic", base, tensors, **{"lambda": 0.7})
    close(task_arithmetic(tensors, WEIGHTS, base, scaling=0.7), expected)


@DTYPES
@pytest.mark.parametrize("density", [1.0, 0.37, 0.01])
def test_ties(dtype: torch.dtype, density: float) -> None:
    base, tensors = draw(dtype)
    close(ties(tensors, WEIGHTS, base, density=density), theirs("ties", base, tensors, density=density))


@DTYPES
def test_model_stock(dtype: torch.dtype) -> None:
    base, tensors = draw(dtype)
    for filter_wise, per in ((False, "tensor"), (True, "row")):
        expected = merge_tensors([base, *tensors], "model_stock", parameters={"filter_wise": filter_wise}, base_index=0)
        close(model_stock(tensors, [1 / 3] * 3, base, per=per), expected)  # type: ignore[arg-type]


@pytest.fixture
def our_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.bernoulli` draws what our methods draw, ingredient after ingredient."""
    count = iter(range(100))

    def bernoulli(chances: torch.Tensor) -> torch.Tensor:
        drawn = uniform(5, "w", next(count), 0, chances.numel()).reshape(chances.shape)
        return (drawn < chances).to(chances.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)


@DTYPES
@pytest.mark.usefixtures("our_draws")
@pytest.mark.parametrize(("method", "elect"), [("dare_linear", "none"), ("dare_ties", "sum")])
def test_dare(dtype: torch.dtype, method: str, elect: Any) -> None:
    base, tensors = draw(dtype)
    expected = theirs(method, base, tensors, density=0.4, normalize=elect != "none")
    ours = dare(tensors, WEIGHTS, base, name="w", seed=5, density=0.4, rescale="l1", elect=elect)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)  # mergekit draws and drops in float32


@DTYPES
@pytest.mark.usefixtures("our_draws")
@pytest.mark.parametrize(("method", "elect"), [("della_linear", "none"), ("della", "sum")])
def test_della(dtype: torch.dtype, method: str, elect: Any) -> None:
    base, tensors = draw(dtype)
    expected = theirs(method, base, tensors, density=0.5, epsilon=0.2, normalize=elect != "none")
    ours = della(tensors, WEIGHTS, base, name="w", seed=5, density=0.5, epsilon=0.2, rescale="l1", elect=elect)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
