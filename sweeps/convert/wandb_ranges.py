"""W&B's domains in our words (https://docs.wandb.ai/models/sweeps/sweep-config-keys#distribution-options-for-random-and-bayesian-search)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ranged:
    """A domain.

    Attributes:
        domain: in our words; None when there is none.
        why: a note, or why there is none.
        changed: what is not quite the same; may be empty.
        values: the single values, where it is a choice or a constant.
        dropped: words of the domain that are left out, and why.
    """

    domain: dict[str, Any] | None
    why: str = ""
    changed: str = ""
    values: list[Any] | None = None
    dropped: Mapping[str, str] = field(default_factory=dict)


_NORMAL = "normal distributions are not supported; give min and max"
_EXPONENTS = "min and max are exponents of e there"


def ranged(domain: Mapping[str, Any]) -> Ranged:
    """A parameter's domain."""
    kind = domain.get("distribution")
    if "value" in domain:
        return Ranged({"value": domain["value"]}, values=[domain["value"]])
    if isinstance(domain.get("values"), list) and domain["values"]:
        dropped = {"probabilities": "values are drawn evenly; repeat one to draw it more often"}
        return Ranged({"values": domain["values"]}, values=list(domain["values"]), dropped=dropped)
    if kind is not None and ("normal" in str(kind) or kind == "beta" or kind == "q_beta"):
        return Ranged(None, _NORMAL if "normal" in str(kind) else "it is not supported; use uniform")
    low, high = domain.get("min"), domain.get("max")
    if not _is_number(low) or not _is_number(high):
        return Ranged(None, "has neither values nor min and max")
    if kind is None:
        kind = "int_uniform" if isinstance(low, int) and isinstance(high, int) else "uniform"
    return _range(str(kind), low, high, domain.get("q", 1))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(kind: str, low: Any, high: Any, q: Any) -> Ranged:
    plain = {"min": low, "max": high}
    if kind in ("uniform", "int_uniform", "log_uniform_values"):
        return Ranged({"distribution": kind, **plain})
    if kind in ("q_uniform", "q_log_uniform_values"):
        changed = "" if _is_number(q) and low % q == 0 else "steps are counted from min, W&B's are multiples of q"
        return Ranged({"distribution": kind, **plain, "q": q}, changed=changed)
    if kind == "inv_log_uniform_values":
        return Ranged(
            {"distribution": "log_uniform_values", **plain}, "the same: the log of 1/x is even where the log of x is"
        )
    if kind in ("log_uniform", "inv_log_uniform", "q_log_uniform"):
        ends = (-high, -low) if kind.startswith("inv") else (low, high)
        try:
            lowest, highest = (float(f"{math.exp(end):.6g}") for end in ends)
        except OverflowError:
            return Ranged(None, f"{_EXPONENTS}, and e to the power of {max(ends)} is no number")
        if kind == "q_log_uniform":
            changed = "steps are counted from min, W&B's are multiples of q"
            return Ranged(
                {"distribution": "q_log_uniform_values", "min": lowest, "max": highest, "q": q}, changed=changed
            )
        return Ranged({"distribution": "log_uniform_values", "min": lowest, "max": highest}, _EXPONENTS)
    return Ranged(None, f"{kind} is not supported")
