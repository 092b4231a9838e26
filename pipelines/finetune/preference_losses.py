"""Preference losses as functions of log-probabilities: pure, apart from models and data.

Notation: y_w the chosen answer, y_l the rejected one, π the model, π_ref the reference, |y| the answer's tokens, σ the
logistic function, r(y) = log π(y|x) - log π_ref(y|x). Log-probabilities are sums over an answer's tokens, in nats.

Sources: DPO (Rafailov et al. 2023, arXiv 2305.18290), LN-DPO (Ahrabian et al. 2024, arXiv 2407.15229), SimPO (Meng et al.
2024, arXiv 2405.14734), IPO (Azar et al. 2023, arXiv 2310.12036; per token as in TRL, which its authors confirmed), SLiC's
hinge (Zhao et al. 2023, arXiv 2305.10425), robust DPO (Chowdhury et al. 2024, arXiv 2403.00409), KTO (Ethayarajh et al.
2024, arXiv 2402.01306), ORPO (Hong et al. 2024, arXiv 2403.07691). Left out: other divergences than the reverse KL, and the
mixtures of losses.

Example:
    >>> answers = Answers(policy=torch.tensor([-2.0, -5.0]), reference=torch.tensor([-3.0, -3.0]), tokens=torch.ones(2))
    >>> pair_losses(Sigmoid(beta=1.0), answers).losses
    tensor([0.0486])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid, relu

from pipelines.finetune.preference_config import IPO, KTO, LNDPO, ORPO, AnyLoss, Hinge, Robust, Sigmoid, SimPO

_SURE = -1e-6
"""A log-probability per token is taken to be this at most, so that its odds are finite."""


@dataclass(frozen=True)
class Answers:
    """Answers of a batch; of pairs y_w and y_l in turn.

    Attributes:
        policy: log π(y|x), (answers,).
        reference: log π_ref(y|x), (answers,); zeros for losses without a reference.
        tokens: |y|, (answers,).
    """

    policy: torch.Tensor
    reference: torch.Tensor
    tokens: torch.Tensor

    @property
    def log_ratios(self) -> torch.Tensor:
        """r(y), (answers,)."""
        return self.policy - self.reference


@dataclass(frozen=True)
class Judged:
    """What a loss makes of a batch.

    Attributes:
        losses: (pairs,), or (answers,) for KTO.
        rewards: of every answer as the loss scales it, without a gradient, (answers,).
    """

    losses: torch.Tensor
    rewards: torch.Tensor


def pair_losses(loss: AnyLoss, answers: Answers) -> Judged:
    """The loss of each pair.

    Raises:
        KeyError: for KTO, which knows no pairs.
    """
    return _PAIRED[loss.type](loss, answers)


def sigmoid(loss: Sigmoid, answers: Answers) -> Judged:
    """DPO: -log σ(β r(y_w) - β r(y_l))."""
    rewards = loss.beta * answers.log_ratios
    return Judged(-logsigmoid(_margins(rewards)), rewards.detach())


def ln_dpo(loss: LNDPO, answers: Answers) -> Judged:
    """LN-DPO: -log σ(β r(y_w)/|y_w| - β r(y_l)/|y_l|)."""
    rewards = loss.beta * answers.log_ratios / answers.tokens
    return Judged(-logsigmoid(_margins(rewards)), rewards.detach())


def simpo(loss: SimPO, answers: Answers) -> Judged:
    """SimPO: -log σ(β log π(y_w)/|y_w| - β log π(y_l)/|y_l| - γ), γ = β · `gamma_beta_ratio`."""
    rewards = loss.beta * answers.policy / answers.tokens
    gamma = loss.beta * loss.gamma_beta_ratio
    return Judged(-logsigmoid(_margins(rewards) - gamma), rewards.detach())


def ipo(loss: IPO, answers: Answers) -> Judged:
    """IPO: (r(y_w)/|y_w| - r(y_l)/|y_l| - 1/(2β))²; the rewards are β r(y)/|y|."""
    per_token = answers.log_ratios / answers.tokens
    return Judged((_margins(per_token) - 1 / (2 * loss.beta)) ** 2, loss.beta * per_token.detach())


def hinge(loss: Hinge, answers: Answers) -> Judged:
    """SLiC's hinge: max(0, 1 - (β r(y_w) - β r(y_l)))."""
    rewards = loss.beta * answers.log_ratios
    return Judged(relu(1 - _margins(rewards)), rewards.detach())


def robust(loss: Robust, answers: Answers) -> Judged:
    """Robust DPO: (-(1 - ε) log σ(m) + ε log σ(-m))/(1 - 2ε) with m = β r(y_w) - β r(y_l); below 0 where m is large."""
    rewards = loss.beta * answers.log_ratios
    margins, flipped = _margins(rewards), loss.label_smoothing
    losses = (flipped * logsigmoid(-margins) - (1 - flipped) * logsigmoid(margins)) / (1 - 2 * flipped)
    return Judged(losses, rewards.detach())


def orpo(loss: ORPO, answers: Answers) -> Judged:
    """ORPO: -log P(y_w|x) - λ log σ(log odds(y_w) - log odds(y_l)).

    P(y|x) is the likelihood per token, exp(log π(y|x)/|y|), and odds = P/(1 - P). The rewards are λ log odds.
    """
    per_token = (answers.policy / answers.tokens).clamp(max=_SURE)
    log_odds = per_token - _log1mexp(per_token)
    losses = -per_token[0::2] - loss.beta * logsigmoid(_margins(log_odds))
    return Judged(losses, loss.beta * log_odds.detach())


def kto(loss: KTO, answers: Answers, good: torch.Tensor, baseline: torch.Tensor) -> Judged:
    """KTO: λ_D (1 - σ(β (r(y) - z))) of a good answer, λ_U (1 - σ(β (z - r(y)))) of a bad one.

    Args:
        loss: its parameters.
        answers: one a row.
        good: whether an answer is a good one, (answers,), booleans.
        baseline: z, a scalar without a gradient; see `kto_baseline`.
    """
    ratios = answers.log_ratios
    sign = torch.where(good, 1.0, -1.0).to(ratios)
    weights = torch.where(good, loss.desirable_weight, loss.undesirable_weight).to(ratios)
    losses = weights * (1 - torch.sigmoid(loss.beta * sign * (ratios - baseline)))
    return Judged(losses, loss.beta * ratios.detach())


def kto_baseline(strangers: torch.Tensor) -> torch.Tensor:
    """z: the mean of r over answers to other prompts, at least 0; an estimate of KL(π, π_ref).

    Args:
        strangers: r of answers that belong to other prompts, (answers,).
    """
    return strangers.detach().mean().clamp(min=0)


def _margins(values: torch.Tensor) -> torch.Tensor:
    """y_w's value minus y_l's, (pairs,)."""
    return values[0::2] - values[1::2]


def _log1mexp(values: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0, by the form that keeps its digits (Mächler 2012)."""
    near = values > -0.6931472
    small = torch.log(-torch.expm1(torch.where(near, values, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near, -1.0, values)))
    return torch.where(near, small, large)


_PAIRED: dict[str, Callable[..., Judged]] = {
    "sigmoid": sigmoid,
    "ln_dpo": ln_dpo,
    "simpo": simpo,
    "ipo": ipo,
    "hinge": hinge,
    "robust": robust,
    "orpo": orpo,
}
