"""Task arithmetic: θ = θ₀ + λ Σ wᵢ (θᵢ - θ₀) (Ilharco et al. 2023, arXiv 2212.04089).

The paper's λ stands on the plain sum of n changes; with weights that sum to one, ours is n times it. Negative weights
subtract what a model has learned. Left out: the search for λ, which is the recipe's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelines.soups.methods.pieces import Piece, Pieces, Place, on_whole


@dataclass(frozen=True)
class TaskArithmetic:
    """Task arithmetic by pieces."""

    scaling: float = 1.0
    by_rows: bool = False
    measures: bool = False

    def measure(self, pieces: Pieces, weights: Sequence[float], place: Place) -> None:
        """Nothing."""

    def combine(self, piece: Piece, weights: Sequence[float], place: Place, facts: None) -> torch.Tensor:
        """Base + λ Σ w·δ of a piece."""
        return on_base_sum(piece, [self.scaling * weight for weight in weights])


def on_base_sum(piece: Piece, coefficients: Sequence[float]) -> torch.Tensor:
    """Base + Σ c·δ of a piece."""
    total = torch.zeros(piece.tensors[0].shape, dtype=piece.wide)
    for index, coefficient in enumerate(coefficients):
        total.add_(piece.delta(index), alpha=coefficient)
    return piece.on_base(total)


def task_arithmetic(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    base: torch.Tensor | None = None,
    *,
    name: str = "",
    seed: int = 0,
    scaling: float = 1.0,
) -> torch.Tensor:
    """θ₀ + λ Σ w (θ - θ₀).

    Args:
        tensors: one an ingredient, all of one shape.
        weights: one a tensor, any numbers.
        base: θ₀; zeros if None.
        name: not needed.
        seed: not needed.
        scaling: λ.

    Raises:
        ValueError: if numbers or shapes don't fit.
    """
    return on_whole(TaskArithmetic(scaling), tensors, weights, base, Place(name, tensors[0].numel(), seed))
