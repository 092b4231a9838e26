"""The best approximation of a product of two factors by one of a smaller rank, without ever forming the product.

ΔW = up · down with up (out, R), down (R, in). With the QR decompositions up = Q₁R₁ and downᵀ = Q₂R₂, ΔW = Q₁(R₁R₂ᵀ)Q₂ᵀ,
so the SVD UΣVᵀ of the R x R core gives the singular values of ΔW, and by Eckart and Young (1936) its best approximation
of rank k: (Q₁U√Σ)(√ΣVᵀQ₂ᵀ), cut after k. The error is known beforehand: ‖ΔW - kept‖² is the sum of the squares of the
singular values cut off. A dense SVD of the (out, in) product has the same answer, at 4096 x 4096 many times slower.

Example:
    >>> kept = compact(down, up, rank=16)
    >>> kept.down.shape, kept.residual
    (torch.Size([16, 4096]), 0.031)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Kept:
    """A product of a smaller rank.

    Attributes:
        down: (rank, in), float64.
        up: (out, rank), float64.
        lost: ‖ΔW - kept‖² (Frobenius).
        total: ‖ΔW‖².
    """

    down: torch.Tensor
    up: torch.Tensor
    lost: float
    total: float

    @property
    def residual(self) -> float:
        """‖ΔW - kept‖ / ‖ΔW‖; 0 of nothing."""
        return math.sqrt(self.lost / self.total) if self.total > 0 else 0.0


def rank_of(squares: torch.Tensor, total: float, rank: int | None, energy: float | None) -> int:
    """How many singular values are kept, at least one.

    Args:
        squares: squares of the singular values, falling.
        total: what energy is a share of.
        rank: at most this many; None is all.
        energy: as few as hold this share of `total`; None is all.
    """
    kept = len(squares) if rank is None else min(rank, len(squares))
    if energy is not None:
        missing = total - torch.cumsum(squares, dim=0)
        allowed = (1.0 - energy) * total + len(squares) * torch.finfo(squares.dtype).eps * total
        enough = int((missing > allowed).sum()) + 1
        kept = min(kept, enough)
    return max(1, kept)


def compact(down: torch.Tensor, up: torch.Tensor, rank: int | None = None, energy: float | None = None) -> Kept:
    """The best product of at most `rank` ranks, or of as few as hold `energy` of ‖ΔW‖², whichever is smaller.

    Args:
        down: (R, in).
        up: (out, R).
        rank: ranks at most.
        energy: share of ‖ΔW‖² to keep, in (0, 1]; 1 loses nothing but rounding.
    """
    left, left_core = torch.linalg.qr(up.double())
    right, right_core = torch.linalg.qr(down.double().T)
    u, singular, vh = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    squares = singular.square()
    total = float(squares.sum())
    kept = rank_of(squares, total, rank, energy)
    root = singular[:kept].sqrt()
    return Kept(root[:, None] * (vh[:kept] @ right.T), (left @ u[:, :kept]) * root, float(squares[kept:].sum()), total)


def factorise(delta: torch.Tensor, rank: int | None = None, energy: float | None = None) -> Kept:
    """The same for a dense (out, in) matrix, from the eigenvectors of the smaller of its two Gram matrices.

    Singular values below 1e-8 of the largest can't be told from zero here.
    """
    if delta.shape[0] > delta.shape[1]:
        turned = factorise(delta.T, rank, energy)
        return Kept(turned.up.T, turned.down.T, turned.lost, turned.total)
    delta = delta.double()
    squares, vectors = torch.linalg.eigh(delta @ delta.T)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    total = float(delta.square().sum())
    kept = rank_of(squares, total, rank, energy)
    up = vectors[:, :kept]
    down = up.T @ delta
    root = squares[:kept].sqrt().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    return Kept(down / root[:, None], up * root, max(0.0, total - float(down.square().sum())), total)
