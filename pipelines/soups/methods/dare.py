"""DARE: drop changes at random and rescale the others (Yu et al. 2024, arXiv 2311.03099).

Each number of each change δᵢ = θᵢ - θ₀ stays with the chance `density` (the paper's 1 - p) and is divided by it, so that the
expectation is δᵢ; then the changes are added up, θ₀ + Σ wᵢδᵢ', or merged as TIES merges (`elect`). `rescale: l1` brings
each tensor back to its own Σ|δ| instead, as mergekit does. What is drawn depends on seed, tensor name and the ingredient's
place alone. Left out: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelines.soups.methods.dropping import Elect, Rescale, drawn, fused, l1_factors
from pipelines.soups.methods.pieces import Piece, Pieces, Place, on_whole


@dataclass(frozen=True)
class Dare:
    """DARE by pieces; what is measured, with `l1`, are the factors."""

    density: float = 0.5
    rescale: Rescale = "density"
    elect: Elect = "none"
    by_rows: bool = False

    @property
    def measures(self) -> bool:
        """Whether sums of magnitudes are needed."""
        return self.rescale == "l1" and self.density < 1

    def measure(self, pieces: Pieces, weights: Sequence[float], place: Place) -> list[float] | None:
        """The factor of every ingredient."""
        return l1_factors(pieces, place, self._kept) if self.measures else None

    def combine(self, piece: Piece, weights: Sequence[float], place: Place, facts: list[float] | None) -> torch.Tensor:
        """Base + what stays of a piece."""
        deltas = piece.deltas()
        if self.density < 1:
            for index, delta in enumerate(deltas):
                delta.mul_(self._kept(delta, piece.start, place, index))
                delta.mul_(1 / self.density if facts is None else facts[index])
        return piece.on_base(fused(deltas, weights, self.elect))

    def _kept(self, delta: torch.Tensor, start: int, place: Place, index: int) -> torch.Tensor:
        return drawn(delta, self.density, start, place, index)


def dare(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    base: torch.Tensor | None = None,
    *,
    name: str = "",
    seed: int = 0,
    density: float = 0.5,
    rescale: Rescale = "density",
    elect: Elect = "none",
) -> torch.Tensor:
    """θ₀ + the merged changes, each with a random part dropped and the rest rescaled.

    Args:
        tensors: one an ingredient, all of one shape.
        weights: one a tensor.
        base: θ₀; zeros if None.
        name: of the tensor; draws depend on it.
        seed: of the draws.
        density: chance of a number to stay.
        rescale: by the density, or to the tensor's sum of magnitudes.
        elect: what elects signs, or `none`.

    Raises:
        ValueError: if numbers or shapes don't fit.
    """
    method = Dare(density, rescale, elect)
    return on_whole(method, tensors, weights, base, Place(name, tensors[0].numel(), seed))
