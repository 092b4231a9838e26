"""The tuning-test gap: what chose a model said of it on tune, beside what it is worth on test.

A configuration was chosen for its mean over the tuning seeds, so that this mean flatters it, the more so the fewer seeds
there were (Eimer et al. 2023, arXiv 2306.01324: with seed noise as large as the spread of configurations and 50 of them the
expected gap is 1.6 of these sigmas with one seed, .4 with five). On test it is the mean over its retrainings with
`seeds.test`, or over the sweep's own runs where there are none. A soup was chosen on select.

An estimate's error has two parts: the clustered error over rows of the items' mean over seeds, with clusters - 1 degrees of
freedom, and the variance between the m seeds over m, with m - 1; its interval is Student's t with Satterthwaite's degrees of
freedom. Tune and test share neither rows nor seeds, so the gap's parts are those of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluators.base import Score, summarise
from sweeps.board import Gap, Interval
from sweeps.candidates import test_finals
from sweeps.seeds import by_trial
from sweeps.state import SweepState, items_owner
from sweeps.verdicts import Part, Side, common_items, limits

if TYPE_CHECKING:
    from sweeps.board import Row
    from sweeps.leaderboard import ItemReader
    from sweeps.metrics import Metric


@dataclass(frozen=True)
class _Estimate:
    """A mean, the parts of its variance, and its rows and seeds."""

    value: float
    parts: tuple[Part, ...]
    n: int
    seeds: tuple[int, ...]

    def interval(self, alpha: float) -> Interval:
        """With its limits."""
        se, low, high = limits(self.value, self.parts, alpha)
        return Interval(self.value, se, low, high, self.n, self.seeds)


def gaps(
    state: SweepState, rows: Sequence[Row], metrics: Sequence[Metric], items: ItemReader, alpha: float
) -> list[Gap]:
    """Of every judged candidate that something chose: the winner or the front, and the soups; the baseline was not chosen.

    Args:
        state: the folded ledger.
        rows: the leaderboard's trials.
        metrics: the sweep's.
        items: the ledger.
        alpha: 1 - coverage of the intervals.
    """
    found = []
    for candidate in state.candidates:
        role = str(candidate["role"])
        for metric in (one for one in metrics if one.scored):
            chosen = _chosen(state, rows, candidate, metric, items)
            test = _of_finals(test_finals(state.finals, role, f"test/{metric.bare}"), f"test/{metric.bare}", items)
            if chosen is None or test is None:
                continue
            split, tuned = chosen
            worse = _Estimate(metric.sign * (test.value - tuned.value), (*tuned.parts, *test.parts), test.n, ())
            name = str(candidate.get("run") or candidate.get("soup")).partition("/")[0]
            found.append(
                Gap(
                    role,
                    name,
                    f"{split}/{metric.bare}",
                    f"test/{metric.bare}",
                    tuned.interval(alpha),
                    test.interval(alpha),
                    worse.interval(alpha),
                )
            )
    return found


def estimate(side: Side) -> _Estimate | None:
    """The mean over a side's seeds with the parts of its variance; None where it has no score."""
    if not side.scores or any(score is None for score in side.scores):
        return None
    values = [score.value for score in side.scores]
    shared, _ = common_items(side, side)
    if shared is None:
        error, clusters = fmean(score.se for score in side.scores), min(score.n for score in side.scores)
    else:
        stacked = np.stack([np.asarray(one.values, dtype=np.float64) for one in side.stored if one is not None])
        mean = stacked.mean(axis=0)
        score = summarise("m", "test", "minimize", shared, mean)
        groups = shared.groups or shared.ids
        error, clusters = score.se, len({group for group, x in zip(groups, mean, strict=True) if not math.isnan(x)})
    parts = [Part(error**2, clusters - 1)]
    if len(values) > 1 and all(map(math.isfinite, values)):
        parts.append(Part(variance(values) / len(values), len(values) - 1))
    return _Estimate(fmean(values), tuple(parts), min(score.n for score in side.scores), side.seeds)


def _chosen(
    state: SweepState, rows: Sequence[Row], candidate: Mapping[str, Any], metric: Metric, items: ItemReader
) -> tuple[str, _Estimate] | None:
    """(split, estimate) of what chose a candidate."""
    if "soup" in candidate:
        soup = state.soups.get(str(candidate["soup"]))
        record = None if soup is None or soup.finished is None else soup.finished.get("score")
        if record is None or record.get("name") != metric.bare:
            return None
        side = Side("soup", (Score.from_record(record),), (None,))
        found = estimate(side)
        return None if found is None else ("select", found)
    if "run" not in candidate:
        return None
    trial = str(candidate["run"]).partition("/")[0]
    row = next((one for one in rows if one.name == trial), None)
    if row is None or row.rung is None:
        return None
    split, _, name = metric.name.partition("/")
    runs = [run for run in by_trial(state.runs)[trial] if run.seed in row.seeds and row.rung in run.reports]
    scores = [run.reports[row.rung].scores.get(metric.name) for run in runs]
    stored = tuple(items.items(run.id, row.rung, name, split) for run in runs)
    whole = tuple(score for score in scores if score is not None)
    found = estimate(Side(trial, whole, stored, tuple(run.seed for run in runs))) if len(whole) == len(runs) else None
    return None if found is None else (split, found)


def _of_finals(finals: Sequence[Mapping[str, Any]], key: str, items: ItemReader) -> _Estimate | None:
    split, _, name = key.partition("/")
    stored = tuple(items.items(items_owner(final), 0, name, split) for final in finals)
    seeds = tuple(int(final["seed"]) for final in finals if final.get("seed") is not None)
    return estimate(Side("", tuple(final["scores"][key] for final in finals), stored, seeds))
