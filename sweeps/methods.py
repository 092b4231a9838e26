"""How robust each method is: the scores of all its configurations, not only the best one's.

A method is a value of one key of the configuration (`loss.type`, `optimizer`, `retrieve.type`). What it is worth to somebody
who can't search is a configuration drawn at random from its grid, so each method is shown by quantiles over its
configurations and by the share of them that beat the baseline (Ahrabian et al. 2024, arXiv 2407.15229), with the further
metrics of the sweep (KL, length) beside them.

A configuration counts where it stands on the leaderboard (its last rung, the mean over its seeds). One that diverged has no
score, but it was tried and did not beat anything: it is among the n of the shares. One that failed for another reason (memory,
a lost machine) says nothing of the method and is only counted.

Left out: the paper's win rates against the chosen answers; a judge's win rate is a metric like any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluators.base import Direction
from evaluators.statistics import holm
from sweeps.board import ALPHA, Measured, Row
from sweeps.compare import CompareError, Source, with_metrics
from sweeps.events import StoredItems
from sweeps.leaderboard import leaderboard, trial_side
from sweeps.ledger import number
from sweeps.metrics import Metric
from sweeps.problems import close
from sweeps.seeds import combined
from sweeps.state import SweepState
from sweeps.verdicts import Side, compare

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
"""Of the scores, linear between neighbours (numpy's default)."""
ABSENT = "(not there)"
"""The value of a key that a configuration does not have: another arm's."""
BASELINE = "baseline"


@dataclass(frozen=True)
class Method:
    """One value of the key.

    Attributes:
        value: in words.
        configurations: tried in all; each once, however often it was suggested.
        scored: those with a score.
        whole: those of them that reached their total.
        diverged: those that ended with a NaN.
        failed: those that ended without a score for another reason.
        quantiles: of the scores, by `QUANTILES`; NaN where there are none.
        compared: configurations in the shares: compared with the baseline, or diverged.
        beats: those of them that are better than the baseline at all.
        shown: those that are better by a paired test, Holm over all configurations of all methods.
        means: further metric -> its mean over the configurations that have it; n counts these.
    """

    value: str
    configurations: int
    scored: int
    whole: int
    diverged: int
    failed: int
    quantiles: Mapping[str, float]
    compared: int
    beats: int
    shown: int
    means: Mapping[str, Measured]

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **self.__dict__,
            "quantiles": {name: number(value) for name, value in self.quantiles.items()},
            "share_beats": number(self.beats / self.compared) if self.compared else None,
            "share_shown": number(self.shown / self.compared) if self.compared else None,
            "means": {name: mean.record() for name, mean in self.means.items()},
        }


@dataclass(frozen=True)
class Methods:
    """The methods, the one with the best median first.

    Attributes:
        by: the key, without `pipeline.`.
        metric: full name of what is scored.
        direction: which way is better.
        alpha: level of `shown`.
        methods: one a value.
        baselines: sweep -> what it is compared with, and its score on the same rows.
        notes: what a reader must know besides.
    """

    by: str
    metric: str
    direction: Direction
    alpha: float
    methods: tuple[Method, ...]
    baselines: Mapping[str, Measured]
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "by": self.by,
            "metric": self.metric,
            "direction": self.direction,
            "alpha": self.alpha,
            "methods": [method.record() for method in self.methods],
            "baselines": {sweep: score.record() for sweep, score in self.baselines.items()},
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _Tried:
    """A configuration: its sweep, its row, its method, how it ended, and how it stands to the baseline (None: unknown)."""

    source: Source
    row: Row
    value: str
    diverged: bool
    better: bool | None = None
    shown: bool = False

    @property
    def scored(self) -> bool:
        return self.row.rung is not None and math.isfinite(self.row.score.value)


