"""What a soup recipe is: a pure decision about weights of ingredients, told scores by whoever called it.

A recipe never touches tensors, files, Ray or the ledger. It asks for the score of mixtures and says what it decided;
`sweeps/soup.py` materialises and scores mixtures, writes the events, and answers from the ledger on a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from evaluators.base import Score

Mixture = tuple[tuple[str, float], ...]
"""((ingredient, weight), ...): the soup is the weighted sum of the ingredients' deltas from the base."""


@dataclass(frozen=True)
class Ingredient:
    """A run's weights.

    Attributes:
        run: `Run.id`.
        folder: its checkpoint (a PEFT adapter folder or a full model folder).
        hash: SHA-256 of its weights.
        order: tie-break, the trial's order.
    """

    run: str
    folder: str
    hash: str
    order: int


@dataclass(frozen=True)
class SoupEvent:
    """A recipe's decision about one ingredient."""

    run: str
    decision: Literal["start", "accept", "reject"]
    score: float
    best: float
    reason: str


class Recipe(Protocol):
    """Decides a mixture. `score` may be called any number of times; equal calls give equal answers."""

    def mix(
        self,
        ingredients: Sequence[Ingredient],
        score: Callable[[Mixture], Score],
        on_event: Callable[[SoupEvent], None],
    ) -> Mixture:
        """The mixture to make."""
        ...


def uniform(runs: Sequence[str]) -> Mixture:
    """Equal weights that sum to one."""
    return tuple((run, 1.0 / len(runs)) for run in runs)
