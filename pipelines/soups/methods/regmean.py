"""RegMean: the linear layer nearest to all ingredients' outputs on their own inputs (Jin et al. 2023, arXiv 2212.09849).

With Gᵢ = XᵢᵀXᵢ / rows of the layer's inputs, off-diagonal entries times α, and W of shape (out, in), the paper's
W = Σ wᵢWᵢGᵢ (Σ wᵢGᵢ)⁻¹ is the minimum of Σ wᵢ‖(W - Wᵢ)Xᵢᵀ‖² for α = 1. It is computed as W̄ + Σ wᵢ(Wᵢ - W̄)Gᵢ (Σ wᵢGᵢ + ρI)⁻¹ with the
average W̄ and a ridge ρ of 1e-8 of the mean diagonal: the same matrix, but equal ingredients stay exactly themselves, and
inputs that no row had take the average. Tensors without Gram matrices are averaged, as in the paper.

Everything is in float64. One matrix of (in, in) and its factor are held: 16·in² bytes, 0.27 GB for 4,096. Left out: RegMean++
(inputs of the merged model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelines.soups.methods.average import Average
from pipelines.soups.methods.pieces import Piece, Pieces, Place, on_whole, shares

RIDGE = 1e-8
COLUMNS = 512
"""Columns of a Gram matrix that are converted at once."""


@dataclass(frozen=True)
class RegMean:
    """RegMean by pieces of whole rows; what is measured is the factor of the summed Gram matrices."""

    off_diagonal: float = 0.9
    by_rows: bool = True
    measures: bool = False

    def measure(self, pieces: Pieces, weights: Sequence[float], place: Place) -> torch.Tensor | None:
        """The Cholesky factor of Σ w·G + ρI, from the Gram matrices alone."""
        if place.grams is None:
            return None
        total = torch.zeros(place.grams[0].shape, dtype=torch.float64)
        for own, weight in zip(place.grams, shares(weights), strict=True):
            total.add_(own, alpha=weight * self.off_diagonal)
            total.diagonal().add_(own.diagonal(), alpha=weight * (1 - self.off_diagonal))
        ridge = RIDGE * float(total.diagonal().mean())
        total.diagonal().add_(ridge if ridge > 0 else 1.0)
        return torch.linalg.cholesky(total)

    def combine(self, piece: Piece, weights: Sequence[float], place: Place, facts: torch.Tensor | None) -> torch.Tensor:
        """The merged rows of a piece."""
        own = shares(weights)
        mean = Average().combine(piece, own, place, None)
        if place.grams is None or facts is None:
            return mean
        mean = mean.to(torch.float64)
        pull = torch.zeros_like(mean)
        for tensor, weight, products in zip(piece.tensors, own, place.grams, strict=True):
            away = tensor.to(torch.float64) - mean
            diagonal = products.diagonal().to(torch.float64)
            pull.add_(away * diagonal, alpha=weight * (1 - self.off_diagonal))
            for at in range(0, products.shape[1], COLUMNS):
                block = slice(at, at + COLUMNS)
                pull[:, block].add_(away @ products[:, block].to(torch.float64), alpha=weight * self.off_diagonal)
        return mean.add_(torch.cholesky_solve(pull.T, facts).T).to(piece.wide)


def regmean(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    base: torch.Tensor | None = None,
    *,
    name: str = "",
    seed: int = 0,
    off_diagonal: float = 0.9,
    grams: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """The least-squares merge of linear layers' weights.

    Args:
        tensors: weights, (out, in), one an ingredient.
        weights: one a tensor, not negative; their shares count.
        base: not needed.
        name: not needed.
        seed: not needed.
        off_diagonal: α.
        grams: G of every ingredient, (in, in); the average without them.

    Raises:
        ValueError: if numbers or shapes don't fit, or a weight is negative.
    """
    if grams is not None and [tuple(own.shape) for own in grams] != [(tensors[0].shape[-1],) * 2] * len(tensors):
        raise ValueError(f"there must be a Gram matrix of (in, in) for each of {len(tensors)} tensors")
    place = Place(name, tensors[0].numel(), seed, grams)
    return on_whole(RegMean(off_diagonal), tensors, weights, base, place)