def robustness(sources: Sequence[Source], by: str, *, metrics: Sequence[Metric] = (), alpha: float = ALPHA) -> Methods:
    """Every method's configurations in figures.

    Args:
        sources: the sweeps; their configurations are taken together.
        by: the key, a dotted path with or without `pipeline.`.
        metrics: the first is scored, the means of the others stand beside it; default: the sweeps' own, and whatever else
            was scored on the same split.
        alpha: level of the tests.

    Raises:
        CompareError: for a key that no configuration has, sweeps with different metrics, or no configuration at all.
    """
    key = by.removeprefix("pipeline.")
    also = [] if metrics else _further(sources)
    sources, wanted = with_metrics(sources, metrics)
    metric = wanted[0]
    tried = [
        _Tried(source, row, value_at(source.state.trials[row.name].config, key), _diverged(source.state, row.name))
        for source in sources
        for row in leaderboard(source.state, source.items, source.plan, also=also).trials
        if row.state != "duplicate" and not (row.rung is None and row.state != "failed")
    ]
    if not tried:
        raise CompareError("nothing to compare: no configuration has a result yet")
    _refuse_unknown(tried, key)
    baselines = {source.name: side for source in sources if (side := baseline_side(source, metric)) is not None}
    judged = _judged(tried, baselines, metric, alpha)
    names = [one.name for one in wanted[1:]] + also
    values = dict.fromkeys(one.value for one in judged)
    methods = [_method(value, [one for one in judged if one.value == value], names) for value in values]
    methods.sort(key=lambda one: metric.sign * one.quantiles["median"] if one.scored else math.inf)
    return Methods(
        key,
        metric.name,
        metric.direction,
        alpha,
        tuple(methods),
        {sweep: _mean(side, metric) for sweep, side in baselines.items()},
        tuple(_notes(sources, judged, baselines, metric)),
    )


def value_at(config: Mapping[str, Any], key: str) -> str:
    """A configuration's value of a dotted key in words; of a choice told apart by `type`, its type."""
    found: Any = config
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return ABSENT
        found = found[part]
    if isinstance(found, Mapping) and "type" in found:
        found = found["type"]
    if found is None:
        return "none"
    if isinstance(found, float):
        return f"{found:g}"
    return found if isinstance(found, str) else json.dumps(found, sort_keys=True, ensure_ascii=False)


def baseline_side(source: Source, metric: Metric) -> Side | None:
    """The baseline's scores on the split that decides, item by item, as the final step measured them; None without."""
    current = next((one for one in source.state.candidates if one["role"] == BASELINE), None)
    found = [body for body in source.state.baselines if body["candidate"] == current and metric.name in body["scores"]]
    if not metric.scored or not found:
        return None
    split, _, name = metric.name.partition("/")
    stored = tuple(source.items.items(body["owner"], 0, name, split) for body in found)
    seeds = tuple(body["seed"] for body in found if body["seed"] is not None)
    return Side(BASELINE, tuple(body["scores"][metric.name] for body in found), stored, seeds)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Of finite values, by `QUANTILES`; NaN where there are none."""
    if not values:
        return dict.fromkeys(QUANTILES, math.nan)
    found = np.quantile(np.asarray(values, dtype=np.float64), list(QUANTILES.values()))
    return dict(zip(QUANTILES, map(float, found), strict=True))


def _further(sources: Sequence[Source]) -> list[str]:
    """Scores besides the metrics that trials report on the metric's split, in all sweeps."""
    names: dict[str, None] = {}
    for source in sources:
        own = {metric.name for metric in source.plan.metrics}
        split = source.plan.metrics[0].name.partition("/")[0]
        for run in source.state.runs.values():
            for report in run.reports.values():
                names |= dict.fromkeys(n for n, s in report.scores.items() if s.split == split and n not in own)
    return list(names)


def _diverged(state: SweepState, trial: str) -> bool:
    ends = [run.failures[-1].kind for run in state.runs.values() if run.trial == trial and run.failures]
    return "nan" in ends


def _refuse_unknown(tried: Sequence[_Tried], key: str) -> None:
    if any(one.value != ABSENT for one in tried):
        return
    known: dict[str, None] = {}
    for one in tried:
        known |= dict.fromkeys(_paths(one.source.state.trials[one.row.name].config))
    guess = close(key, known)
    mend = (
        f"did you mean '{guess}'?"
        if guess
        else "it is a dotted path below pipeline, such as " + ", ".join(list(known)[:5])
    )
    raise CompareError(f"--by {key}: no configuration has this key; {mend}")


