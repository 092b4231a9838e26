"""Which weights to prune: pure functions from weights (and inputs) to masks, True where a weight stays.

Sources
    `global_magnitude` and `layer_magnitude`: the smallest |W| of all layers together, or of each layer (Han et al. 2015,
    arXiv 1506.02626). `wanda`: the smallest |W_ij|·‖X_j‖₂ of each output row (Sun et al., ICLR 2024, arXiv 2306.11695).

Left out
    Wanda's passing on of the inputs as they are after earlier blocks were pruned: all norms are the unpruned model's, one
    pass for all layers. Its structured 2:4 and 4:8 patterns.

A weight that is zero has the lowest score there is, so that what was pruned stays pruned as the share grows. Shares are
exact: of equal scores as many are pruned as it takes, the first ones in the order of the tensors.

Example:
    >>> layer_magnitude({"a": torch.tensor([[0.1, -3.0], [2.0, 0.2]])}, 0.5)
    {'a': tensor([[False,  True], [ True, False]])}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Tensors = Mapping[str, torch.Tensor]


def global_magnitude(weights: Tensors, sparsity: float) -> dict[str, torch.Tensor]:
    """The smallest weights of all matrices together go.

    Args:
        weights: name -> (out, in), any floating type.
        sparsity: share of zeros, in [0, 1).
    """
    numbers = sum(weight.numel() for weight in weights.values())
    masks = _all_but_lowest([weight.abs() for weight in weights.values()], round(sparsity * numbers))
    return dict(zip(weights, masks, strict=True))


def layer_magnitude(weights: Tensors, sparsity: float) -> dict[str, torch.Tensor]:
    """The smallest weights of each matrix go.

    Args:
        weights: name -> (out, in), any floating type.
        sparsity: share of zeros of each, in [0, 1).
    """
    return {
        name: _all_but_lowest([weight.abs()], round(sparsity * weight.numel()))[0] for name, weight in weights.items()
    }


def wanda(weights: Tensors, norms: Tensors, sparsity: float) -> dict[str, torch.Tensor]:
    """The weights of each output row that contribute least go: by |W_ij|·‖X_j‖₂.

    Args:
        weights: name -> (out, in), any floating type.
        norms: name -> (in,), the paper's ‖X_j‖₂: root of the sum of squares of input j over all tokens.
        sparsity: share of zeros of each row, in [0, 1).
    """
    masks = {}
    for name, weight in weights.items():
        scores = weight.float().abs() * norms[name].to(weight.device, torch.float32)
        count = round(sparsity * weight.shape[1])
        lowest = scores.argsort(dim=1, stable=True)[:, :count]
        masks[name] = torch.ones_like(weight, dtype=torch.bool).scatter_(1, lowest, False)
    return masks


def _all_but_lowest(scores: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Masks that leave out exactly `count` of the lowest scores, all tensors together.

    The bits of a float from 0 up, read as a whole number, are ordered as the floats are; so the threshold is found by
    halving, in 31 passes and without a copy of all scores in one piece.

    Args:
        scores: of any shapes, from 0 up and finite.
        count: how many go.
    """
    keys = [score.float().contiguous().view(torch.int32) for score in scores]
    low, high = -1, max((int(key.max()) for key in keys if key.numel()), default=0)
    while high - low > 1:
        middle = (low + high) // 2
        if sum(int((key <= middle).sum()) for key in keys) >= count:
            high = middle
        else:
            low = middle
    masks = [key > low for key in keys]
    left = count - sum(int((~mask).sum()) for mask in masks)
    for mask, key in zip(masks, keys, strict=True):
        equal = (key == high).view(-1).nonzero()[:left, 0] if left > 0 else None
        if equal is not None:
            mask.view(-1)[equal] = False
            left -= len(equal)
    return masks
