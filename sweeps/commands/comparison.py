"""Paired comparison of runs on their stored item scores: which are as good as the best one seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sweeps.commands.places import UsageError
from sweeps.paths import SweepPaths
from sweeps.trial import finite

if TYPE_CHECKING:
    from evaluators.base import Direction
    from sweeps.ledger import StoredItems


@dataclass(frozen=True)
class Entry:
    """A run at the highest milestone of its sweep, with its item scores."""

    sweep: str
    run: str
    resource: int
    value: float
    se: float
    n: int
    items: StoredItems


@dataclass(frozen=True)
class Compared:
    """A run against the best one.

    Attributes:
        sweep: whose run.
        run: `Run.id`.
        resource: where it was scored.
        value: its score.
        se: standard error of the score.
        n: items of the score.
        difference: run minus best, on the items that both scored; None for the best itself.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
        p: two-sided, by sign flips, Holm over all rows.
        tied: not distinguishable from the best at 5 %.
    """

    sweep: str
    run: str
    resource: int
    value: float
    se: float | None
    n: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    tied: bool = True

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """The rows, best first, and the metric they share."""

    metric: str
    direction: Direction
    rows: tuple[Compared, ...]


def compare_sweeps(sweeps: Sequence[SweepPaths], top: int) -> Comparison:
    """The best `top` runs of each sweep against the best of all.

    Raises:
        UsageError: when the sweeps have different metrics, nothing to compare, or were scored on different rows.
    """
    metrics: dict[tuple[str, Direction], list[str]] = {}
    entries: list[Entry] = []
    for paths in sweeps:
        metric, direction, found = _entries(paths)
        metrics.setdefault((metric, direction), []).append(paths.name)
        sign = _sign(direction)
        entries += sorted(found, key=lambda entry: sign * entry.value)[:top]
    if len(metrics) > 1:
        said = "; ".join(f"{metric} in {', '.join(names)}" for (metric, _), names in metrics.items())
        raise UsageError(f"sweeps with different metrics can't be compared: {said}")
    metric, direction = next(iter(metrics))
    if not entries:
        raise UsageError(f"nothing to compare yet: no run has item scores of {metric} at a milestone")
    sign = _sign(direction)
    entries.sort(key=lambda entry: sign * entry.value)
    return Comparison(metric, direction, _against_best(entries, direction))


def _sign(direction: Direction) -> float:
    return 1.0 if direction == "minimize" else -1.0


def _entries(paths: SweepPaths) -> tuple[str, Direction, list[Entry]]:
    from sweeps.ledger import Ledger
    from sweeps.load import load_resolved
    from sweeps.state import fold

    loaded = load_resolved(paths.resolved_spec)
    split, _, name = loaded.metric.partition("/")
    ledger = Ledger.read(paths.root)
    try:
        runs = fold(ledger.events()).runs.values()
        reached = [r for run in runs for r, report in run.reports.items() if loaded.metric in report.scores]
        rung = max((r for r in reached if r in loaded.milestones), default=0)
        found = []
        for run in runs:
            score = run.reports[rung].scores.get(loaded.metric) if rung in run.reports else None
            items = ledger.items(run.id, rung, name, split) if score is not None else None
            if score is not None and items is not None and finite(score.value):
                found.append(Entry(paths.name, run.id, rung, score.value, score.se, score.n, items))
        return loaded.metric, loaded.direction, found
    finally:
        ledger.close()


def _against_best(entries: Sequence[Entry], direction: Direction) -> tuple[Compared, ...]:
    from evaluators.statistics import holm, paired

    best = entries[0]
    pairs = []
    for entry in entries[1:]:
        if entry.items.item_set.ids != best.items.item_set.ids:
            raise UsageError(
                f"{entry.run} of {entry.sweep} and {best.run} of {best.sweep} were scored on different rows: "
                "give both sweeps the same data for this split"
            )
        pairs.append(paired(entry.items.values, best.items.values, best.items.item_set))
    adjusted = holm([pair.p for pair in pairs])
    rows = [Compared(best.sweep, best.run, best.resource, best.value, _or_none(best.se), best.n)]
    for entry, pair, p in zip(entries[1:], pairs, adjusted, strict=True):
        rows.append(
            Compared(
                entry.sweep,
                entry.run,
                entry.resource,
                entry.value,
                _or_none(entry.se),
                entry.n,
                _or_none(pair.difference),
                _or_none(pair.low),
                _or_none(pair.high),
                _or_none(p),
                pair.better(direction, p) == "neither",
            )
        )
    return tuple(rows)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def comparison_text(comparison: Comparison) -> str:
    """The rows as a table, with a last line that says how many tie."""
    several = len({row.sweep for row in comparison.rows}) > 1
    lines = [f"{comparison.metric} ({comparison.direction}), each run minus the best, paired on the same rows"]
    table = [("", "run", comparison.metric, "difference (95 %)", "p (Holm)")]
    for row in comparison.rows:
        name = f"{row.sweep}: {row.run}" if several else row.run
        score = f"{row.value:.4g}" + (f" ± {row.se:.2g}" if row.se is not None else "")
        apart, p = "best", ""
        if row is not comparison.rows[0]:
            apart = "?" if row.difference is None else f"{row.difference:+.3g}"
            if row.low is not None and row.high is not None:
                apart += f" ± {(row.high - row.low) / 2:.2g}"
            p = "" if row.p is None else f"{row.p:.3g}"
        table.append(("=" if row.tied else "", name, score, apart, p))
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
    tied = sum(row.tied for row in comparison.rows)
    if len(comparison.rows) > 1:
        told = "it is the best alone" if tied == 1 else f"{tied} runs can't be told from the best (marked =)"
        lines.append(f"{told}; n={comparison.rows[0].n}")
    return "\n".join(lines)
