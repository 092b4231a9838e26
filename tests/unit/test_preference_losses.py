"""Preference losses: hand values and gradients, the identities of LN-DPO and DPO, and TRL's own code on the same numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.finetune.preference_config import IPO, KTO, LNDPO, ORPO, AnyLoss, Hinge, Robust, Sigmoid, SimPO
from pipelines.finetune.preference_losses import Answers, kto, kto_baseline, pair_losses

PAIRED: list[AnyLoss] = [Sigmoid(), LNDPO(), SimPO(), IPO(), Hinge(), Robust(), ORPO()]


def answers(policy: list[float], reference: list[float], tokens: list[int]) -> Answers:
    """In double precision, with a gradient for the policy."""
    made = [torch.tensor(values, dtype=torch.float64) for values in (policy, reference, tokens)]
    made[0].requires_grad_(True)
    return Answers(*made)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_two_tokens_by_hand() -> None:
    # y_w: two tokens of log-probability -0.5 and -0.7 (reference -1.2 together), y_l: two of -0.9 and -1.1 (reference -1.5).
    made = answers([-1.2, -2.0], [-1.5, -1.5], [2, 2])
    margin = (-1.2 + 1.5) - (-2.0 + 1.5)
    found = pair_losses(Sigmoid(beta=0.5), made)
    assert found.losses.item() == pytest.approx(-math.log(logistic(0.5 * margin)), rel=1e-12)
    assert found.rewards.tolist() == pytest.approx([0.15, -0.25])
    found.losses.sum().backward()
    slope = 0.5 * logistic(-0.5 * margin)
    assert made.policy.grad is not None
    assert made.policy.grad.tolist() == pytest.approx([-slope, slope], rel=1e-12)


def test_two_tokens_by_hand_per_token() -> None:
    made = answers([-1.2, -2.0], [-1.5, -1.5], [2, 1])
    margin = 5 * (0.3 / 2) - 5 * (-0.5 / 1)
    found = pair_losses(LNDPO(beta=5.0), made)
    assert found.losses.item() == pytest.approx(-math.log(logistic(margin)), rel=1e-12)
    found.losses.sum().backward()
    slope = 5 * logistic(-margin)
    assert made.policy.grad is not None
    assert made.policy.grad.tolist() == pytest.approx([-slope / 2, slope], rel=1e-12)


def test_simpo_asks_for_a_margin_and_no_reference() -> None:
    made = answers([-1.2, -2.0], [-9.0, 5.0], [2, 4])
    margin = 2 * (-1.2 / 2) - 2 * (-2.0 / 4) - 2 * 0.25
    found = pair_losses(SimPO(), made)
    assert found.losses.item() == pytest.approx(-math.log(logistic(margin)), rel=1e-12)


def test_odds_by_hand() -> None:
    made = answers([2 * math.log(0.6), 3 * math.log(0.2)], [0.0, 0.0], [2, 3])
    odds = math.log((0.6 / 0.4) / (0.2 / 0.8))
    expected = -math.log(0.6) - 0.1 * math.log(logistic(odds))
    assert pair_losses(ORPO(), made).losses.item() == pytest.approx(expected, rel=1e-12)
    sure = answers([0.0, -1.0], [0.0, 0.0], [1, 1])
    pair_losses(ORPO(), sure).losses.sum().backward()
    assert sure.policy.grad is not None
    assert torch.isfinite(sure.policy.grad).all()


@pytest.mark.parametrize("loss", PAIRED, ids=lambda loss: loss.type)
def test_gradients_are_differences(loss: AnyLoss) -> None:
    made = answers([-3.0, -4.0, -7.0, -2.5], [-3.5, -3.0, -6.0, -3.0], [4, 3, 5, 2])

    def total(policy: torch.Tensor) -> torch.Tensor:
        return pair_losses(loss, Answers(policy, made.reference, made.tokens)).losses.sum()

    assert torch.autograd.gradcheck(total, (made.policy,))


def test_duplicated_tokens_leave_ln_dpo_and_double_dpos_margin() -> None:
    once, twice = answers([-3.0, -4.0], [-3.5, -4.0], [4, 3]), answers([-6.0, -4.0], [-7.0, -4.0], [8, 3])
    assert torch.equal(pair_losses(LNDPO(), once).losses, pair_losses(LNDPO(), twice).losses)
    one, two = (pair_losses(Sigmoid(), made).rewards for made in (once, twice))
    assert (two[0] - two[1]).item() == pytest.approx(2 * (one[0] - one[1]).item())


@pytest.mark.parametrize("length", [1, 2, 7])
def test_ln_dpo_with_beta_times_length_is_dpo_where_lengths_are_equal(length: int) -> None:
    made = answers([-3.0, -4.0, -1.0, -2.0], [-3.5, -3.0, -1.5, -0.5], [length] * 4)
    left = pair_losses(LNDPO(beta=0.1 * length), made).losses
    right = pair_losses(Sigmoid(beta=0.1), made).losses
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_robust_is_dpo_without_noise_and_unbiased_with_it() -> None:
    made = answers([-3.0, -4.0], [-3.5, -3.0], [4, 3])
    flipped = answers([-4.0, -3.0], [-3.0, -3.5], [3, 4])
    clean = pair_losses(Sigmoid(), made).losses
    torch.testing.assert_close(pair_losses(Robust(label_smoothing=0.0), made).losses, clean)
    noisy = Robust(label_smoothing=0.2)
    mean = 0.8 * pair_losses(noisy, made).losses + 0.2 * pair_losses(noisy, flipped).losses
    torch.testing.assert_close(mean, clean)


def test_a_model_that_is_its_reference_has_no_margin() -> None:
    made = answers([-3.0, -4.0], [-3.0, -4.0], [4, 3])
    assert pair_losses(Sigmoid(), made).losses.item() == pytest.approx(math.log(2))
    assert pair_losses(LNDPO(), made).losses.item() == pytest.approx(math.log(2))
    assert pair_losses(IPO(beta=0.5), made).losses.item() == pytest.approx(1.0)
    good = torch.tensor([True, False])
    assert kto(KTO(), made, good, torch.tensor(0.0)).losses.tolist() == pytest.approx([0.5, 0.5])


def dpo_of_trl(kind: str, beta: float, smoothing: float = 0.0) -> Any:
    """TRL's `DPOTrainer._compute_loss` on log-probabilities that stand in the logits' place."""
    from trl import DPOTrainer

    fake = SimpleNamespace(
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value, gather=lambda value: value),
        args=SimpleNamespace(),
    )
    return lambda model, inputs: DPOTrainer._compute_loss(fake, model, inputs, False)


class Given:
    """A model of TRL's fused kind, whose log-probabilities are given."""

    def __init__(self, per_token: torch.Tensor) -> None:
        self._per_token = per_token

    def __call__(self, **inputs: Any) -> Any:
        some = torch.zeros_like(self._per_token)
        more = {"entropy": some, "mean_logits": some, "is_top1": some.bool(), "is_top5": some.bool()}
        return SimpleNamespace(log_probs=self._per_token, aux_loss=None, **more)


