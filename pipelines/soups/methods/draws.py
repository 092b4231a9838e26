"""Uniform numbers by position: what is drawn for a number of a tensor depends on nothing but where it stands.

A counter-based generator (Philox 4x64, Salmon et al. 2011) whose key is the SHA-256 of seed, tensor name and ingredient, and
whose counter is the position. Any piece of a tensor can be drawn alone, on any machine and in any order.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

BLOCK = 8
"""Numbers a step of the counter."""


def uniform(seed: int, name: str, ingredient: int, start: int, count: int) -> torch.Tensor:
    """Numbers `start` to `start + count` of a tensor's draws, float64 in [0, 1), multiples of 2⁻³².

    Args:
        seed: of the soup.
        name: of the tensor.
        ingredient: index of the ingredient.
        start: index of the first number in the flat tensor.
        count: how many.
    """
    digest = hashlib.sha256(f"{seed}/{name}/{ingredient}".encode()).digest()
    first = start // BLOCK
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"), counter=first)
    skip = start - first * BLOCK
    raw = generator.random_raw(4 * ((skip + count + BLOCK - 1) // BLOCK)).astype("<u8", copy=False).view("<u4")
    return torch.from_numpy(raw[skip : skip + count].astype(np.float64)).mul_(2.0**-32)
