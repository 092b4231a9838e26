"""What `resume` gives a begun sweep in place of its own: another budget (`sweeps.budget`), another priority.

A priority says who gets the next free place of a cluster (`cluster.sharing`), and nothing about what is tried: no decision
depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sweeps import budget as budgets
from sweeps.events import Event

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep
    from sweeps.state import SweepState


def changes(
    loaded: LoadedSweep, state: SweepState, budget: Mapping[str, Any] | None, priority: int | None
) -> list[Event]:
    """The events that say what is changed; none for what the sweep has already, or is not given.

    Raises:
        BudgetError: when nothing could come of the budget.
    """
    found = []
    body = budgets.change(loaded, state, budget) if budget else None
    if body is not None:
        found.append(Event("budget_changed", body))
    before = loaded.spec.priority
    if priority not in (None, before):
        found.append(Event("priority_changed", {"priority": priority, "before": before}))
    return found


def describe(change: Event) -> str:
    """`the priority is now 5 (0 before)`."""
    if change.kind == "budget_changed":
        return f"the budget is now {budgets.describe(change.body)}"
    return f"the priority is now {describe_priority(**change.body)}"


def describe_priority(priority: int, before: int | None) -> str:
    """`5 (0 before)`; nothing is said of what was before where it was not changed."""
    return str(priority) if before is None else f"{priority} ({before} before)"


def with_priority(record: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's record (`LoadedSweep.record`) under the priority of a `priority_changed` event."""
    return {**record, "spec": {**record.get("spec", {}), "priority": body["priority"]}}