def _paths(config: Mapping[str, Any], before: str = "") -> list[str]:
    found: list[str] = []
    for key, value in config.items():
        found.append(before + key)
        if isinstance(value, Mapping):
            found += _paths(value, f"{before}{key}.")
    return found


def _judged(tried: Sequence[_Tried], baselines: Mapping[str, Side], metric: Metric, alpha: float) -> list[_Tried]:
    """With how each stands to its sweep's baseline: paired, Holm over all that were compared."""
    results = {}
    for place, one in enumerate(tried):
        base = baselines.get(one.source.name)
        side = trial_side(one.row, one.source.items, metric.name) if one.scored and not one.diverged else None
        if base is not None and side is not None:
            result = compare(side, _on(base, side), alpha).result
            if math.isfinite(result.difference):
                results[place] = result
    adjusted = dict(zip(results, holm([result.p for result in results.values()]), strict=True))
    judged = []
    for place, one in enumerate(tried):
        if place in results:
            shown = results[place].better(metric.direction, adjusted[place]) == "left"
            judged.append(replace(one, better=metric.sign * results[place].difference < 0, shown=shown))
        else:
            judged.append(replace(one, better=False if one.diverged and one.source.name in baselines else None))
    return judged


def _on(base: Side, side: Side) -> Side:
    """The baseline on the rows of a configuration that has seen only some of them (an earlier rung of a RAG sweep)."""
    rows = side.item_set
    if rows is None or base.item_set is None or base.item_set.ids == rows.ids:
        return base
    place = {item: i for i, item in enumerate(base.item_set.ids)}
    if not all(item in place for item in rows.ids):
        return base
    at = [place[item] for item in rows.ids]
    stored = tuple(None if one is None else StoredItems(rows, one.values[at]) for one in base.stored)
    return replace(base, stored=stored)


def _method(value: str, tried: Sequence[_Tried], names: Sequence[str]) -> Method:
    scored = [one for one in tried if one.scored and not one.diverged]
    compared = [one for one in tried if one.better is not None]
    return Method(
        value=value,
        configurations=len(tried),
        scored=len(scored),
        whole=sum(one.row.whole for one in scored),
        diverged=sum(one.diverged for one in tried),
        failed=sum(not one.scored and not one.diverged for one in tried),
        quantiles=quantiles([one.row.score.value for one in scored]),
        compared=len(compared),
        beats=sum(bool(one.better) for one in compared),
        shown=sum(one.shown for one in compared),
        means={name: mean for name in names if (mean := _mean_of(scored, name)) is not None},
    )


def _mean_of(scored: Sequence[_Tried], name: str) -> Measured | None:
    """The mean over configurations, its error from their spread; None where none has it."""
    found = [{**one.row.scores, **one.row.also}.get(name, Measured()).value for one in scored]
    values = np.asarray([value for value in found if math.isfinite(value)])
    if not len(values):
        return None
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Measured(float(values.mean()), error, len(values), len(found) - len(values))


def _mean(side: Side, metric: Metric) -> Measured:
    return combined([Measured(score.value, score.se, score.n, score.unscored) for score in side.scores])


def _notes(
    sources: Sequence[Source], tried: Sequence[_Tried], baselines: Mapping[str, Side], metric: Metric
) -> list[str]:
    notes = []
    scored = [one for one in tried if one.scored]
    early = sum(not one.row.whole for one in scored)
    if early:
        notes.append(f"{early} of {len(scored)} configurations ended before their total and count with their last rung")
    without = [source.name for source in sources if source.name not in baselines]
    if without and metric.scored:
        which = "" if len(sources) == 1 else f" of {', '.join(without)}"
        split = metric.name.partition("/")[0]
        notes.append(
            f"no share beats the baseline{which}: the final step has not scored one on {split} by {metric.name}"
        )
    if len({_items_hash(one) for one in scored} - {None}) > 1:
        notes.append("not all configurations were scored on the same rows (other rungs or other data)")
    return notes


def _items_hash(one: _Tried) -> str | None:
    side = trial_side(one.row, one.source.items, one.source.plan.metrics[0].name)
    return None if side is None or side.item_set is None else side.item_set.hash
