"""TIES: trim, elect a sign, merge what agrees (Yadav et al. 2023, arXiv 2306.01708).

Of each change δᵢ = θᵢ - θ₀ the `density` largest magnitudes of the tensor stay (at least one; equal ones at the edge all stay).
With γ = sgn(Σ wᵢδᵢ) for each number, the result is θ₀ + Σ wᵢδᵢ / Σ wᵢ over the i whose sign is γ; where nothing agrees, θ₀.
The threshold is exact, and found by counting the bits of the magnitudes, 16 at a time: no tensor is sorted.

Left out: the paper's λ, which is the soup's `scale`; trimming over a whole model instead of each tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipelines.soups.methods.pieces import Piece, Pieces, Place, on_whole

Elect = Literal["sum", "count"]


@dataclass(frozen=True)
class Ties:
    """TIES by pieces; what is measured are the thresholds."""

    density: float = 0.2
    elect: Elect = "sum"
    by_rows: bool = False

    @property
    def measures(self) -> bool:
        """Whether anything is trimmed."""
        return self.density < 1

    def measure(self, pieces: Pieces, weights: Sequence[float], place: Place) -> list[float] | None:
        """The smallest magnitude that stays, for every ingredient."""
        if not self.measures:
            return None
        return thresholds(pieces, max(1, int(self.density * place.numel)))

    def combine(self, piece: Piece, weights: Sequence[float], place: Place, facts: list[float] | None) -> torch.Tensor:
        """Base + the agreeing changes of a piece."""
        deltas = piece.deltas()
        if facts is not None:
            for delta, least in zip(deltas, facts, strict=True):
                delta.masked_fill_(delta.abs() < least, 0)
        return piece.on_base(agreeing(deltas, weights, self.elect))


def thresholds(pieces: Pieces, count: int) -> list[float]:
    """The `count`-th largest magnitude of every ingredient's change.

    Non-negative floats are ordered as their bits are, so the bits are found from the top: count how many magnitudes have each
    value of the next 16 bits among those that begin with the bits found so far.
    """
    found: list[int] = []
    left: list[int] = []
    rounds, wide = 0, torch.float32
    for shift_round in range(4):
        bins: list[torch.Tensor] = []
        for bits, wide in _magnitude_bits(pieces):
            rounds = 2 if wide is torch.float32 else 4
            shift = 16 * (rounds - 1 - shift_round)
            if not bins:
                bins = [torch.zeros(1 << 16, dtype=torch.int64) for _ in bits]
                found, left = found or [0] * len(bits), left or [count] * len(bits)
            for index, own in enumerate(bits):
                if shift_round:
                    own = own[(own >> (shift + 16)) == found[index]]
                bins[index] += torch.bincount((own >> shift) & 0xFFFF, minlength=1 << 16)
        for index, counts in enumerate(bins):
            at_least = counts.flip(0).cumsum(0).flip(0)
            digit = int((at_least >= left[index]).nonzero()[-1])
            left[index] -= int(at_least[digit + 1]) if digit + 1 < len(at_least) else 0
            found[index] = (found[index] << 16) | digit
        if shift_round + 1 == rounds:
            break
    integer = torch.int32 if wide is torch.float32 else torch.int64
    return [float(torch.tensor(bits, dtype=integer).view(wide)) for bits in found]


def _magnitude_bits(pieces: Pieces) -> Iterator[tuple[list[torch.Tensor], torch.dtype]]:
    for piece in pieces():
        wide = piece.wide
        integer = torch.int32 if wide is torch.float32 else torch.int64
        yield [piece.delta(i).abs_().flatten().view(integer) for i in range(len(piece.tensors))], wide


def agreeing(deltas: torch.Tensor, weights: Sequence[float], elect: Elect) -> torch.Tensor:
    """Σ w·δ / Σ w over the changes whose sign is the elected one, for each number; 0 where there are none.

    Args:
        deltas: (ingredients, ...); used up.
        weights: one an ingredient.
        elect: the sign is that of Σ w·δ, or of Σ sgn(w·δ); a draw is positive.
    """
    weight = torch.tensor(list(weights), dtype=deltas.dtype).reshape(-1, *([1] * (deltas.dim() - 1)))
    deltas.mul_(weight)
    votes = deltas.sum(0) if elect == "sum" else deltas.sign().sum(0)
    agrees = deltas.sign() == torch.where(votes >= 0, 1.0, -1.0).to(deltas.dtype)
    total = (weight * agrees).sum(0)
    return deltas.mul_(agrees).sum(0).div_(total.masked_fill_(total == 0, 1))


def ties(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    base: torch.Tensor | None = None,
    *,
    name: str = "",
    seed: int = 0,
    density: float = 0.2,
    elect: Elect = "sum",
) -> torch.Tensor:
    """θ₀ + the weighted mean of the trimmed changes that agree in sign.

    Args:
        tensors: one an ingredient, all of one shape.
        weights: one a tensor.
        base: θ₀; zeros if None.
        name: not needed.
        seed: not needed.
        density: share of the changes that stays.
        elect: what elects the sign.

    Raises:
        ValueError: if numbers or shapes don't fit.
    """
    return on_whole(Ties(density, elect), tensors, weights, base, Place(name, tensors[0].numel(), seed))
