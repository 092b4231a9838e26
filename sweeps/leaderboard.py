"""The leaderboard: a pure reading of the folded ledger and its stored item scores.

Order
    A baseline that is a trial stands where its score puts it, without a rank and a tie mark.

    By rung reached, then score (with several metrics: then front, then the primary metric; `sweeps.front`); what could not
    be scored stands after what could, repeated configurations after both, failed trials last. A trial run with several
    seeds has the mean of its scores at its rung, and one with fewer seeds there stands behind those with more
    (`sweeps.seeds`).

Ties
    Every trial at the first one's rung is compared with the first on their stored items there, paired and clustered
    (`evaluators.statistics.paired`), with the variance between the seeds where there are several (`sweeps.verdicts`), Holm
    over the trials compared; one that can't be told from it is marked. The first is first because it was chosen for its score, so that "better" here is a screening: the verdict on `test` is the proof.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from evaluators.statistics import holm
from sweeps.board import ALPHA, Leaderboard, Measured, Row
from sweeps.candidates import same_models, test_finals
from sweeps.events import StoredItems
from sweeps.front import Front, find_front, numbered
from sweeps.gap import gaps
from sweeps.metrics import Metric
from sweeps.seeds import CAUGHT_UP, by_trial, combined, measured, standing
from sweeps.state import RunState, SoupState, SweepState, TrialState
from sweeps.verdicts import Side, compare, family, with_holm

TRAINABLE = "train/trainable_parameters"
"""Telemetry of fine-tunes."""

PHASES = ("running", "interrupted", "waiting", "finished", "stopped", "failed")
"""A trial's state is the first of these that one of its runs is in; `failed` only when all are."""

Level = tuple[int, int]
"""Trials are ranked among those with as many rungs left (the first) and as many seeds there (minus the second)."""