TRL_DPO = [
    (Sigmoid(beta=0.3), "sigmoid", 0.3, 0.0),
    (LNDPO(beta=4.0), "sigmoid_norm", 4.0, 0.0),
    (IPO(beta=0.2), "ipo", 0.2, 0.0),
    (Hinge(beta=0.3), "hinge", 0.3, 0.0),
    (Robust(beta=0.3, label_smoothing=0.2), "robust", 0.3, 0.2),
]


@pytest.mark.parametrize(("loss", "kind", "beta", "smoothing"), TRL_DPO, ids=[row[1] for row in TRL_DPO])
def test_the_loss_is_trls(loss: AnyLoss, kind: str, beta: float, smoothing: float) -> None:
    torch.manual_seed(0)
    lengths = [4, 2, 3, 5]  # chosen of two pairs, then rejected, as TRL stacks them
    mask = torch.tensor([[0] + [1] * n + [0] * (5 - n) for n in lengths])
    per_token = -torch.rand(4, 5) * mask[:, 1:]
    reference = -torch.rand(4) * torch.tensor(lengths)
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[:2],
        "ref_rejected_logps": reference[2:],
    }
    theirs = dpo_of_trl(kind, beta, smoothing)(Given(per_token), inputs)
    turns = [0, 2, 1, 3]
    ours = pair_losses(loss, Answers(per_token.sum(1)[turns], reference[turns], torch.tensor(lengths).float()[turns]))
    assert float(ours.losses.mean()) == pytest.approx(float(theirs), rel=1e-5)


