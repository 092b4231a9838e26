"""The exact average of DoRA adapters, mixed with others or not, as one DoRA adapter of the summed rank.

DoRA (Liu et al. 2024, arXiv 2402.09353) makes of a weight W (out, in) the weight diag(cᵢ)(W + ΔWᵢ), where ΔWᵢ = sᵢBᵢAᵢ and
cᵢ = mᵢ / ‖W + ΔWᵢ‖ by rows; an adapter without it has cᵢ = 1. With weights wᵢ the soup of the changes is

    W + Σ wᵢ (diag(cᵢ)(W + ΔWᵢ) - W) = diag(c)W + P    where c = 1 + Σ wᵢ (cᵢ - 1) and P = Σ wᵢ diag(cᵢ)ΔWᵢ,

which is diag(c)(W + diag(1/c)P): again a DoRA adapter, of magnitude c·‖W + diag(1/c)P‖. P has rank Σr and can be made
smaller like any product before the division. The norms need W, which is read once a layer. A layer that an adapter lacks
has cᵢ = 1 and ΔWᵢ = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from pipelines.soups.factors import Factors, summed

SMALLEST = 1e-6
"""A soup whose c is nearer to zero than this somewhere can't be written as DoRA."""


def stretch(factors: Factors, weight: torch.Tensor) -> torch.Tensor:
    """C of one adapter, (out,), in float64.

    Args:
        factors: the adapter's layer.
        weight: W, (out, in).
    """
    if factors.magnitude is None:
        return torch.ones(weight.shape[0], dtype=torch.float64)
    return factors.magnitude.double() / torch.linalg.norm(weight.double() + factors.delta(), dim=1)


def dora_delta(factors: Factors, weight: torch.Tensor) -> torch.Tensor:
    """The whole change diag(c)(W + ΔW) - W, (out, in) in float64; ΔW itself without DoRA."""
    if factors.magnitude is None:
        return factors.delta()
    wide = weight.double()
    changed = wide + factors.delta()
    return (factors.magnitude.double() / torch.linalg.norm(changed, dim=1))[:, None] * changed - wide


def summed_dora(
    parts: Sequence[tuple[Factors, float]], weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The soup as (down (Σr, in), up (out, Σr), c (out,)) in float64, with up · down = P.

    Args:
        parts: (an adapter's layer, its weight).
        weight: W, (out, in).

    Raises:
        ValueError: if the weights make some row of c vanish.
    """
    stretches = [stretch(factors, weight) for factors, _ in parts]
    total = 1 + sum(share * (own - 1) for own, (_, share) in zip(stretches, parts, strict=True))
    if bool((total.abs() < SMALLEST).any()):
        raise ValueError("the weights of the soup cancel a row of the base model")
    stretched = [
        (replace(factors, up=own[:, None] * factors.up.double()), share)
        for own, (factors, share) in zip(stretches, parts, strict=True)
    ]
    return (*summed(stretched), total)


def as_dora(
    down: torch.Tensor, up: torch.Tensor, total: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(up, magnitude) of the DoRA adapter whose weight is diag(c)W + up · down.

    Args:
        down: (r, in).
        up: (out, r) of P.
        total: c, (out,).
        weight: W, (out, in).
    """
    up = up / total[:, None]
    return up, total * torch.linalg.norm(weight.double() + up @ down, dim=1)