class Plan(Protocol):
    """What a leaderboard needs of a loaded sweep (`sweeps.load.LoadedSweep`)."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is optimised, the primary metric first."""
        ...

    def milestones_of(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Where a configuration's runs are compared; the last is its total."""
        ...


class ItemReader(Protocol):
    """What a leaderboard needs of the ledger."""

    def items(self, owner: str, resource: int, name: str, split: str) -> StoredItems | None:
        """The item scores behind a score, or None."""
        ...


def leaderboard(
    state: SweepState, items: ItemReader, plan: Plan, *, alpha: float = ALPHA, also: Sequence[str] = ()
) -> Leaderboard:
    """The leaderboard of a sweep, running or over.

    Args:
        state: the folded ledger.
        items: the ledger, for stored item scores.
        plan: metrics and milestones.
        alpha: level of the tie marks.
        also: scores to show beside the metrics, by full name, of the trials that have them.
    """
    primary, several = plan.metrics[0], len(plan.metrics) > 1
    rows = _trial_rows(state, plan, also)
    left = {t.id: _level(rows[t.id], plan.milestones_of(t.config)) for t in state.trials.values()}
    if several:
        _number_fronts(rows, left, state, plan)
    for trial in state.trials.values():
        if trial.duplicate_of is not None:
            rows[trial.id] = _duplicate(rows[trial.id], rows.get(trial.duplicate_of))

    ordered, ranked = _in_order(rows, left, state, plan)
    ordered = _mark_ties(ordered, items, plan, alpha)
    front = _front(ranked, left, items, plan, alpha) if several else None
    if front is not None:
        said = dict.fromkeys(front.possible, True) | dict.fromkeys(front.dominated, False)
        ordered = [replace(row, possible=said.get(row.name)) for row in ordered]
    counted = family([verdict for done in state.earlier for verdict in done.verdicts], state.verdicts)
    before = counted[: len(counted) - len(state.verdicts)]
    return Leaderboard(
        sweep=state.name,
        metric=primary.name,
        direction=primary.direction,
        metrics=plan.metrics,
        front=front,
        compared=sum(row.tie is not None for row in ordered),
        tied=sum(row.tie is True for row in ordered),
        alpha=alpha,
        rows=(*ordered, *_other_rows(state, plan)),
        finals=_valued_first(state.finals),
        verdicts=tuple(with_holm(before, state.verdicts)),
        tests=len(counted),
        same=same_models(state),
        earlier=tuple(state.earlier),
        test_openings=state.test_openings,
        tuned_after=state.tuned_after_test,
        gaps=tuple(gaps(state, ordered, plan.metrics, items, alpha)),
        finished=state.finished is not None,
    )


def _in_order(
    rows: Mapping[str, Row], left: Mapping[str, Level], state: SweepState, plan: Plan
) -> tuple[list[Row], list[Row]]:
    """All rows, best first and with their ranks; and those that have one, in the same order."""

    def place(row: Row) -> tuple[Any, ...]:
        last = {"duplicate": 1, "failed": 2}.get(row.state, 0)
        value = row.score.value
        unknown = math.isnan(value) or (len(plan.metrics) > 1 and row.front is None)
        front = 0 if unknown else row.front or 0
        score = 0.0 if unknown else plan.metrics[0].sign * value
        return last, *left[row.name], unknown, front, score, state.trials[row.name].order

    ordered = [_with_test(row, state, plan) for row in sorted(rows.values(), key=place)]
    ranked = [
        row for row in ordered if row.state not in ("duplicate", "failed") and not (row.baseline or place(row)[3])
    ]
    places = {row.name: i + 1 for i, row in enumerate(ranked)}
    return [replace(row, rank=places.get(row.name)) for row in ordered], ranked


def _trial_rows(state: SweepState, plan: Plan, also: Sequence[str]) -> dict[str, Row]:
    """Each trial's row, by its id, with what its probe measured."""
    runs = by_trial(state.runs)
    rows = {trial.id: _trial_row(trial, runs.get(trial.id, []), plan, also) for trial in state.trials.values()}
    if state.baseline is not None:
        rows[state.baseline.id] = _as_baseline(rows[state.baseline.id], state.baseline, state)
    for name, found in runs.items():
        probed = next((state.probes[run.id] for run in found if run.id in state.probes), None)
        if probed is not None:
            rows[name] = replace(rows[name], latency=probed)
    return rows


def _as_baseline(row: Row, trial: TrialState, state: SweepState) -> Row:
    """The row of a baseline that is a trial, with its values of what the others differ in."""
    name = str(trial.baseline)
    axes = dict.fromkeys(path for other in state.searched.values() for path in other.suggestion.parameters)
    values = {path: value for path in axes if (value := _at(trial.config, path)) is not None}
    reason = "; ".join(part for part in (f"the baseline {name}", row.reason) if part)
    return replace(row, baseline=name, parameters=values, reason=reason)


def _at(config: Mapping[str, Any], path: str) -> Any:
    """A value by its dotted path; None where there is none."""
    found: Any = config
    for word in path.split("."):
        found = found.get(word) if isinstance(found, Mapping) else None
    return found


def _number_fronts(rows: dict[str, Row], left: Mapping[str, Level], state: SweepState, plan: Plan) -> None:
    """Give each trial the front that it stands on among those that have got as far, in place."""
    levels: dict[Level, list[str]] = {}
    for name, row in rows.items():
        if row.baseline:
            continue
        if row.rung is not None and row.state != "failed" and state.trials[name].duplicate_of is None:
            levels.setdefault(left[name], []).append(name)
    for names in levels.values():
        for name, front in zip(names, numbered([rows[name] for name in names], plan.metrics), strict=True):
            rows[name] = replace(rows[name], front=front)


def _front(
    ranked: Sequence[Row], left: Mapping[str, Level], items: ItemReader, plan: Plan, alpha: float
) -> Front | None:
    """Of the trials that have got as far as the first."""
    furthest = [row for row in ranked if left[row.name] == left[ranked[0].name]]
    known: dict[tuple[str, str], StoredItems | None] = {}

    def read(row: Row, metric: str) -> StoredItems | None:
        if (row.name, metric) not in known:
            known[row.name, metric] = trial_items(row, items, metric)
        return known[row.name, metric]

    return find_front(furthest, plan.metrics, read, alpha)


def trial_items(row: Row, items: ItemReader, metric: str) -> StoredItems | None:
    """A trial's item scores where it stands, the mean over its seeds; None when they are missing or not the same items."""
    split, _, name = metric.partition("/")
    if row.rung is None or row.kind != "trial":
        return None
    return _mean_items([items.items(f"{row.name}/seed-{seed}", row.rung, name, split) for seed in row.seeds])


def trial_side(row: Row, items: ItemReader, metric: str) -> Side | None:
    """The same seed by seed, to be compared with what training adds; None as `trial_items`."""
    split, _, name = metric.partition("/")
    if row.rung is None or row.kind != "trial":
        return None
    found = [items.items(f"{row.name}/seed-{seed}", row.rung, name, split) for seed in row.seeds]
    return None if _mean_items(found) is None else Side(row.name, (), tuple(found), row.seeds)


SIGNS = ("samples", "grad_norm", "loss")
"""Telemetry (`train/...`) that tells early how a fine-tune will end (Pareja et al. 2025, arXiv 2412.13337): rows seen, the
gradient's norm before clipping, the training loss."""


def _signs(run: RunState) -> tuple[Mapping[str, float], ...]:
    found = []
    for resource, report in sorted(run.reports.items()):
        told = {name: report.telemetry[f"train/{name}"] for name in SIGNS if f"train/{name}" in report.telemetry}
        if "samples" in told:
            found.append({"resource": resource, **told})
    return tuple(found)


def _trial_row(trial: TrialState, runs: Sequence[RunState], plan: Plan, also: Sequence[str]) -> Row:
    row = Row(None, "trial", trial.id, parameters=trial.suggestion.parameters, state="waiting")
    if not runs:
        return row
    living = [run for run in runs if run.phase != "failed"]
    asked = sorted(living or runs, key=lambda run: run.seed)
    milestones = plan.milestones_of(trial.config)
    place = standing(asked, milestones)
    row = replace(
        row,
        seeds=tuple(run.seed for run in (asked if place is None else place.runs)),
        resource=sum(max(run.reports) for run in runs if run.reports) or None,
        signs=_signs(min(asked, key=lambda run: run.seed)),
        seconds=sum(run.seconds for run in runs) if any(run.reports for run in runs) else math.nan,
        cost=_cost(runs),
        trainable=_trainable(runs),
        state=min((run.phase for run in asked), key=PHASES.index),
        reason=_reason(runs, asked),
        changes={key: value for run in runs for key, value in run.changes.items()},
    )
    if place is None:
        return row
    there = [name for name in also if all(name in run.reports[place.resource].scores for run in place.runs)]

    def mean(name: str) -> Measured:
        return combined([measured(run, place.resource, name) for run in place.runs])

    scores = {metric.name: mean(metric.name) for metric in plan.metrics}
    return replace(
        row,
        rung=place.resource,
        whole=place.left == 0,
        score=scores[plan.metrics[0].name],
        scores=scores,
        also={name: mean(name) for name in there},
    )


def _reason(runs: Sequence[RunState], standing: Sequence[RunState]) -> str:
    said = list(
        dict.fromkeys(told for run in standing for told in (run.adjusted, run.reason) if told not in ("", CAUGHT_UP))
    )
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


def _trainable(runs: Sequence[RunState]) -> int | None:
    """What the newest report that says it says of the run's trained parameters."""
    told = [report.telemetry.get(TRAINABLE, math.nan) for run in runs for report in run.reports.values()]
    known = [value for value in told if math.isfinite(value)]
    return int(known[-1]) if known else None


def _mean_items(found: Sequence[StoredItems | None]) -> StoredItems | None:
    whole = [stored for stored in found if stored is not None]
    if not whole or len(whole) < len(found) or any(s.item_set != whole[0].item_set for s in whole[1:]):
        return None
    with np.errstate(invalid="ignore"):
        values = np.mean([stored.values.astype(np.float64) for stored in whole], axis=0)
    return StoredItems(whole[0].item_set, values.astype(np.float32))


def _level(row: Row, milestones: Sequence[int]) -> Level:
    return sum(m > (row.rung or 0) for m in milestones), 0 if row.rung is None else -len(row.seeds)


def _duplicate(row: Row, first: Row | None) -> Row:
    said = f"same configuration as {first.name}" if first is not None else "same configuration as an earlier one"
    row = replace(row, state="duplicate", reason=said, score=Measured(), scores={}, rung=None, seconds=0.0, resource=0)
    return row if first is None else replace(row, score=first.score, scores=first.scores, rung=first.rung)


def _valued_first(finals: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The final step's records, with the metrics that nobody has a value of behind the others: they would hide these."""
    valued = {key for final in finals for key, score in final["scores"].items() if score.n}
    return tuple(
        {**final, "scores": dict(sorted(final["scores"].items(), key=lambda pair: pair[0] not in valued))}
        for final in finals
    )


def _mark_ties(rows: Sequence[Row], items: ItemReader, plan: Plan, alpha: float) -> list[Row]:
    primary = plan.metrics[0]
    first = next((row for row in rows if row.rank == 1), None)
    best = trial_side(first, items, primary.name) if first is not None else None
    if first is None or best is None:
        return list(rows)
    compared, results = [], []
    for row in rows:
        if row.rank is None or row is first or row.whole != first.whole or (not row.whole and row.rung != first.rung):
            continue
        side = trial_side(row, items, primary.name)
        if side is not None and side.item_set == best.item_set:
            compared.append(row.name)
            results.append(compare(side, best, alpha).result)
    adjusted = holm([result.p for result in results])
    marks = {
        name: (result.better(primary.direction, p) == "neither", p)
        for name, result, p in zip(compared, results, adjusted, strict=True)
        if not math.isnan(result.difference)
    }
    return [replace(row, tie=marks[row.name][0], p=marks[row.name][1]) if row.name in marks else row for row in rows]


def _with_test(row: Row, state: SweepState, plan: Plan) -> Row:
    roles = [
        c["role"] for c in state.candidates if row.name in (str(c.get("run", "")).partition("/")[0], c.get("trial"))
    ]
    return _tested(row, state, roles, plan)


def _tested(row: Row, state: SweepState, roles: Sequence[str], plan: Plan) -> Row:
    """With the metrics on `test` of the candidates in these roles: means over the test seeds, where these were trained."""
    tests: dict[str, Measured] = {}
    for metric in plan.metrics:
        key = f"test/{metric.bare}"
        scores = [final["scores"][key] for role in roles for final in test_finals(state.finals, role, key)]
        if metric.scored and scores:
            tests[key] = combined([Measured(one.value, one.se, one.n, one.unscored) for one in scores])
    return replace(row, test=tests.get(f"test/{plan.metrics[0].bare}"), tests=tests)


def _other_rows(state: SweepState, plan: Plan) -> list[Row]:
    rows = [_soup_row(soup, state, plan) for soup in state.soups.values()]
    for candidate in state.candidates:
        if candidate["role"] == "baseline" and "trial" not in candidate:
            said = str(candidate.get("reason") or candidate.get("model") or "")
            row = Row(None, "baseline", "baseline", state="baseline", reason=said, latency=state.probes.get("baseline"))
            rows.append(_tested(row, state, ["baseline"], plan))
    return rows


def _soup_row(soup: SoupState, state: SweepState, plan: Plan) -> Row:
    roles = [c["role"] for c in state.candidates if c.get("soup") == soup.id]
    done = soup.finished
    said = f"{soup.method} {soup.over}"
    if done is not None and soup.method != "sparse":
        said = f"{soup.method}, {len(done.get('ingredients') or ())} of {len(soup.ingredients)} runs"
    row = Row(None, "soup", soup.id, state="soup" if done is not None else "unfinished", reason=said)
    return _tested(row, state, roles, plan)
