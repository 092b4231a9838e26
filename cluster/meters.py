"""Numbers for a cluster's monitoring, through Ray's own: every node serves them at `/metrics` to Prometheus.

Ray puts `ray_` before a name, and `_total` after a counter's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Number:
    """One number as it is now.

    Attributes:
        name: letters, digits and `_`.
        value: it; of a counter the total so far.
        about: what it is, with its unit.
        tags: labels.
        counter: whether it only grows.
    """

    name: str
    value: float
    about: str
    tags: Mapping[str, str] = field(default_factory=dict)
    counter: bool = False


class Meters:
    """Hands numbers to Ray; only what has changed. Ray must be connected."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def show(self, numbers: Sequence[Number]) -> None:
        """Let the numbers be what is served from now on."""
        for number in numbers:
            key = (number.name, tuple(sorted(number.tags.items())))
            before = self._last.get(key)
            if before == number.value:
                continue
            self._last[key] = number.value
            meter = self._meter(number)
            if not number.counter:
                meter.set(number.value, tags=dict(number.tags))
            elif number.value > (before or 0.0):
                meter.inc(number.value - (before or 0.0), tags=dict(number.tags))

    def _meter(self, number: Number) -> Any:
        if number.name not in self._made:
            from ray.util.metrics import Counter, Gauge

            kind = Counter if number.counter else Gauge
            self._made[number.name] = kind(number.name, description=number.about, tag_keys=tuple(number.tags))
        return self._made[number.name]
