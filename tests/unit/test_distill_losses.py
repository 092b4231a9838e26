"""The losses of distillation against what the papers, PyTorch and TRL say of them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax, softmax

from pipelines.finetune.distill_config import CosineHidden, JSDLoss, KLLoss, MIHidden, MSEHidden
from pipelines.finetune.distill_losses import Comparison, divergence, information_bound, missing_information


def logits(seed: int, rows: int = 5, words: int = 11) -> torch.Tensor:
    return 3 * torch.randn(rows, words, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = logits(0), logits(1)
EVERY = [KLLoss(), KLLoss(temperature=2.5), *(JSDLoss(beta=b, temperature=t) for b in (0, 0.1, 0.5, 1) for t in (1, 3))]


@pytest.mark.parametrize("loss", EVERY, ids=str)
def test_equal_logits_cost_nothing_and_others_something(loss: Any) -> None:
    assert divergence(TEACHER, TEACHER, loss).abs().max() < 1e-12
    assert divergence(TEACHER + 5, TEACHER, loss).abs().max() < 1e-12  # logits are known up to a constant
    assert (divergence(STUDENT, TEACHER, loss) > 0).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_is_pytorchs_times_the_squared_temperature(temperature: float) -> None:
    ours = divergence(STUDENT, TEACHER, KLLoss(temperature=temperature))
    q, p = log_softmax(STUDENT / temperature, -1), softmax(TEACHER / temperature, -1)
    assert torch.allclose(ours, kl_div(q, p, reduction="none").sum(-1) * temperature**2)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_of_kl_is_the_one_derived_by_hand(temperature: float) -> None:
    student = STUDENT.clone().requires_grad_()
    divergence(student, TEACHER, KLLoss(temperature=temperature)).sum().backward()
    by_hand = temperature * (softmax(STUDENT / temperature, -1) - softmax(TEACHER / temperature, -1))
    assert torch.allclose(student.grad, by_hand)


@pytest.mark.parametrize("loss", [KLLoss(temperature=1.5), JSDLoss(beta=0.3), JSDLoss(beta=0.5, temperature=2)])
def test_gradients_are_those_of_differences(loss: Any) -> None:
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: divergence(s, TEACHER, loss), (student,))


def test_a_hot_kl_is_the_squared_distance_of_centred_logits() -> None:
    """Hinton et al., section 2.1: for large T the loss goes to the mean squared difference of logits, halved."""
    centred = [z - z.mean(-1, keepdim=True) for z in (STUDENT, TEACHER)]
    limit = (centred[0] - centred[1]).square().mean(-1) / 2
    assert torch.allclose(divergence(STUDENT, TEACHER, KLLoss(temperature=1e4)), limit, rtol=1e-3)


def test_a_cold_kl_asks_for_the_teachers_first_word() -> None:
    cold = 0.01
    ours = divergence(STUDENT, TEACHER, KLLoss(temperature=cold)) / cold
    lead = STUDENT.max(-1).values - STUDENT.gather(1, TEACHER.argmax(-1, keepdim=True))[:, 0]
    assert torch.allclose(ours, lead, atol=0.1)


def test_the_jensen_shannon_divergence_is_symmetric_at_one_half_and_at_most_log_2() -> None:
    even = JSDLoss(beta=0.5)
    assert torch.allclose(divergence(STUDENT, TEACHER, even), divergence(TEACHER, STUDENT, even))
    assert (divergence(100 * STUDENT, 100 * TEACHER, even) <= math.log(2) + 1e-12).all()
    uneven = divergence(STUDENT, TEACHER, JSDLoss(beta=0.2))
    assert torch.allclose(uneven, divergence(TEACHER, STUDENT, JSDLoss(beta=0.8)))
    assert not torch.allclose(uneven, divergence(TEACHER, STUDENT, JSDLoss(beta=0.2)))


def test_its_ends_are_the_two_kls() -> None:
    forward, backward = divergence(STUDENT, TEACHER, KLLoss()), divergence(TEACHER, STUDENT, KLLoss())
    near = 1e-7
    assert torch.allclose(divergence(STUDENT, TEACHER, JSDLoss(beta=near)) / near, forward, rtol=1e-3)
    assert torch.allclose(divergence(STUDENT, TEACHER, JSDLoss(beta=1 - near)) / near, backward, rtol=1e-3)
    assert torch.equal(divergence(STUDENT, TEACHER, JSDLoss(beta=0)), forward)
    assert torch.equal(divergence(STUDENT, TEACHER, JSDLoss(beta=1)), backward)


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0])
def test_it_is_gkds(beta: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gkd import GKDTrainer

    theirs = GKDTrainer.generalized_jsd_loss(STUDENT[None], TEACHER[None], beta=beta, temperature=2.0, reduction="sum")
    ours = divergence(STUDENT, TEACHER, JSDLoss(beta=beta, temperature=2.0)).sum() / 4
    assert torch.allclose(ours, theirs)


def gaussians(size: int, rho: float, pairs: int, batches: int) -> torch.Tensor:
    """Scores (batches, pairs, pairs) of the best critic, log p(y|x) / p(y), of pairs with correlation rho."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(batches, pairs, size, generator=draw, dtype=torch.float64)
    noise = torch.randn(batches, pairs, size, generator=draw, dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    apart = (y[:, None] - rho * x[:, :, None]).square().sum(-1) / (1 - rho**2)
    return (y.square().sum(-1)[:, None] - apart - size * math.log(1 - rho**2)) / 2


def estimates(scores: torch.Tensor, alpha: float) -> torch.Tensor:
    return torch.stack([information_bound(one, alpha) for one in scores])


def test_the_bound_trades_variance_for_bias() -> None:
    truth = -2 * math.log(1 - 0.9**2)
    scores = gaussians(4, 0.9, 64, 400)
    found = {alpha: estimates(scores, alpha) for alpha in (0.01, 0.1, 0.5, 0.9, 1.0)}
    spread = [float(one.std()) for one in found.values()]
    assert spread == sorted(spread, reverse=True)
    assert len(set(spread)) == len(spread)
    assert found[1.0].max() <= math.log(64)
    assert float(found[0.01].mean()) == pytest.approx(truth, abs=0.06)
    assert float(found[1.0].mean()) < truth
    means = [float(one.mean()) for one in found.values()]
    assert all(mean < truth + 3 * sd / 20 for mean, sd in zip(means, spread, strict=True))


def test_only_a_small_alpha_passes_the_logarithm_of_the_pairs() -> None:
    truth = -4 * math.log(1 - 0.9**2)
    scores = gaussians(8, 0.9, 64, 200)
    assert truth > math.log(64)
    assert float(estimates(scores, 0.01).mean()) > math.log(64)
    assert estimates(scores, 1.0).max() <= math.log(64)


def test_what_is_missing_of_a_row_depends_on_no_other_row() -> None:
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(9, 4, generator=draw), torch.randn(9, 4, generator=draw)
    owner = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 2])
    apart = sum(missing_information(x[owner == row], y[owner == row], owner[owner == row], 0.5) for row in range(3))
    assert torch.allclose(missing_information(x, y, owner, 0.5), apart)
    one = owner == 1
    assert missing_information(x[one], y[one], owner[one], 0.5) == 0


