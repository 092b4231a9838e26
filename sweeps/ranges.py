"""A range under `parameters`: `min`, `max`, `distribution`, `q`, checked and made into an interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sweeps.fields import Target
from sweeps.problems import show
from sweeps.space import Interval


class Range:
    """What is wrong with a range as written, and the interval it makes. Whole numbers follow from the key it stands for."""

    def __init__(self, raw: Mapping[str, Any], target: Target, name: str | None) -> None:
        self.low, self.high, self.q = raw.get("min"), raw.get("max"), raw.get("q")
        self.has_q = "q" in raw
        self.target, self.name = target, name
        ints = all(isinstance(end, int) for end in (self.low, self.high))
        self.integer = target.whole or name == "int_uniform" or (target.anything and name is None and ints)
        self.log = name in ("log_uniform_values", "q_log_uniform_values")

    def problems(self) -> Iterator[tuple[str, str]]:
        """(word at fault, message), the first one deciding."""
        for word, end in (("min", self.low), ("max", self.high)):
            if not _number(end):
                yield word, f"{show(end)} is not a number" if end is not None else "is missing; a range has min and max"
                return
        low, high = float(self.low or 0), float(self.high or 0)
        if not self.target.number:
            yield "min", "a range, where the key takes no number; write a list of values"
        elif self.name in ("categorical", "constant"):
            yield "distribution", f"{self.name} goes with {'values' if self.name == 'categorical' else 'value'}"
        elif low == high:
            yield "min", f"min and max are both {show(self.low)}; write {{value: {show(self.low)}}}"
        elif low > high:
            yield "min", f"min {show(self.low)} is above max {show(self.high)}; swap them"
        elif self.log and low <= 0:
            yield "min", f"min must be above 0 on a logarithmic scale, but got {show(self.low)}"
        elif self.integer and not (low.is_integer() and high.is_integer()):
            yield "min", f"the key takes whole numbers, but got {show(self.low)} to {show(self.high)}"
        elif abs(low) > 2**53 or abs(high) > 2**53:
            yield "min", "a range past 2^53; numbers there are not exact"
        else:
            yield from self._steps(low, high)

    def _steps(self, low: float, high: float) -> Iterator[tuple[str, str]]:
        stepped = self.name in ("q_uniform", "q_log_uniform_values")
        if stepped and not self.has_q:
            yield "distribution", f"{self.name} needs q, the step"
        elif self.has_q and not stepped and self.name is not None:
            other = {"uniform": "q_uniform", "log_uniform_values": "q_log_uniform_values"}.get(self.name, "q_uniform")
            yield "q", f"q is the step of {other}; write distribution: {other}, or delete q"
        elif self.has_q and (not _number(self.q) or float(self.q or 0) <= 0):
            yield "q", f"{show(self.q)} is no step; give a number above 0"
        elif self.has_q and float(self.q or 0) > high - low:
            yield "q", f"the step {show(self.q)} is wider than the range {show(self.low)} to {show(self.high)}"
        elif self.has_q and self.integer and not float(self.q or 0).is_integer():
            yield "q", f"the key takes whole numbers, but the step is {show(self.q)}"
        elif self.has_q and (high - low) / float(self.q or 1) > 1e9:
            yield "q", f"the step {show(self.q)} is too small for the range; leave it out"

    def interval(self) -> Interval:
        """The domain; only after `problems` found none."""
        step = float(self.q) if self.has_q and self.q is not None else None
        return Interval(float(self.low or 0), float(self.high or 0), self.log, step, self.integer)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
