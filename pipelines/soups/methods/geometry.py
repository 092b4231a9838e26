"""Norms and angles of changes, in float64, by pieces."""

from __future__ import annotations

import torch

from pipelines.soups.methods.pieces import Pieces


def gram(pieces: Pieces) -> torch.Tensor:
    """Products <δᵢ, δⱼ> of the ingredients' changes over a whole tensor, (n, n) in float64."""
    total: torch.Tensor | None = None
    for piece in pieces():
        deltas = piece.deltas().flatten(1).to(torch.float64)
        total = deltas @ deltas.T if total is None else total.add_(deltas @ deltas.T)
    assert total is not None, "a tensor must have a piece"
    return total


def cosines(products: torch.Tensor) -> torch.Tensor:
    """Cosines from products, (..., n, n) to (..., n, n), within [-1, 1]; 0 with a change that is zero, 1 with itself."""
    norms = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    norm = norms[..., :, None] * norms[..., None, :]
    cosine = torch.where(norm > 0, products / norm.clamp(min=1e-300), torch.zeros_like(products)).clamp(-1, 1)
    cosine.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return cosine