def test_at_alpha_1_what_is_missing_is_the_cross_entropy_of_telling_tokens_apart() -> None:
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(6, 4, generator=draw), torch.randn(6, 4, generator=draw)
    scores = (x @ y.mT - 1) / 0.1
    ours = missing_information(x, y, torch.zeros(6, dtype=torch.int64), 1.0)
    assert torch.allclose(ours, torch.nn.functional.cross_entropy(scores.mT, torch.arange(6), reduction="sum"))


def test_hidden_states_that_are_the_teachers_cost_nothing() -> None:
    states = {2: torch.randn(7, 6, generator=torch.Generator().manual_seed(1))}
    owner = torch.zeros(7, dtype=torch.int64)
    for loss in (MSEHidden(), CosineHidden()):
        made = Comparison(loss, {2: 2}, 6, 6)
        assert not list(made.parameters())
        assert float(made.total(states, states, owner)) == pytest.approx(0, abs=1e-5)
        doubled = float(made.total({2: 2 * states[2]}, states, owner))
        assert doubled == pytest.approx(7 if isinstance(loss, MSEHidden) else 0, abs=1e-5)


@pytest.mark.parametrize("loss", [MSEHidden(), CosineHidden(), MIHidden()], ids=lambda loss: loss.type)
def test_other_widths_get_a_map_that_learns(loss: Any) -> None:
    torch.manual_seed(0)
    made = Comparison(loss, {0: 1, 1: 3}, 6, 10)
    assert [tuple(weight.shape) for weight in made.parameters()] == [(10, 6), (10, 6)]
    student = {layer: torch.randn(12, 6) for layer in (0, 1)}
    teacher = {layer: student[at] @ torch.randn(6, 10) for layer, at in ((1, 0), (3, 1))}
    owner = torch.tensor([0] * 8 + [1] * 4)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.03)
    found = []
    for _ in range(150):
        optimizer.zero_grad()
        total = made.total(student, teacher, owner)
        total.backward()
        optimizer.step()
        found.append(float(total))
    assert found[-1] < 0.5 * found[0]
