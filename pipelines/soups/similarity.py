"""How alike two models see the same rows: linear CKA of their hidden states, layer by layer.

Source: Kornblith et al., "Similarity of neural network representations revisited" (ICML 2019, arXiv 1905.00414). With the
columns of X (n, p) and Y (n, q) centred, CKA = ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F): 1 for representations that are equal up to
rotation and scale, near 0 for ones that have nothing in common (with many more rows than columns). Left out: kernels other
than the linear one.

Example:
    >>> linear_cka(x, 3 * x @ rotation)
    1.0
"""

from __future__ import annotations

import math

import torch


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear CKA of two representations of the same rows; NaN where one of them is constant.

    Args:
        x: (n, p), one row an example.
        y: (n, q).

    Raises:
        ValueError: if the rows don't match.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[0] != y.shape[0]:
        raise ValueError(f"x and y must be (n, p) and (n, q), but got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = (one.double() - one.double().mean(dim=0) for one in (x, y))
    if x.shape[0] < min(x.shape[1], y.shape[1]):
        grams = x @ x.T, y @ y.T
        together = float((grams[0] * grams[1]).sum())
        sizes = [float(gram.norm()) for gram in grams]
    else:
        together = float((y.T @ x).square().sum())
        sizes = [float((one.T @ one).norm()) for one in (x, y)]
    return together / math.prod(sizes) if min(sizes) > 0 else math.nan
