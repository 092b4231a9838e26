"""A `Bench` for recipes' tests: scores by a function of the blend, and everything that was asked and told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from evaluators.base import Direction, Score
from pipelines.soups.base import NOTHING, Ahead, Blend, Ingredient, SoupEvent, SoupNote


def score(value: float, direction: Direction = "maximize", se: float = 0.01) -> Score:
    return Score("exact_match", "select", value, se, 100, 0, direction)


def ingredients(*runs: str) -> list[Ingredient]:
    return [Ingredient(run, f"/{run}", f"hash-{run}", order) for order, run in enumerate(runs)]


class Table:
    """Implements `pipelines.soups.base.Bench`.

    Args:
        values: by the sorted runs of an average, or a function of the blend.
        direction: which way is better.
        unsound: run -> what is wrong with it.
    """

    def __init__(
        self,
        values: Mapping[str, float] | Callable[[Blend], float],
        direction: Direction = "maximize",
        unsound: Mapping[str, str] | None = None,
    ) -> None:
        self.values, self.direction, self.unsound = values, direction, unsound or {}
        self.known: dict[Blend, Score] = {}
        self.asked: list[Blend] = []
        self.told: list[SoupEvent | SoupNote] = []
        self.learned: Callable[[Sequence[str], Mapping[str, Any]], Mapping[str, Any]] | None = None

    def score(
        self, blend: Blend, ahead: Ahead = NOTHING, against: Blend | None = None, may_fail: bool = False
    ) -> Score:
        if blend in self.known:
            return self.known[blend]
        assert against is None or against in self.known, "only what was scored can be beaten"
        self.asked.append(blend)
        assert sum(weight for _, weight in blend.mixture) == pytest.approx(1.0)
        value = self.values(blend) if callable(self.values) else self.values["".join(sorted(blend.runs))]
        self.known[blend] = score(value, self.direction)
        return self.known[blend]

    def contrast(self, parts: Sequence[tuple[float, Blend]]) -> tuple[float, float]:
        return sum(factor * self.known[blend].value for factor, blend in parts), 0.01

    def problems(self, runs: Sequence[str]) -> Mapping[str, str]:
        return {run: why for run, why in self.unsound.items() if run in runs}

    def learn(self, runs: Sequence[str], settings: Mapping[str, Any]) -> Mapping[str, Any]:
        assert self.learned is not None, "this table can't learn"
        return self.learned(runs, settings)

    def tell(self, event: SoupEvent | SoupNote) -> None:
        for value in (event.score, event.best) if isinstance(event, SoupEvent) else ():
            assert not math.isinf(value)
        self.told.append(event)

    @property
    def events(self) -> list[SoupEvent]:
        return [event for event in self.told if isinstance(event, SoupEvent)]

    @property
    def notes(self) -> list[SoupNote]:
        return [event for event in self.told if isinstance(event, SoupNote)]

    @property
    def decisions(self) -> dict[str, str]:
        assert len({event.run for event in self.events}) == len(self.events), "one decision a run"
        return {event.run: event.decision for event in self.events}
