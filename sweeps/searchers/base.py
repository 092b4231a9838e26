"""What a searcher is: a pure function from (seed, index, what the ledger told) to a suggestion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sweeps.space import Space

State = Literal["complete", "running", "failed"]


@dataclass(frozen=True)
class Suggestion:
    """Parameters for one trial, and what the sampler must be given back to go on.

    Attributes:
        parameters: dotted path -> value, only the paths of chosen arms.
        choices: axis name -> value as drawn (arms and groups included): what `Space.replay` and the sampler key on.
        distributions: axis name -> distribution JSON (Optuna's), kept in the suggest event.
        attributes: the sampler's own attributes of the trial, JSON.
    """

    parameters: Mapping[str, Any]
    choices: Mapping[str, Any]
    distributions: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """One earlier suggestion and what became of it.

    Attributes:
        suggestion: as it was made.
        state: `failed` marks an infrastructure failure, which samplers are not told.
        values: the metrics' values at the highest rung reached, in the sweep's order; already finite (a diverged run is the
            worst finite value seen plus the observed range); None while running.
        resource: the rung that `values` come from.
    """

    suggestion: Suggestion
    state: State
    values: tuple[float, ...] | None = None
    resource: int | None = None


class Searcher(Protocol):
    """Asks are numbered; the same (seed, index, history) always gives the same suggestion."""

    space: Space

    @property
    def finite(self) -> int | None:
        """How many suggestions there are in all; None when there is no end."""
        ...

    def suggest(self, index: int, history: Sequence[Told]) -> Suggestion | None:
        """The suggestion numbered `index`, given all earlier ones in order; None when the space is used up."""
        ...
