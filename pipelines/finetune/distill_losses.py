"""The losses of distillation, a number a token: soft labels, hidden states, the MI-α bound. Pure functions and two modules.

- Soft labels: Hinton et al. 2015 (arXiv 1503.02531); KL(p_T ‖ q_T) · T², p and q softmax(logits / T) of teacher and student.
- Generalised Jensen-Shannon divergence: Agarwal et al., GKD (arXiv 2306.13649), eq. 1: with the mixture m = β p + (1-β) q,
  β KL(p ‖ m) + (1-β) KL(q ‖ m). At β = 0 and 1 it is 0 for all p and q; as in GKD they stand for the limits
  JSD/β -> KL(p ‖ q) and JSD/(1-β) -> KL(q ‖ p).
- MI-α: the interpolated bound of Poole et al. 2019 (arXiv 1905.06922, eq. 15), which Distiller (He et al., arXiv 2109.11105)
  found best of the losses on hidden states. With a critic f, K pairs (x_i, y_i), m(y) = (1/K) Σ_i e^{f(x_i, y)} and q(y) = 1:

      I ≥ 1 + E[log e^{f(x, y)} / (α m(y) + 1-α)] - E[e^{f(x, y')} / (α m(y') + 1-α)], y' independent of the x's.

  Left out of Distiller: its other objectives, earth mover's distances between layers, augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn.functional import cosine_similarity, kl_div, log_softmax, normalize

from pipelines.finetune.distill_config import CosineHidden, HiddenLoss, JSDLoss, KLLoss, MIHidden

CRITIC_TEMPERATURE = 0.1
"""A critic's scale, 1/0.1 on cosines, as is usual for contrastive losses on unit vectors."""


def divergence(student: torch.Tensor, teacher: torch.Tensor, loss: KLLoss | JSDLoss) -> torch.Tensor:
    """Nats between the probabilities of teacher and student, x temperature², (n,).

    Args:
        student: logits (n, v).
        teacher: logits (n, v), without a gradient.
        loss: which, with its temperature.
    """
    q = log_softmax(student / loss.temperature, dim=-1)
    p = log_softmax(teacher / loss.temperature, dim=-1)
    beta = loss.beta if isinstance(loss, JSDLoss) else 0.0
    if beta == 0.0:
        nats = _kl(p, q)
    elif beta == 1.0:
        nats = _kl(q, p)
    else:
        mixture = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
        nats = beta * _kl(p, mixture) + (1 - beta) * _kl(q, mixture)
    return nats * loss.temperature**2


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) of log-probabilities (n, v), (n,)."""
    return kl_div(q, p, reduction="none", log_target=True).sum(-1)


def information_bound(scores: torch.Tensor, alpha: float) -> torch.Tensor:
    """The MI-α bound in nats from the scores f(x_i, y_j) of K pairs, a scalar.

    The first mean is over the pairs themselves, m over all K of x. In the second y_j meets the K-1 other x's, which are
    independent of it, so that at α = 1 it is exactly 1, and the whole at most log K.

    Args:
        scores: (K, K), x by rows, y by columns; K at least 2.
        alpha: 0 to 1; 0 is the bound of Nguyen, Wainwright and Jordan.
    """
    count = len(scores)
    own = scores.diagonal()
    every = torch.logsumexp(scores, dim=0) - math.log(count)
    joint = own - _baseline(every, alpha)
    diagonal = torch.eye(count, dtype=torch.bool, device=scores.device)
    others = torch.logsumexp(scores.masked_fill(diagonal, -math.inf), dim=0) - math.log(count - 1)
    marginal = torch.exp(others - _baseline(others, alpha))
    return 1 + joint.mean() - marginal.mean()


def _baseline(log_mean: torch.Tensor, alpha: float) -> torch.Tensor:
    """log(α m + 1-α) from log m."""
    if alpha == 0.0:
        return torch.zeros_like(log_mean)
    if alpha == 1.0:
        return log_mean
    return torch.logaddexp(log_mean + math.log(alpha), torch.full_like(log_mean, math.log1p(-alpha)))


class Comparison(torch.nn.Module):
    """Compares hidden states layer by layer; holds what is trained beside the student for that.

    `mse` and `cosine` compare them as they are where widths are equal, else after a linear map of the student's. `mi_alpha`
    has a critic f(x, y) = (x̂ᵀ W ŷ - 1) / 0.1, x̂ and ŷ the teacher's and the student's states at length 1. W begins as the
    identity (wider or narrower: with orthonormal rows or columns), and is trained with the student. The -1 has the scores
    begin at 0 or below, so that their exponentials are at most 1.

    Args:
        loss: which.
        pairs: student's layer -> teacher's layer.
        student: width of the student's hidden states.
        teacher: width of the teacher's.
    """

    def __init__(self, loss: HiddenLoss, pairs: Mapping[int, int], student: int, teacher: int) -> None:
        super().__init__()
        self.loss, self.pairs = loss, dict(pairs)
        maps = {}
        if isinstance(loss, MIHidden) or student != teacher:
            for layer in self.pairs:
                maps[str(layer)] = torch.nn.Linear(student, teacher, bias=False)
                torch.nn.init.orthogonal_(maps[str(layer)].weight)
                if student == teacher:
                    torch.nn.init.eye_(maps[str(layer)].weight)
        self.maps = torch.nn.ModuleDict(maps)

    def total(
        self, student: Mapping[int, torch.Tensor], teacher: Mapping[int, torch.Tensor], owner: torch.Tensor
    ) -> torch.Tensor:
        """The loss summed over tokens, a mean over pairs of layers; a scalar.

        Args:
            student: layer -> hidden states (n, width) at trained-on positions.
            teacher: layer -> hidden states of the same positions.
            owner: the row of each, (n,).
        """
        found = [
            self._layer(layer, student[layer].float(), teacher[other].float(), owner)
            for layer, other in self.pairs.items()
        ]
        return torch.stack(found).mean()

    def _layer(self, layer: int, y: torch.Tensor, x: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        own = dict(self.maps.items()).get(str(layer))
        if isinstance(self.loss, MIHidden):
            assert own is not None, "a critic is made for every layer"
            return missing_information(normalize(x, dim=-1), own(normalize(y, dim=-1)), owner, self.loss.alpha)
        y = y if own is None else own(y)
        if isinstance(self.loss, CosineHidden):
            return (1 - cosine_similarity(y, x, dim=-1)).sum()
        return ((y - x).square().sum(-1) / x.square().sum(-1).clamp(min=1e-12)).sum()


def missing_information(x: torch.Tensor, y: torch.Tensor, owner: torch.Tensor, alpha: float) -> torch.Tensor:
    """What the bound misses of log K, summed over tokens, a scalar; a token's rivals are the K tokens of its own row.

    So the loss of a row depends on no other row, and splitting a step into micro batches changes nothing. At α = 1 this is
    InfoNCE's cross-entropy, never below 0. A row with one such token has nothing to be told from, and counts 0.

    Args:
        x: the teacher's states at length 1, (n, width).
        y: the student's, mapped by the critic, (n, width).
        owner: the row of each, (n,).
        alpha: see `information_bound`.
    """
    total = x.new_zeros(())
    for row in owner.unique_consecutive().tolist():
        own = owner == row
        count = int(own.sum())
        if count > 1:
            scores = (x[own] @ y[own].mT - 1) / CRITIC_TEMPERATURE
            total = total + count * (math.log(count) - information_bound(scores, alpha))
    return total
