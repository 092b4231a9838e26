"""How alike two models see the same rows: linear CKA of their hidden states, layer by layer.

Source: Kornblith et al., "Similarity of neural network representations revisited" (ICML 2019, arXiv 1905.00414). With the
columns of X (n, p) and Y (n, q) centred, CKA = ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F): 1 for representations that are equal up to
rotation and scale, near 0 for ones that have nothing in common (with many more rows than columns). An example is a token
here: `spread` picks them evenly from all rows. Left out: kernels other than the linear one.

Example:
    >>> linear_cka(x, 3 * x @ rotation)
    1.0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

TOKENS = 2048
"""Tokens whose hidden states are compared, at most."""


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


def spread(lengths: Sequence[int], most: int = TOKENS) -> list[list[int]]:
    """Places in rows of these lengths, evenly spread over all their tokens, `most` in all; every place where there are fewer.

    Example:
        >>> spread([3, 3], 3)
        [[0, 2], [1]]
    """
    total = sum(lengths)
    count = min(most, total)
    wanted = [place * total // count for place in range(count)] if count else []
    found: list[list[int]] = []
    start = at = 0
    for length in lengths:
        found.append([])
        while at < count and wanted[at] < start + length:
            found[-1].append(wanted[at] - start)
            at += 1
        start += length
    return found


@torch.no_grad()
def hidden_states(
    model: Any, rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]], pad_token: int, batch_size: int = 8
) -> list[torch.Tensor]:
    """What a model makes of chosen tokens: after the embeddings, and after each of its blocks.

    Args:
        model: a causal language model, in evaluation mode; an adapter on it takes part.
        rows: token ids.
        places: of every row, the tokens that count.
        pad_token: what short rows are filled up with; masked.
        batch_size: rows in one forward pass.

    Returns:
        (n, p) on the CPU in float32, one a layer, the tokens in the order of the rows.
    """
    device = next(model.parameters()).device
    gathered: list[list[torch.Tensor]] = []
    for start in range(0, len(rows), batch_size):
        batch, chosen = rows[start : start + batch_size], places[start : start + batch_size]
        width = max(len(row) for row in batch)
        ids = torch.tensor([[*row, *[pad_token] * (width - len(row))] for row in batch], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=device)
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        picked = [(at, place) for at, own in enumerate(chosen) for place in own]
        if not picked:
            continue
        at, place = (torch.tensor(one, device=device) for one in zip(*picked, strict=True))
        gathered = gathered or [[] for _ in states]
        for layer, state in zip(gathered, states, strict=True):
            layer.append(state[at, place].float().cpu())
    return [torch.cat(layer) for layer in gathered]


def layer_cka(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> list[float]:
    """Linear CKA of two models' hidden states, layer by layer.

    Raises:
        ValueError: if they don't have as many layers.
    """
    if len(left) != len(right):
        raise ValueError(f"both must have the same number of layers, but got {len(left)} and {len(right)}")
    return [linear_cka(x, y) for x, y in zip(left, right, strict=True)]
