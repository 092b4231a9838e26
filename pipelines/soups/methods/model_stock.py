"""Model Stock: the average moved toward the base by the angle between the changes (Jang et al. 2024, arXiv 2403.19522).

With cos θ the mean cosine of all pairs of the n changes δᵢ = θᵢ - θ₀,

    t = n·cos θ / (1 + (n - 1)·cos θ),    θ = t·Σ wᵢθᵢ + (1 - t)·θ₀,

for each tensor (the paper's layer), or for each row. The paper averages with equal weights; others may be given, and then
the average alone has them. One model is itself. Left out: the paper's merges during training; t stays within [0, 1], so that changes
that point against each other end at the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipelines.soups.methods.geometry import cosines, gram
from pipelines.soups.methods.pieces import Piece, Pieces, Place, on_whole, shares
from pipelines.soups.methods.task_arithmetic import on_base_sum


@dataclass(frozen=True)
class ModelStock:
    """Model Stock by pieces; what is measured is t, and by rows nothing."""

    per: Literal["tensor", "row"] = "tensor"

    @property
    def by_rows(self) -> bool:
        """Whether each row has its own angle."""
        return self.per == "row"

    @property
    def measures(self) -> bool:
        """Whether the tensor has one angle."""
        return self.per == "tensor"

    def measure(self, pieces: Pieces, weights: Sequence[float], place: Place) -> float | None:
        """The tensor's t."""
        return float(ratio(gram(pieces))) if self.measures else None

    def combine(self, piece: Piece, weights: Sequence[float], place: Place, facts: float | None) -> torch.Tensor:
        """Base + t·Σ w·δ of a piece."""
        own = shares(weights)
        if facts is not None:
            return on_base_sum(piece, [facts * weight for weight in own])
        deltas = piece.deltas().to(torch.float64)
        t = ratio(torch.einsum("irw,jrw->rij", deltas, deltas))
        mean = torch.einsum("i,irw->rw", torch.tensor(own, dtype=torch.float64), deltas)
        return piece.on_base((t[:, None] * mean).to(piece.wide))


def ratio(products: torch.Tensor) -> torch.Tensor:
    """The t of products <δᵢ, δⱼ>, (..., n, n) to (...)."""
    n = products.shape[-1]
    if n == 1:
        return torch.ones(products.shape[:-2], dtype=products.dtype)
    cosine = cosines(products)
    mean = (cosine.sum((-2, -1)) - n) / (n * (n - 1))
    mean = mean.clamp(0, 1)
    return n * mean / (1 + (n - 1) * mean)


def model_stock(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    base: torch.Tensor | None = None,
    *,
    name: str = "",
    seed: int = 0,
    per: Literal["tensor", "row"] = "tensor",
) -> torch.Tensor:
    """t·Σ w·θ + (1 - t)·θ₀.

    Args:
        tensors: one an ingredient, all of one shape.
        weights: one a tensor, not negative; their shares count.
        base: θ₀; zeros if None.
        name: not needed.
        seed: not needed.
        per: whether a tensor has one angle, or each of its rows.

    Raises:
        ValueError: if numbers or shapes don't fit, or a weight is negative.
    """
    return on_whole(ModelStock(per), tensors, weights, base, Place(name, tensors[0].numel(), seed))
