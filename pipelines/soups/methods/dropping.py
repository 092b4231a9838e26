"""What DARE and DELLA share: numbers stay by chance, and what stays is brought back to its size and added up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from pipelines.soups.methods.draws import uniform
from pipelines.soups.methods.pieces import Pieces, Place
from pipelines.soups.methods.ties import agreeing

Kept = Callable[[torch.Tensor, int, Place, int], torch.Tensor]
"""(delta, start, place, ingredient) -> 1 for what stays, 0 for what is dropped."""
Rescale = Literal["density", "l1"]
Elect = Literal["none", "sum", "count"]
LEAST_L1 = 1e-7
"""Sums of magnitudes below this are not rescaled."""


def drawn(like: torch.Tensor, chance: float | torch.Tensor, start: int, place: Place, index: int) -> torch.Tensor:
    """1 for what stays, 0 for what is dropped, of the shape and type of `like`.

    Args:
        like: numbers of an ingredient's change.
        chance: of each to stay; one for all, or a tensor of their shape.
        start: index of the first in the flat tensor.
        place: which tensor.
        index: which ingredient.
    """
    numbers = uniform(place.seed, place.name, index, start, like.numel()).reshape(like.shape)
    return (numbers < chance).to(like.dtype)


def l1_factors(pieces: Pieces, place: Place, kept: Kept) -> list[float]:
    """Σ|δ| / Σ|kept δ| of every ingredient, 1 where either vanishes.

    Args:
        pieces: of the tensor.
        place: which tensor.
        kept: says what stays.
    """
    before: list[float] = []
    after: list[float] = []
    for piece in pieces():
        before, after = before or [0.0] * len(piece.tensors), after or [0.0] * len(piece.tensors)
        for index in range(len(piece.tensors)):
            delta = piece.delta(index)
            mask = kept(delta, piece.start, place, index)
            before[index] += float(delta.abs_().sum(dtype=torch.float64))
            after[index] += float(delta.mul_(mask).sum(dtype=torch.float64))
    pairs = zip(before, after, strict=True)
    return [whole / part if min(whole, part) >= LEAST_L1 else 1.0 for whole, part in pairs]


def fused(deltas: torch.Tensor, weights: Sequence[float], elect: Elect) -> torch.Tensor:
    """Σ w·δ, or the mean of those that agree with the elected sign; `deltas` (ingredients, ...) is used up."""
    if elect != "none":
        return agreeing(deltas, weights, elect)
    weight = torch.tensor(list(weights), dtype=deltas.dtype).reshape(-1, *([1] * (deltas.dim() - 1)))
    return deltas.mul_(weight).sum(0)
