"""The leaderboard: a pure reading of the folded ledger and its stored item scores.

Order
    By rung reached, then score; what could not be scored stands after what could, repeated configurations after both,
    failed trials last. A trial run with several seeds stands at the highest rung that all its living runs have
    reached, with the mean of their scores.

Ties
    Every trial at the first one's rung is compared with the first on their stored items there, paired and clustered
    (`evaluators.statistics.paired`), Holm over the trials compared; one that can't be told from it is marked. The first
    is first because it was chosen for its score, so that "better" here is a screening: the verdict on `test` is the proof.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, variance
from typing import Any, Protocol

import numpy as np

from evaluators.base import Direction, Score
from evaluators.statistics import holm, paired
from sweeps.board import ALPHA, Leaderboard, Measured, Row, to_csv, to_json, to_text
from sweeps.ledger import StoredItems, number
from sweeps.state import RunState, SoupState, SweepState, TrialState

__all__ = ["Leaderboard", "Measured", "Row", "combined", "leaderboard", "to_csv", "to_json", "to_text", "trial_items"]

PHASES = ("running", "interrupted", "waiting", "finished", "stopped", "failed")
"""A trial's state is the first of these that one of its runs is in; `failed` only when all are."""


class Plan(Protocol):
    """What a leaderboard needs of a loaded sweep (`sweeps.load.LoadedSweep`)."""

    @property
    def metric(self) -> str:
        """Full name of the metric."""
        ...

    @property
    def direction(self) -> Direction:
        """Which way is better."""
        ...

    def milestones_of(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Where a configuration's runs are compared; the last is its total."""
        ...


class ItemReader(Protocol):
    """What a leaderboard needs of the ledger."""

    def items(self, owner: str, resource: int, name: str, split: str) -> StoredItems | None:
        """The item scores behind a score, or None."""
        ...


def leaderboard(state: SweepState, items: ItemReader, plan: Plan, *, alpha: float = ALPHA) -> Leaderboard:
    """The leaderboard of a sweep, running or over.

    Args:
        state: the folded ledger.
        items: the ledger, for stored item scores.
        plan: metric, direction and milestones.
        alpha: level of the tie marks.
    """
    sign = 1.0 if plan.direction == "minimize" else -1.0
    runs: dict[str, list[RunState]] = {}
    for run in state.runs.values():
        runs.setdefault(run.trial, []).append(run)
    rows = {trial.id: _trial_row(trial, runs.get(trial.id, []), plan) for trial in state.trials.values()}
    left = {t.id: _rungs_left(rows[t.id], plan.milestones_of(t.config)) for t in state.trials.values()}
    for trial in state.trials.values():
        if trial.duplicate_of is not None:
            rows[trial.id] = _duplicate(rows[trial.id], rows.get(trial.duplicate_of))

    def place(row: Row) -> tuple[Any, ...]:
        last = {"duplicate": 1, "failed": 2}.get(row.state, 0)
        value = row.score.value
        unknown = math.isnan(value)
        return last, left[row.name], unknown, 0.0 if unknown else sign * value, state.trials[row.name].order

    ordered = [_with_test(row, state, plan) for row in sorted(rows.values(), key=place)]
    ranked = [row for row in ordered if row.state not in ("duplicate", "failed") and not math.isnan(row.score.value)]
    places = {row.name: i + 1 for i, row in enumerate(ranked)}
    ordered = [replace(row, rank=places.get(row.name)) for row in ordered]
    ordered = _mark_ties(ordered, items, plan, alpha)
    return Leaderboard(
        sweep=state.name,
        metric=plan.metric,
        direction=plan.direction,
        alpha=alpha,
        rows=(*ordered, *_other_rows(state, plan)),
        finals=tuple(state.finals),
        verdicts=_verdicts(state.verdicts),
        test_openings=state.test_openings,
        finished=state.finished is not None,
    )


def trial_items(row: Row, items: ItemReader, metric: str) -> StoredItems | None:
    """A trial's item scores where it stands, the mean over its seeds; None when they are missing or not the same items."""
    split, _, name = metric.partition("/")
    if row.rung is None or row.kind != "trial":
        return None
    return _mean_items([items.items(f"{row.name}/seed-{seed}", row.rung, name, split) for seed in row.seeds])


def combined(values: Sequence[Measured]) -> Measured:
    """The mean over seeds; se² = (mean error over items)² + (variance between seeds) / k.

    The seeds share their items, so that their errors over items do not average out: the mean of them bounds the error of
    the mean.
    """
    if len(values) == 1:
        return values[0]
    mean = fmean(v.value for v in values)
    between = variance([v.value for v in values]) if math.isfinite(mean) else math.nan
    se = math.sqrt(fmean(v.se for v in values) ** 2 + between / len(values))
    counts = [v.n for v in values if v.n is not None]
    return Measured(mean, se, min(counts, default=None), max(v.unscored for v in values))


def _trial_row(trial: TrialState, runs: Sequence[RunState], plan: Plan) -> Row:
    row = Row(None, "trial", trial.id, parameters=trial.suggestion.parameters, state="waiting")
    if not runs:
        return row
    living = [run for run in runs if run.phase != "failed"]
    standing = sorted(living or runs, key=lambda run: run.seed)
    phase = min((run.phase for run in standing), key=PHASES.index)
    row = replace(
        row,
        seeds=tuple(run.seed for run in standing),
        resource=sum(max(run.reports) for run in runs if run.reports) or None,
        seconds=sum(run.seconds for run in runs) if any(run.reports for run in runs) else math.nan,
        cost=_cost(runs),
        state=phase,
        reason=_reason(runs, standing),
        changes={key: value for run in runs for key, value in run.changes.items()},
    )
    reached = [m for m in plan.milestones_of(trial.config) if all(m in run.reports for run in standing)]
    if not reached:
        return row
    row = replace(row, rung=reached[-1], whole=reached[-1] == plan.milestones_of(trial.config)[-1])
    return replace(row, score=combined([_measured(run, reached[-1], plan.metric) for run in standing]))


def _reason(runs: Sequence[RunState], standing: Sequence[RunState]) -> str:
    said = list(dict.fromkeys(run.reason for run in standing if run.reason))
    lost = [run for run in runs if run not in standing]
    said += [f"seed {run.seed} failed: {run.reason}" for run in lost]
    return "; ".join(said)


def _cost(runs: Sequence[RunState]) -> dict[str, float]:
    total: dict[str, float] = {}
    for run in runs:
        newest: dict[str, float] = {}
        for resource in sorted(run.reports):
            newest.update(run.reports[resource].telemetry)
        for name, value in newest.items():
            short = name.removeprefix("cost/")
            if short != name and short != "seconds" and not short.endswith("_per_second"):
                total[short] = total.get(short, 0.0) + value
    return total


def _measured(run: RunState, resource: int, metric: str) -> Measured:
    report = run.reports[resource]
    score = report.scores.get(metric)
    if score is not None:
        return _of(score)
    return Measured(report.telemetry.get(metric, math.nan))


def _of(score: Score) -> Measured:
    return Measured(score.value, score.se, score.n, score.unscored)


def _mean_items(found: Sequence[StoredItems | None]) -> StoredItems | None:
    whole = [stored for stored in found if stored is not None]
    if not whole or len(whole) < len(found) or any(s.item_set != whole[0].item_set for s in whole[1:]):
        return None
    with np.errstate(invalid="ignore"):
        values = np.mean([stored.values.astype(np.float64) for stored in whole], axis=0)
    return StoredItems(whole[0].item_set, values.astype(np.float32))


def _rungs_left(row: Row, milestones: Sequence[int]) -> int:
    return sum(m > (row.rung or 0) for m in milestones)


def _duplicate(row: Row, first: Row | None) -> Row:
    said = f"same configuration as {first.name}" if first is not None else "same configuration as an earlier one"
    score, rung = (first.score, first.rung) if first is not None else (Measured(), None)
    return replace(row, state="duplicate", reason=said, score=score, rung=rung, seconds=0.0, resource=0)


def _mark_ties(rows: Sequence[Row], items: ItemReader, plan: Plan, alpha: float) -> list[Row]:
    first = next((row for row in rows if row.rank == 1), None)
    best = trial_items(first, items, plan.metric) if first is not None else None
    if first is None or best is None:
        return list(rows)
    compared, results = [], []
    for row in rows:
        if row.rank is None or row is first or row.whole != first.whole or (not row.whole and row.rung != first.rung):
            continue
        stored = trial_items(row, items, plan.metric)
        if stored is not None and stored.item_set == best.item_set:
            compared.append(row.name)
            results.append(paired(stored.values, best.values, best.item_set, alpha=alpha))
    adjusted = holm([result.p for result in results])
    marks = {
        name: (result.better(plan.direction, p) == "neither", p)
        for name, result, p in zip(compared, results, adjusted, strict=True)
        if not math.isnan(result.difference)
    }
    return [replace(row, tie=marks[row.name][0], p=marks[row.name][1]) if row.name in marks else row for row in rows]


def _with_test(row: Row, state: SweepState, plan: Plan) -> Row:
    roles = [c["role"] for c in state.candidates if str(c.get("run", "")).partition("/")[0] == row.name]
    return replace(row, test=_test(state, roles, plan))


def _test(state: SweepState, roles: Sequence[str], plan: Plan) -> Measured | None:
    """The metric on `test` of the candidates in these roles: the mean over test seeds."""
    key = f"test/{plan.metric.partition('/')[2]}"
    scores = [final["scores"][key] for final in state.finals if final["role"] in roles and key in final["scores"]]
    return combined([_of(score) for score in scores]) if scores else None


def _other_rows(state: SweepState, plan: Plan) -> list[Row]:
    rows = [_soup_row(soup, state, plan) for soup in state.soups.values()]
    for candidate in state.candidates:
        if candidate["role"] == "baseline":
            said = str(candidate.get("reason") or candidate.get("model") or "")
            rows.append(
                Row(None, "baseline", "baseline", state="baseline", reason=said, test=_test(state, ["baseline"], plan))
            )
    return rows


def _soup_row(soup: SoupState, state: SweepState, plan: Plan) -> Row:
    roles = [c["role"] for c in state.candidates if c.get("soup") == soup.id]
    done = soup.finished
    said = f"{soup.method} over {len(soup.ingredients)} runs"
    if done is not None:
        said = f"{soup.method}, {len(done.get('ingredients') or ())} of {len(soup.ingredients)} runs"
    return Row(
        None,
        "soup",
        soup.id,
        state="soup" if done is not None else "unfinished",
        reason=said,
        test=_test(state, roles, plan),
    )


def _verdicts(verdicts: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    raw = [math.nan if v.get("p") is None else float(v["p"]) for v in verdicts]
    return tuple({**v, "p_holm": number(p)} for v, p in zip(verdicts, holm(raw), strict=True))
