"""Spherical interpolation of changes, and their weighted spherical (Karcher) mean for more than two.

Two changes at the angle Ω give sin((1-t)Ω)/sin Ω · δ₁ + sin(tΩ)/sin Ω · δ₂ with t = w₂ (Shoemake 1985; as a merge of task
vectors WARP, Ramé et al. 2024, arXiv 2406.16768). In general the directions uᵢ = δᵢ/‖δᵢ‖ have the mean u = Σ cᵢuᵢ that
minimises Σ wᵢ·angle(u, uᵢ)² (Karcher 1977), found by steps u ← exp_u(Σ wᵢ log_u uᵢ), and the result is Σ cᵢδᵢ: for two that is the
formula above, and the order never matters, which WARP's own chain of pairs can't say. All of it happens on the n x n products of
the changes; the tensors are read once for them and once for the sum.

Without a base the tensors themselves are interpolated. A tensor of which some change is zero, or whose directions cancel, has
no spherical mean and is averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelines.soups.methods.geometry import cosines, gram
from pipelines.soups.methods.pieces import Piece, Pieces, Place, on_whole, shares
from pipelines.soups.methods.task_arithmetic import on_base_sum

STEPS = 100
SMALL = 1e-12


@dataclass(frozen=True)
class Slerp:
    """Spherical interpolation by pieces; what is measured are the coefficients of the sum."""

    by_rows: bool = False
    measures: bool = True

    def measure(self, pieces: Pieces, weights: Sequence[float], place: Place) -> list[float]:
        """Coefficients cᵢ of the changes."""
        return coefficients(gram(pieces), shares(weights))

    def combine(self, piece: Piece, weights: Sequence[float], place: Place, facts: list[float]) -> torch.Tensor:
        """Base + Σ c·δ of a piece."""
        return on_base_sum(piece, facts)


def coefficients(products: torch.Tensor, weights: Sequence[float]) -> list[float]:
    """The cᵢ of the result Σ cᵢδᵢ.

    Args:
        products: <δᵢ, δⱼ>, (n, n), float64.
        weights: of the changes; they sum to one.
    """
    share = torch.tensor(weights, dtype=torch.float64)
    angle = cosines(products)
    if bool((products.diagonal() <= 0).any()):
        return list(weights)
    mean = share.clone()
    for _ in range(STEPS):
        length = math.sqrt(max(float(mean @ angle @ mean), 0.0))
        if length < SMALL:
            return list(weights)
        mean = mean / length
        toward = (angle @ mean).clamp(-1, 1)
        if bool((toward < -1 + SMALL).any()):
            return list(weights)
        theta = torch.arccos(toward)
        pull = share * torch.where(theta > 1e-8, theta / torch.sin(theta).clamp(min=1e-300), torch.ones_like(theta))
        step = pull - float(pull @ toward) * mean
        size = math.sqrt(max(float(step @ angle @ step), 0.0))
        if size < SMALL:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
    return [float(value) for value in mean]


def slerp(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    base: torch.Tensor | None = None,
    *,
    name: str = "",
    seed: int = 0,
) -> torch.Tensor:
    """The spherical mean of the tensors' changes from the base.

    Args:
        tensors: one an ingredient, all of one shape.
        weights: one a tensor, not negative; their shares count.
        base: zeros if None.
        name: not needed.
        seed: not needed.

    Raises:
        ValueError: if numbers or shapes don't fit, or a weight is negative.
    """
    return on_whole(Slerp(), tensors, weights, base, Place(name, tensors[0].numel(), seed))
