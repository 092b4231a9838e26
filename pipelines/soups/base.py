"""What a soup recipe is: a pure decision about blends of ingredients, told scores by whoever called it.

A recipe never touches tensors, files, Ray or the ledger. It asks a `Bench` for the score of blends and says what it
decided; `sweeps/soup.py` has blends made and scored, writes the events, and answers from the ledger on a resume.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol

from evaluators.base import Direction, Score

Mixture = tuple[tuple[str, float], ...]
"""((ingredient, weight), ...): of an average, the weighted sum of the ingredients' deltas from the base."""

AVERAGE = '{"type":"average"}'
"""The method that a blend has by default, as canonical JSON."""


def method_text(method: Mapping[str, Any]) -> str:
    """A merge method as a blend holds it: canonical JSON, so that equal methods are equal texts."""
    return json.dumps(method, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Blend:
    """What a recipe asks to be made: ingredients with weights, and how they are merged. Equal blends are one blend.

    Attributes:
        mixture: ingredients and weights, in the order they are summed.
        method: the merge method (`pipelines.soups.config`), canonical JSON.
        scale: how far from the base: base + scale * (merged - base).
        seed: of methods that draw (dare, della).
        rank: an adapter is compacted to this rank at most.
        energy: an adapter is compacted to the rank that keeps this share of its squared norm.
    """

    mixture: Mixture
    method: str = AVERAGE
    scale: float = 1.0
    seed: int = 0
    rank: int | None = None
    energy: float | None = None

    @property
    def runs(self) -> tuple[str, ...]:
        """The ingredients."""
        return tuple(run for run, _ in self.mixture)

    @property
    def single(self) -> str | None:
        """The ingredient that the blend is itself; None where something is to be made."""
        plain = replace(self, rank=None, energy=None, seed=0, mixture=(), method=AVERAGE) == Blend(())
        if len(self.mixture) == 1 and self.mixture[0][1] == 1.0 and plain:
            return self.mixture[0][0]
        return None

    @property
    def averaged(self) -> bool:
        """Whether it is a plain weighted average."""
        return self.method == AVERAGE and self.scale == 1.0

    def record(self) -> dict[str, Any]:
        """As events hold it: `mixture`, and what differs from a plain average."""
        body: dict[str, Any] = {"mixture": [list(part) for part in self.mixture]}
        if self.method != AVERAGE:
            body["method"] = json.loads(self.method)
        plain = Blend(())
        for key in ("scale", "seed", "rank", "energy"):
            if getattr(self, key) != getattr(plain, key):
                body[key] = getattr(self, key)
        return body

    @classmethod
    def from_record(cls, body: Mapping[str, Any]) -> Blend:
        """The inverse of `record`; other keys of the body are passed over, and a body of older ledgers is an average."""
        mixture = tuple((str(run), float(weight)) for run, weight in body["mixture"])
        method = AVERAGE if body.get("method") is None else method_text(body["method"])
        rest = {key: body[key] for key in ("scale", "seed", "rank", "energy") if body.get(key) is not None}
        return cls(mixture, method, **rest)


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


@dataclass(frozen=True)
class SoupNote:
    """Something a recipe found that is no decision about an ingredient: a path's knots, learned weights.

    Attributes:
        what: `path`, `learned`, `search` or `toward_base`.
        body: JSON; numbers are finite.
    """

    what: str
    body: Mapping[str, Any]


Ahead = Mapping[Blend, Blend | None]
"""Blends, in order, and the one that each must beat."""
NOTHING: Ahead = MappingProxyType({})


class Bench(Protocol):
    """Who answers a recipe. Equal questions get equal answers, also after a kill."""

    def score(
        self,
        blend: Blend,
        ahead: Ahead = NOTHING,
        against: Blend | None = None,
        may_fail: bool = False,
    ) -> Score:
        """A blend's score on the rows that choose.

        Args:
            blend: what to make and score.
            ahead: what will be asked next if this one changes nothing, in that order, with what each of it must beat;
                it may be scored at the same time, and is not
                recorded before it is asked for.
            against: a blend scored before that this one must beat; a hopeless one may be stopped early.
            may_fail: a blend that can't be made gets NaN instead of ending the soup.
        """
        ...

    def problems(self, runs: Sequence[str]) -> Mapping[str, str]:
        """What is wrong with ingredients before anything is averaged: run -> reason; sound ones are not in it."""
        ...

    def learn(self, runs: Sequence[str], settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Weights trained on the rows that choose (`pipelines.soups.learned`)."""
        ...

    def contrast(self, parts: Sequence[tuple[float, Blend]]) -> tuple[float, float]:
        """(Σ factor · score, its standard error) over blends scored before, in the metric's unit.

        The error is paired on the rows that all of them were scored on; NaN where no rows are kept.
        """
        ...

    def tell(self, event: SoupEvent | SoupNote) -> None:
        """A decision, or what was found on the way."""
        ...


class Recipe(Protocol):
    """Decides a blend."""

    def mix(self, ingredients: Sequence[Ingredient], bench: Bench) -> Blend:
        """The blend to make."""
        ...


def uniform(runs: Sequence[str]) -> Mixture:
    """Equal weights that sum to one."""
    return tuple((run, 1.0 / len(runs)) for run in runs)


def sign(direction: Direction) -> float:
    """Times this, smaller is better."""
    return 1.0 if direction == "minimize" else -1.0


def worse(a: float, b: float, direction: Direction) -> bool:
    """Whether `a` is worse than `b`."""
    return sign(direction) * a > sign(direction) * b
