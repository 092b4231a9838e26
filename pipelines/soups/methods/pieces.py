"""What a merge method is: a pure function of tensors that can also run piece by piece over tensors too large for memory.

A method first measures (norms, thresholds: reductions over pieces), then makes each piece of the result from the same
piece of every ingredient. The plain function of a method is the same two steps on one piece that is the whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Piece:
    """Consecutive numbers of one tensor, of every ingredient and of the base.

    Attributes:
        start: index of the first number in the flat tensor.
        tensors: one an ingredient, all of shape (numbers,), or (rows, width) for a method that goes by rows.
        base: the base model's numbers, of the same shape; None stands for zeros: the tensors are changes already.
    """

    start: int
    tensors: Sequence[torch.Tensor]
    base: torch.Tensor | None

    @property
    def wide(self) -> torch.dtype:
        """The type to calculate in: float32, or float64 for float64."""
        return torch.promote_types(self.tensors[0].dtype, torch.float32)

    def delta(self, index: int) -> torch.Tensor:
        """An ingredient's change from the base, a new tensor in the wide type."""
        wide = self.tensors[index].to(self.wide, copy=True)
        return wide if self.base is None else wide.sub_(self.base.to(self.wide))

    def deltas(self) -> torch.Tensor:
        """All changes, stacked."""
        return torch.stack([self.delta(index) for index in range(len(self.tensors))])

    def on_base(self, change: torch.Tensor) -> torch.Tensor:
        """Base + change; `change` is used up."""
        return change if self.base is None else change.add_(self.base.to(self.wide))


Pieces = Callable[[], Iterator[Piece]]
"""Reads a tensor once, piece by piece, from its first number to its last; may be asked again."""


@dataclass(frozen=True)
class Place:
    """Which tensor is merged.

    Attributes:
        name: its name; random methods draw by it.
        numel: how many numbers it has.
        seed: of random methods.
        grams: XᵀX of the inputs of this linear layer for every ingredient, (in, in); None if there are none.
    """

    name: str
    numel: int
    seed: int = 0
    grams: Sequence[torch.Tensor] | None = None


class Method(Protocol):
    """Merges one tensor by pieces."""

    @property
    def by_rows(self) -> bool:
        """Whether pieces hold whole rows (of the tensor as (shape[0], rest); a vector is one row)."""
        ...

    @property
    def measures(self) -> bool:
        """Whether `measure` reads the tensor."""
        ...

    def measure(self, pieces: Pieces, weights: Sequence[float], place: Place) -> Any:
        """What `combine` has to know of the whole tensor; its size does not grow with the tensor."""
        ...

    def combine(self, piece: Piece, weights: Sequence[float], place: Place, facts: Any) -> torch.Tensor:
        """The merged piece in the wide type."""
        ...


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as (rows, width): the first axis against the rest; a vector or a number is one row."""
    return tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.reshape(tensor.shape[0], -1)


def on_whole(
    method: Method, tensors: Sequence[torch.Tensor], weights: Sequence[float], base: torch.Tensor | None, place: Place
) -> torch.Tensor:
    """Merge whole tensors; the result has their shape and the wide type.

    Raises:
        ValueError: if there is no tensor, or numbers or shapes of tensors and weights don't fit.
    """
    if not tensors or len(tensors) != len(weights):
        raise ValueError(f"there must be as many weights as tensors and at least one, but got {len(weights)}")
    shapes = {tuple(tensor.shape) for tensor in [*tensors, *([] if base is None else [base])]}
    if len(shapes) != 1:
        raise ValueError(f"tensors must have one shape, but got {sorted(shapes)}")
    if tensors[0].numel() == 0:
        return tensors[0].to(torch.promote_types(tensors[0].dtype, torch.float32))
    shaped = rows_of if method.by_rows else torch.flatten
    piece = Piece(0, [shaped(tensor) for tensor in tensors], None if base is None else shaped(base))
    facts = method.measure(lambda: iter([piece]), weights, place)
    return method.combine(piece, weights, place, facts).reshape(tensors[0].shape)


def shares(weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum.

    Raises:
        ValueError: if one is negative or the sum is not positive.
    """
    total = sum(weights)
    if min(weights) < 0 or not total > 0:
        raise ValueError(f"weights must not be negative and their sum must be positive, but got {list(weights)}")
    return [weight / total for weight in weights]
