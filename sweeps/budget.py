"""How many trials a sweep asks for, and how a begun one is given more: `resume NAME --budget trials=40`.

A `budget_changed` event opens another round of the same sweep. The searcher goes on with what it was told, trials that a
closed rung or the end of the hours had stopped wait again, and soup and final step follow anew; what an earlier final step
found stays, told apart (`sweeps.state.Round`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeps.problems import show, unknown
from sweeps.spec import Budget, GridConfig, NoneConfig, RaceConfig, SweepSpec

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep
    from sweeps.state import SweepState

NONE = ("none", "null", "~", "")


class BudgetError(RuntimeError):
    """A budget that a sweep can't be given; the message says why, and nothing was written."""


def asked_for(spec: SweepSpec, size: int | None) -> int | None:
    """Trials that will be asked for at most; None when only the hours end the sweep.

    Args:
        spec: the sweep file.
        size: how many configurations the space has; None where one of its ranges is continuous.
    """
    trials = spec.budget.trials
    if size is None:
        return trials
    if trials is None and spec.budget.hours is None:
        return size
    if isinstance(spec.method, GridConfig) or size == 1:
        return size if trials is None else min(trials, size)
    return trials


def finalists(spec: SweepSpec, trials: int | None) -> int:
    """Trials that are sure to reach the total: `early_terminate.finalists`, by default `soup.top`, half of the trials at most.

    Args:
        spec: the sweep file.
        trials: that will be asked for, as `asked_for` has it.
    """
    rule = spec.early_terminate
    if isinstance(rule, NoneConfig):
        return trials or 1
    if rule.finalists is not None:
        return rule.finalists
    wanted = spec.soup.top if spec.soup is not None else 1
    if isinstance(rule, RaceConfig) and rule.most is not None:
        wanted = min(wanted, rule.most)
    return wanted if trials is None else max(1, min(wanted, trials // 2))


def read_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """What `--budget` says: `trials=40`, `hours=8`, `trials=40,hours=none`; later ones over earlier ones.

    Returns:
        Some of `trials` (int or None) and `hours` (float or None).

    Raises:
        BudgetError: for another key, or a value that is no number from 1 trial or above 0 hours.
    """
    found: dict[str, Any] = {}
    for part in [part for argument in arguments for part in argument.split(",")]:
        key, equals, text = (word.strip() for word in part.partition("="))
        if not equals:
            raise BudgetError(f"--budget takes trials=N or hours=H, but got {show(part)}")
        if key not in Budget.model_fields:
            raise BudgetError(f"--budget: {unknown(key, list(Budget.model_fields))}")
        found[key] = None if text.lower() in NONE else _number(key, text)
    return found


def _number(key: str, text: str) -> int | float:
    kind, wanted = (int, "a whole number from 1 up") if key == "trials" else (float, "a number above 0")
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise BudgetError(f"--budget: {key} must be {wanted}, but got {show(text)}")
    return value


@dataclass(frozen=True)
class _Limits:
    """What a budget amounts to: the part of the sweep's record that changes with it."""

    budget: Budget
    trials: int | None
    finalists: int

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "budget": self.budget.model_dump(mode="json"),
            "trials": self.trials,
            "finalists": self.finalists,
        }


def change(loaded: LoadedSweep, state: SweepState, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The body of the `budget_changed` event that gives a begun sweep another budget.

    Args:
        loaded: the sweep, with the budget it has.
        state: its ledger's fold.
        settings: as `read_settings` returns them.

    Returns:
        The body; None when an unfinished sweep has this budget already.

    Raises:
        BudgetError: when nothing could come of it: less than is used, no end, or nothing to add.
    """
    spec = loaded.spec
    budget = Budget.model_validate({**spec.budget.model_dump(), **settings})
    changed = spec.model_copy(update={"budget": budget})
    size = loaded.space.size
    trials = asked_for(changed, size)
    if trials is None and budget.hours is None:
        raise BudgetError("--budget: with neither trials nor hours this sweep would have no end; give one of them")
    used, spent = len(state.searched), state.seconds_used / 3600
    if trials is not None and trials < used:
        most = f" (there are only {size} configurations)" if budget.trials != trials else ""
        raise BudgetError(
            f"--budget: {used} trials have begun, so trials must be at least {used}, but got {trials}{most}"
        )
    if budget.hours is not None and budget.hours <= spent:
        raise BudgetError(
            f"--budget: {spent:.3g} h are used up, so hours must be more than that, but the budget would be "
            f"{budget.hours:g}; give hours=H, or hours=none"
        )
    if state.finished is not None:
        distinct = sum(trial.duplicate_of is None for trial in state.searched.values())
        if size is not None and distinct >= size and not _cut_short(state):
            raise BudgetError(f"--budget: all {size} configurations have been tried; there is nothing to add")
        if trials is not None and trials <= used and not _cut_short(state):
            raise BudgetError(
                f"--budget: {loaded.spec.name} is finished with {used} trials, so there is nothing to add; "
                f"give trials above {used}"
            )
    elif budget == spec.budget:
        return None
    now = _Limits(budget, trials, finalists(changed, trials))
    _refuse_few_finalists(changed, now)
    return {**now.record(), "before": _Limits(spec.budget, loaded.trials, loaded.finalists).record()}


def _cut_short(state: SweepState) -> bool:
    """Whether the end of the hours left runs behind that a longer budget lets go on."""
    return state.stop == "budget" and any(run.phase == "stopped" for run in state.runs.values())


def _refuse_few_finalists(spec: SweepSpec, now: _Limits) -> None:
    rule = spec.early_terminate
    if not isinstance(rule, NoneConfig) and rule.finalists and now.trials is not None and rule.finalists > now.trials:
        raise BudgetError(
            f"--budget: early_terminate.finalists is {rule.finalists}, so trials must be at least that many, "
            f"but got {now.trials}"
        )


def describe(body: Mapping[str, Any]) -> str:
    """`40 trials (24 before), 8 hours`, from a `budget_changed` body."""
    parts = []
    for key, before in body["before"]["budget"].items():
        value = body["budget"][key]
        if value is not None:
            parts.append(f"{value:g} {key}" + (f" ({before:g} before)" if before not in (None, value) else ""))
        elif before is not None:
            parts.append(f"no bound on {key} ({before:g} before)")
    return ", ".join(parts)


def with_budget(record: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's record (`LoadedSweep.record`) under the budget of a `budget_changed` event."""
    spec = {**record.get("spec", {}), "budget": body["budget"]}
    return {**record, "spec": spec, "trials": body["trials"], "finalists": body["finalists"]}
