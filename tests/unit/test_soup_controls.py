"""Negative controls: nets that began apart lie behind a barrier and average badly, fine-tunes of one net do not; and CKA."""

from __future__ import annotations

import copy
import math
import statistics

import pytest
import torch
from torch import nn

from evaluators.base import ItemSet, Score, summarise
from evaluators.statistics import contrast
from pipelines.soups.recipes.path import walk_path
from pipelines.soups.similarity import linear_cka

ROWS = 800
ITEMS = ItemSet(tuple(map(str, range(ROWS))))


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in the plane, in four classes by a pattern that no straight line tells apart."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(count, 2, generator=generator) - 1
    return x, ((x[:, 0] * x[:, 1] > 0).long() + 2 * (x.norm(dim=1) > 0.7).long())


TRAIN, TEST = rows(600, 0), rows(ROWS, 1)


def fresh(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))


def fit(model: nn.Sequential, seed: int, steps: int, rate: float) -> nn.Sequential:
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        part = torch.randint(len(TRAIN[0]), (100,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(TRAIN[0][part]), TRAIN[1][part]).backward()
        optimizer.step()
    return model


def mixed(models: list[nn.Sequential], weights: list[float]) -> nn.Sequential:
    made = copy.deepcopy(models[0])
    for name, parameter in made.named_parameters():
        parameter.data = sum(w * model.get_parameter(name).data for model, w in zip(models, weights, strict=True))
    return made


def accuracy(model: nn.Sequential) -> Score:
    with torch.no_grad():
        right = (model(TEST[0]).argmax(-1) == TEST[1]).float().numpy()
    return summarise("accuracy", "select", "maximize", ITEMS, right)


def path(a: nn.Sequential, b: nn.Sequential):  # type: ignore[no-untyped-def]
    scored = {0.0: accuracy(a), 1.0: accuracy(b)}

    def at(alpha: float) -> Score:
        scored[alpha] = accuracy(mixed([a, b], [1 - alpha, alpha]))
        return scored[alpha]

    def rise(alpha: float) -> tuple[float, float]:
        parts = ((1.0, alpha), (alpha - 1.0, 0.0), (-alpha, 1.0))
        found = contrast([(factor, scored[point].items) for factor, point in parts], ITEMS)  # type: ignore[misc]
        return found.difference, found.se

    return walk_path(at, (scored[0.0], scored[1.0]), rise=rise)


@pytest.fixture(scope="module")
def apart() -> list[nn.Sequential]:
    return [fit(fresh(seed), seed, 600, 1e-2) for seed in range(4)]


@pytest.fixture(scope="module")
def tuned(apart: list[nn.Sequential]) -> list[nn.Sequential]:
    return [fit(copy.deepcopy(apart[0]), 10 + seed, 100, 2e-3) for seed in range(4)]


def test_nets_that_began_apart_are_refused_by_the_barrier(apart: list[nn.Sequential]) -> None:
    for other in apart[1:]:
        found = path(apart[0], other)
        assert not found.passes
        assert found.barrier > 2 * found.allowed
        assert len(found.knots) <= 17


def test_fine_tunes_of_one_net_are_not(tuned: list[nn.Sequential]) -> None:
    for other in tuned[1:]:
        found = path(tuned[0], other)
        assert found.passes
        assert found.barrier < 0.03


def test_the_average_of_nets_that_began_apart_is_far_worse(
    apart: list[nn.Sequential], tuned: list[nn.Sequential]
) -> None:
    for models, low, high in ((apart, 0.2, 1.0), (tuned, -1.0, 0.02)):
        single = statistics.fmean(accuracy(model).value for model in models)
        lost = single - accuracy(mixed(models, [0.25] * 4)).value
        assert low < lost < high


def test_cka_is_blind_to_rotation_and_scale_and_sees_nothing_in_noise() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 6, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(x, torch.randn(400, 6, dtype=torch.float64)) < 0.1
    assert linear_cka(x, x @ torch.randn(6, 6, dtype=torch.float64)) < 0.999
    assert math.isnan(linear_cka(x, torch.ones(400, 2)))
    with pytest.raises(ValueError, match="but got"):
        linear_cka(x, x[:5])


def test_cka_by_rows_equals_cka_by_columns() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    a, b = x - x.mean(0), y - y.mean(0)
    by_columns = (b.T @ a).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(x, y) == pytest.approx(float(by_columns), abs=1e-12)


def test_nets_that_began_apart_see_less_alike(apart: list[nn.Sequential], tuned: list[nn.Sequential]) -> None:
    with torch.no_grad():
        near = linear_cka(tuned[0][:4](TEST[0]), tuned[1][:4](TEST[0]))
        far = linear_cka(apart[0][:4](TEST[0]), apart[1][:4](TEST[0]))
    assert near > 0.99
    assert far < near - 0.01
