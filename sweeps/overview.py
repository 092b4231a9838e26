"""What the terminal's screen shows of a sweep, as plain numbers: made from the folded state, drawn by `sweeps.screen`."""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeps.news import Item, number
from sweeps.state import from_number
from sweeps.trial import finite

if TYPE_CHECKING:
    from evaluators.base import Score
    from sweeps.load import LoadedSweep
    from sweeps.state import RunState, SweepState

ROWS = 64
"""Rows made at most; a screen that shows more is taller than anyone's."""
BEST = 0.6
"""Share of the rows below the running ones that goes to the best runs, the rest to those that ended last."""
ALPHA = 0.05
"""Of the verdicts, after Holm."""
LOSS = "train/loss"
SPEEDS = {"tokens": "cost/tokens_per_second", "questions": "cost/questions_per_second"}
MEMORY = "cost/peak_memory_bytes"


@dataclass(frozen=True)
class Row:
    """A run.

    Attributes:
        name: of its trial, in full.
        short: `0003`, with the seed where there are several.
        phase: as `SweepState.phase_of` has it.
        group: 0 running, 1 among the best, 2 ended lately.
        best: whether it is the sweep's best.
        done: resource of its newest report, or that its running lease has come to.
        target: milestone that it goes for, or stands at.
        total: resource of a whole run.
        value, se: the metric in its newest report that has it, and its standard error; None where there is none.
        series: the metric by report; NaN where it was not scored.
        losses: `train/loss` by report.
        speed: tokens or questions a second of the newest report, else units of the resource a second.
        counted: what the speed counts: `tokens`, `questions`, or nothing for the resource.
        seconds: that it was at work.
        heard: when it last reported or gave a sign of life, or its lease began, seconds since the epoch.
        tries: failures that it went again after, or ended with.
        parameters: (last part of the path, value) of what was suggested.
        reason: why it ended.
    """

    name: str
    short: str
    phase: str
    group: int
    best: bool
    done: int
    target: int
    total: int
    value: float | None
    se: float | None
    series: tuple[float, ...]
    losses: tuple[float, ...]
    speed: float | None
    counted: str
    seconds: float
    heard: float
    tries: int
    parameters: tuple[tuple[str, str], ...]
    reason: str


@dataclass(frozen=True)
class Overview:
    """A sweep at one moment.

    Attributes:
        shot: `sweeps.progress.snapshot`.
        at: the moment that the snapshot was made, seconds since the epoch.
        direction: `minimize` or `maximize`.
        rows: what matters most first: the running runs, then the best ones and those that ended last in turn; at most
            `ROWS`.
        phases: how many runs are in each phase.
        parameters: of the best trial.
        memory: bytes that a run took at its peak, the largest seen; None where nobody measured.
        steps: lines about the soup and the final step, as (sign, text).
        news: what happened lately, oldest first.
        hint: what the footer says.
        local_gpus: whether trials use GPUs of this machine alone.
        gpus: how busy these are, in words; empty where unknown.
    """

    shot: Mapping[str, Any]
    at: float
    direction: str
    rows: tuple[Row, ...]
    phases: Mapping[str, int]
    parameters: tuple[tuple[str, str], ...]
    memory: float | None
    steps: tuple[tuple[str, str], ...]
    news: tuple[Item, ...]
    hint: str = ""
    local_gpus: bool = False
    gpus: str = ""


def overview(
    state: SweepState, loaded: LoadedSweep, shot: Mapping[str, Any], news: Sequence[Item], at: float, hint: str = ""
) -> Overview:
    """The state as the screen shows it.

    Args:
        state: the fold of the ledger.
        loaded: the sweep.
        shot: the state's snapshot.
        news: oldest first.
        at: seconds since the epoch.
        hint: for the footer.
    """
    best = shot["best"]
    best_run = None if best is None else f"{best['trial']}/seed-{best['seed']}"
    newest = [run.newest for run in state.runs.values() if run.newest is not None]
    peaks = [report.telemetry[MEMORY] for report in newest if finite(report.telemetry.get(MEMORY))]
    return Overview(
        shot=shot,
        at=at,
        direction=loaded.direction,
        rows=tuple(_row(run, group, state, loaded, run.id == best_run) for group, run in _chosen(state, loaded)),
        phases=Counter(state.phase_of(run) for run in state.runs.values()),
        parameters=() if best is None else _parameters(state, best["trial"]),
        memory=max(peaks, default=None),
        steps=tuple(_soup_steps(state) + _final_steps(state)),
        news=tuple(news),
        hint=hint,
        local_gpus=_local_gpus(state),
    )


def _local_gpus(state: SweepState) -> bool:
    driver = state.driver
    return bool(driver.get("gpus")) and driver.get("address") is None and driver.get("host") == socket.gethostname()


def _chosen(state: SweepState, loaded: LoadedSweep) -> list[tuple[int, RunState]]:
    """The runs that get a row, with their groups."""
    sign = 1.0 if loaded.direction == "minimize" else -1.0
    running, ranked, ended = [], [], []
    for run in state.runs.values():
        value = _standing_value(run, loaded)
        if run.phase == "running":
            running.append(run)
        elif value is not None and run.phase != "failed":
            ranked.append((-max(run.reports), sign * value, run.order, run.seed, run))
        else:
            ended.append(run)
    running.sort(key=lambda run: (run.order, run.seed))
    ranked.sort(key=lambda entry: entry[:4])
    first = ranked[: math.ceil(BEST * max(0, ROWS - len(running)))]
    later = [entry[-1] for entry in ranked[len(first) :]] + ended
    later.sort(key=lambda run: (-run.heard, -run.order))
    woven = _woven([(1, entry[-1]) for entry in first], [(2, run) for run in later])
    return [*((0, run) for run in running), *woven][:ROWS]


