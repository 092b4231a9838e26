"""The weighted average θ = Σ wᵢ θᵢ of model soups (Wortsman et al. 2022, arXiv 2203.05482).

Accumulated in float32 (float64 for float64) whatever the inputs hold. Weights are taken as they are: those of full models
must sum to one, those of changes may be any numbers. Left out: nothing; the base plays no part.

Example:
    >>> average([torch.ones(2), torch.zeros(2)], [0.25, 0.75])
    tensor([0.2500, 0.2500])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelines.soups.methods.pieces import Piece, Pieces, Place, on_whole


@dataclass(frozen=True)
class Average:
    """The average by pieces; one ingredient of weight 1 is itself."""

    by_rows: bool = False
    measures: bool = False

    def measure(self, pieces: Pieces, weights: Sequence[float], place: Place) -> None:
        """Nothing."""

    def combine(self, piece: Piece, weights: Sequence[float], place: Place, facts: None) -> torch.Tensor:
        """Σ w·θ of a piece."""
        total = torch.zeros(piece.tensors[0].shape, dtype=piece.wide)
        scratch = torch.empty_like(total)
        for tensor, weight in zip(piece.tensors, weights, strict=True):
            total.add_(scratch.copy_(tensor), alpha=weight)
        return total


def average(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    base: torch.Tensor | None = None,
    *,
    name: str = "",
    seed: int = 0,
) -> torch.Tensor:
    """Σ w·θ.

    Args:
        tensors: one an ingredient, all of one shape.
        weights: one a tensor.
        base: not needed.
        name: not needed.
        seed: not needed.

    Raises:
        ValueError: if numbers or shapes don't fit.
    """
    return on_whole(Average(), tensors, weights, base, Place(name, tensors[0].numel(), seed))
