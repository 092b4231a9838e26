"""DELLA: drop small changes more often than large ones, elect a sign, merge (Deep et al. 2024, arXiv 2406.11617).

Within each row the chance to stay grows with the rank of the magnitude, from density - ε for the smallest to density + ε
for the largest; what stays is divided by its own chance, so that the expectation is the change (MAGPRUNE). Then signs are
elected and the changes that agree are averaged, as in TIES. `rescale: l1` brings each tensor back to its own Σ|δ| instead,
as mergekit does. Rows are those of (shape[0], rest); a vector is one row. Equal magnitudes are ranked by their place. Left
out: the paper's λ, which is the soup's `scale`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelines.soups.methods.dropping import Elect, Rescale, drawn, fused, l1_factors
from pipelines.soups.methods.pieces import Piece, Pieces, Place, on_whole


@dataclass(frozen=True)
class Della:
    """DELLA by pieces of whole rows; what is measured, with `l1`, are the factors."""

    density: float = 0.5
    epsilon: float = 0.1
    rescale: Rescale = "density"
    elect: Elect = "sum"

    @property
    def by_rows(self) -> bool:
        """Ranks are those of whole rows."""
        return self.density < 1

    @property
    def measures(self) -> bool:
        """Whether sums of magnitudes are needed."""
        return self.rescale == "l1" and self.density < 1

    def measure(self, pieces: Pieces, weights: Sequence[float], place: Place) -> list[float] | None:
        """The factor of every ingredient."""
        return l1_factors(pieces, place, self._kept) if self.measures else None

    def combine(self, piece: Piece, weights: Sequence[float], place: Place, facts: list[float] | None) -> torch.Tensor:
        """Base + what stays of a piece and agrees."""
        deltas = piece.deltas()
        if self.density < 1:
            for index, delta in enumerate(deltas):
                chance = chances(delta, self.density, self.epsilon)
                delta.mul_(drawn(delta, chance, piece.start, place, index))
                delta.div_(chance) if facts is None else delta.mul_(facts[index])
        return piece.on_base(fused(deltas, weights, self.elect))

    def _kept(self, delta: torch.Tensor, start: int, place: Place, index: int) -> torch.Tensor:
        return drawn(delta, chances(delta, self.density, self.epsilon), start, place, index)


def chances(delta: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """The chance of each number to stay, (rows, width), by the rank of its magnitude in its row."""
    width = delta.shape[1]
    if width == 1:
        return torch.full_like(delta, density)
    order = delta.abs().argsort(dim=1, stable=True)
    step = torch.linspace(density - epsilon, density + epsilon, width, dtype=delta.dtype)
    return torch.empty_like(delta).scatter_(1, order, step.expand_as(delta))


def della(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    base: torch.Tensor | None = None,
    *,
    name: str = "",
    seed: int = 0,
    density: float = 0.5,
    epsilon: float = 0.1,
    rescale: Rescale = "density",
    elect: Elect = "sum",
) -> torch.Tensor:
    """θ₀ + the merged changes, each with a random part dropped, small numbers more often.

    Args:
        tensors: one an ingredient, all of one shape.
        weights: one a tensor.
        base: θ₀; zeros if None.
        name: of the tensor; draws depend on it.
        seed: of the draws.
        density: mean chance of a number to stay; 1 drops nothing.
        epsilon: half the difference between the largest and the smallest chance.
        rescale: by the chance, or to the tensor's sum of magnitudes.
        elect: what elects signs, or `none`.

    Raises:
        ValueError: if numbers or shapes don't fit.
    """
    method = Della(density, epsilon, rescale, elect)
    return on_whole(method, tensors, weights, base, Place(name, tensors[0].numel(), seed))