def _woven(best: Sequence[tuple[int, RunState]], later: Sequence[tuple[int, RunState]]) -> list[tuple[int, RunState]]:
    """Both in one order of which every beginning has about `BEST` of the best."""
    woven: list[tuple[int, RunState]] = []
    i = j = 0
    while i < len(best) or j < len(later):
        if j >= len(later) or (i < len(best) and i <= BEST * (i + j)):
            woven.append(best[i])
            i += 1
        else:
            woven.append(later[j])
            j += 1
    return woven


def _standing_value(run: RunState, loaded: LoadedSweep) -> float | None:
    for resource in sorted(run.reports, reverse=True):
        value = _metric(run, resource, loaded.metric)[0]
        if finite(value):
            return value
    return None


def _metric(run: RunState, resource: int, metric: str) -> tuple[float | None, float | None]:
    report = run.reports[resource]
    score: Score | None = report.scores.get(metric)
    if score is None:
        return report.telemetry.get(metric), None
    return score.value, (score.se if finite(score.se) else None)


def _row(run: RunState, group: int, state: SweepState, loaded: LoadedSweep, best: bool) -> Row:
    order = sorted(run.reports)
    found = [(value, se) for value, se in (_metric(run, r, loaded.metric) for r in order) if value is not None]
    value, se = next(((v, e) for v, e in reversed(found) if finite(v)), (None, None))
    losses = tuple(run.reports[r].telemetry[LOSS] for r in order if LOSS in run.reports[r].telemetry)
    several = len(loaded.spec.seeds.tune) > 1
    done = run.done
    speed, counted = _speed(run, done)
    return Row(
        name=run.trial,
        short=f"{number(run.trial)}.{run.seed}" if several else number(run.trial),
        phase=state.phase_of(run),
        group=group,
        best=best,
        done=done,
        target=max(done, run.target if run.phase in ("running", "interrupted") else done),
        total=loaded.milestones_of(state.trials[run.trial].config)[-1],
        value=value,
        se=se,
        series=tuple(v for v, _ in found),
        losses=losses,
        speed=speed,
        counted=counted,
        seconds=run.seconds,
        heard=max(run.heard, run.moved_at),
        tries=len(run.failures),
        parameters=_parameters(state, run.trial),
        reason=_reason(run),
    )


def _speed(run: RunState, done: int) -> tuple[float | None, str]:
    if run.newest is not None:
        for counted, name in SPEEDS.items():
            speed = run.newest.telemetry.get(name)
            if finite(speed):
                return speed, counted
    return (done / run.seconds if done and run.seconds > 0 else None), ""


def _reason(run: RunState) -> str:
    if run.phase == "failed" and run.failures:
        lines = run.failures[-1].message.strip().splitlines()
        return f"{run.failures[-1].kind}: {lines[0] if lines else 'no reason was given'}"
    return run.reason


def _parameters(state: SweepState, trial: str) -> tuple[tuple[str, str], ...]:
    suggested = state.trials[trial].suggestion.parameters
    return tuple((path.rpartition(".")[2], _short(value)) for path, value in suggested.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return str(value.get("type", "{...}"))
    return str(value)


def _soup_steps(state: SweepState) -> list[tuple[str, str]]:
    """The newest soup's decisions, where one is there."""
    if not state.soups:
        return []
    soup = list(state.soups.values())[-1]
    head = f"soup {soup.id}: {soup.method} {soup.over} by {soup.metric}"
    steps = [("=", f"{head}, {len(soup.scored)} mixtures scored")]
    for decision in soup.decisions:
        sign = "-" if decision["decision"] == "reject" else "+"
        score = from_number(decision.get("score"))
        told = "" if not finite(score) else f" {score:.4g}"
        steps.append((sign, f"{number(str(decision['run']))} {decision['decision']}{told}"))
    if soup.finished is not None:
        made = len(soup.finished["ingredients"])
        steps.append(
            ("=", f"made of {made}" if made else f"no soup: {soup.finished.get('reason') or 'none was better'}")
        )
    return steps


def _final_steps(state: SweepState) -> list[tuple[str, str]]:
    """Candidates of the final step with their scores on test, and the verdicts."""
    steps: list[tuple[str, str]] = []
    scored = {body["role"]: body["scores"] for body in state.finals}
    for candidate in state.candidates:
        role = str(candidate["role"])
        scores = scored.get(role)
        if scores is None:
            steps.append((".", f"final step: {role}, not scored yet"))
            continue
        told = ", ".join(f"{name} {with_error(score.value, score.se)}" for name, score in list(scores.items())[:2])
        steps.append(("+", f"final step: {role} {told}"))
    for verdict in state.verdicts:
        if verdict.get("difference") is not None:
            sides = f"{verdict['left']} - {verdict['right']} on {verdict['metric']}"
            steps.append(("=", f"{sides}: {from_number(verdict['difference']):+.3g}, {_outcome(verdict)}"))
    return steps


def _outcome(verdict: Mapping[str, Any]) -> str:
    p = from_number(verdict.get("p_holm"))
    if verdict["better"] == "neither" or p > ALPHA:
        return "no difference shown"
    return f"{verdict[verdict['better']]} is better"


def with_error(value: float, se: float | None) -> str:
    """`0.2301 ± 0.012`; without the error where none is known."""
    return f"{value:.4g} ± {se:.2g}" if se is not None and finite(se) else f"{value:.4g}"