def test_simpo_is_trls() -> None:
    from trl.experimental.cpo import CPOTrainer

    fake = SimpleNamespace(
        alpha=0.0,
        loss_type="simpo",
        simpo_gamma=0.6,
        beta=2.5,
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    chosen, rejected = torch.tensor([-0.5, -0.9]), torch.tensor([-0.7, -0.4])  # means per token
    losses, better, worse = CPOTrainer.cpo_loss(fake, chosen, rejected)
    tokens = torch.tensor([3.0, 2.0, 4.0, 6.0])
    policy = torch.stack([chosen, rejected], 1).flatten() * tokens
    ours = pair_losses(SimPO(beta=2.5, gamma_beta_ratio=0.6 / 2.5), Answers(policy, torch.zeros(4), tokens))
    torch.testing.assert_close(ours.losses, losses)
    torch.testing.assert_close(ours.rewards, torch.stack([better, worse], 1).flatten())


def test_the_odds_ratio_is_trls() -> None:
    from trl.experimental.orpo import ORPOTrainer

    fake = SimpleNamespace(beta=0.4, accelerator=SimpleNamespace(device="cpu"))
    chosen, rejected = torch.tensor([-0.5, -0.9]), torch.tensor([-0.7, -0.4])
    theirs, *_ = ORPOTrainer.odds_ratio_loss(fake, chosen, rejected)  # TRL's loss is the likelihood minus this
    tokens = torch.tensor([3.0, 2.0, 4.0, 6.0])
    policy = torch.stack([chosen, rejected], 1).flatten() * tokens
    ours = pair_losses(ORPO(beta=0.4), Answers(policy, torch.zeros(4), tokens))
    torch.testing.assert_close(ours.losses, -chosen - theirs)


def test_kto_is_trls() -> None:
    from trl import KTOTrainer

    torch.manual_seed(1)
    lengths, good = [4, 2, 3, 5], [True, False, False, True]
    mask = torch.tensor([[0] + [1] * n + [0] * (5 - n) for n in lengths])
    per_token = -torch.rand(4, 5) * mask[:, 1:]
    reference, of_strangers = -torch.rand(4) * torch.tensor(lengths), -torch.rand(4) - 3.0
    strangers = torch.tensor([-2.0, -1.5, -3.0, -2.5])
    fake = SimpleNamespace(
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=0.3,
        desirable_weight=1.5,
        undesirable_weight=0.5,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        _compute_kl_logps=lambda model, batch: strangers,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value, gather=lambda value: value),
    )
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": torch.tensor(good),
        "ref_logps": reference,
        "ref_KL_logps": of_strangers,
    }
    theirs = KTOTrainer._compute_loss(fake, Given(per_token), inputs, False)
    baseline = kto_baseline(strangers - of_strangers)
    assert float(baseline) > 0
    made = Answers(per_token.sum(1), reference, torch.tensor(lengths).float())
    ours = kto(KTO(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5), made, torch.tensor(good), baseline)
    assert float(ours.losses.mean()) == pytest.approx(float(theirs), rel=1e-5)


def test_the_baseline_is_never_below_zero() -> None:
    assert kto_baseline(torch.tensor([-3.0, 1.0])).item() == 0.0
    assert kto_baseline(torch.tensor([3.0, 1.0])).item() == 2.0
