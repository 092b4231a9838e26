"""What each axis costs: joules (or other `cost/` telemetry) of whole runs, by the axis's values, judged before it is claimed.

Telemetry has no items, so runs are what is counted: a value with fewer than three runs claims nothing, and a difference is
called one only where Welch's test, Holm over the axis's pairs, is significant (`evaluators.groups`). Only runs that reached
their total take part, so that nobody is cheap for having been stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from evaluators.groups import LEAST, Between, Contrast, between
from sweeps.effects import MOST_VALUES
from sweeps.ledger import number
from sweeps.state import RunState, SweepState

JOULES = "cost/joules"
ESTIMATED = "cost/estimated_joules"


class Lengths(Protocol):
    """What is needed of a loaded sweep."""

    def milestones_of(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Where a configuration's runs are compared; the last is its total."""
        ...


@dataclass(frozen=True)
class CostAxis:
    """One axis's values compared.

    Attributes:
        path: the axis.
        metric: full name.
        found: the values' runs and their tests.
        estimated: whether some of the joules come from watts that the file states.
    """

    path: str
    metric: str
    found: Between
    estimated: bool = False

    def record(self) -> dict[str, Any]:
        """JSON-ready; unknown is null."""
        return {
            "path": self.path,
            "estimated": self.estimated,
            "groups": [_plain(group.__dict__) for group in self.found.groups],
            "pairs": [{**_plain(pair.__dict__), "lower": pair.lower} for pair in self.found.pairs],
            "anova": {"f": number(self.found.f), "p": number(self.found.p)},
            "runs_needed": LEAST,
        }

    def lines(self) -> list[str]:
        """For people: the means, then a line a pair."""
        lines = [f"{self.path}: {self._means()}"]
        lines += [f"  {_said(pair)}" for pair in self.found.pairs]
        if len(self.found.groups) - len(self.found.short) > 2:
            lines.append(f"  ANOVA over all of them: F {self.found.f:.3g}, p {self.found.p:.2g}")
        if self.found.short:
            lines.append(f"  {self._short()}")
        return lines

    def sentence(self) -> str:
        """For the report, in one."""
        judged = "; ".join(_said(pair) for pair in self.found.pairs)
        return f"{self._title()} by {self.path}: {self._means()}; {judged or self._short()}."

    def _means(self) -> str:
        said = []
        for group in self.found.groups:
            spread = "" if math.isnan(group.sd) else f" ± {group.sd:.2g}"
            said.append(f"{group.name} {group.mean:.4g}{spread} (n={group.n})")
        return ", ".join(said) + (", estimated from stated watts" if self.estimated else "")

    def _short(self) -> str:
        few = ", ".join(f"{group.name} has {group.n}" for group in self.found.short)
        return f"{few}: nothing is claimed of a value with fewer than {LEAST} runs"

    def _title(self) -> str:
        return "Energy in joules" if self.metric == JOULES else self.metric


def cost_axes(state: SweepState, plan: Lengths, metric: str = JOULES, *, alpha: float = 0.05) -> tuple[CostAxis, ...]:
    """Every axis with 2 to 8 values among the whole runs that tell the metric.

    Args:
        state: the folded ledger.
        plan: lengths of runs.
        metric: full name of telemetry.
        alpha: level of the claims.
    """
    runs = [run for run in state.runs.values() if math.isfinite(_told(run, state, plan, metric))]
    rows = [(state.trials[run.trial].suggestion.parameters, run) for run in runs]
    found = []
    for path in dict.fromkeys(path for parameters, _ in rows for path in parameters):
        groups: dict[str, list[float]] = {}
        estimated = False
        for parameters, run in rows:
            if path in parameters:
                groups.setdefault(_text(parameters[path]), []).append(_told(run, state, plan, metric))
                estimated |= metric == JOULES and _told(run, state, plan, ESTIMATED) > 0
        if 2 <= len(groups) <= MOST_VALUES:
            found.append(CostAxis(path, metric, between(groups, alpha=alpha), estimated))
    return tuple(found)


def energy_sentences(state: SweepState, plan: Lengths) -> list[str]:
    """What the report says of energy: of `precision` in any case, of other axes where they were judged."""
    axes = cost_axes(state, plan)
    return [axis.sentence() for axis in axes if axis.found.pairs or axis.path.rpartition(".")[2] == "precision"]


def _told(run: RunState, state: SweepState, plan: Lengths, metric: str) -> float:
    """A whole run's number at its end; NaN for others."""
    end = run.reports.get(plan.milestones_of(state.trials[run.trial].config)[-1])
    return math.nan if end is None else end.telemetry.get(metric, math.nan)


def _said(pair: Contrast) -> str:
    if math.isnan(pair.p):
        return f"{pair.left} and {pair.right}: {pair.difference:+.3g}, and no run differs from its like, so nothing is judged"
    numbers = f"{pair.difference:+.3g} (95 % from {pair.low:.3g} to {pair.high:.3g}), p {pair.p_holm:.2g}"
    if pair.lower is None:
        return f"{pair.left} minus {pair.right}: {numbers}, not significant"
    other = pair.right if pair.lower == pair.left else pair.left
    return f"{pair.lower} takes less than {other}: {pair.left} minus {pair.right} {numbers}"


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: number(value) if isinstance(value, float) else value for name, value in fields.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
