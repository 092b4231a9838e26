"""The Pareto front of a sweep with several metrics: who is on it, how sure that is, and its hypervolume. Reads only.

Who is compared
    The trials that have got as far as the first of the leaderboard, with every metric there. Fronts count from 1; front 1 is
    what no trial dominates by the values.

Possibly on the front
    A trial that others dominate by the values may be dominated by chance. It is *shown* to be dominated when some trial of
    front 1 is better on every metric, beyond doubt: on a score, paired on the stored items (`evaluators.statistics.paired`);
    telemetry has no error and is taken as it is. The p-value of a pair of trials is the largest of its metrics' (all must
    hold: an intersection-union test), and Holm goes over all pairs of a trial and a trial of front 1 that dominates it by the
    values. Who is not shown to be dominated is possibly on the front. So a wrong "not on it" is rare; that a trial is on
    front 1 is what the values say, no more. Where a score has no items the pair is not tested.

Hypervolume
    Up to the worst value of each metric among the trials compared. The interval is a percentile bootstrap over the items: whole
    clusters are drawn with replacement, the same for all trials (and for all metrics that share their clusters), the
    reference stays, and so does telemetry. It covers the choice of items, not training, and is there where all scores have
    items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluators.statistics import holm, paired
from sweeps import pareto
from sweeps.events import StoredItems
from sweeps.ledger import number
from sweeps.metrics import Metric

if TYPE_CHECKING:
    from sweeps.board import Row

ItemsOf = Callable[["Row", str], StoredItems | None]
"""(row, metric) -> its item scores where it stands."""
Floats = NDArray[np.float64]

RESAMPLES = 1000
RESAMPLES_OF_MANY = 200
"""From three metrics on, where one hypervolume takes longer."""
_NUMBERS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Volume:
    """The hypervolume of a front.

    Attributes:
        value: in the product of the metrics' units.
        low: lower end of the interval, NaN without one.
        high: upper end.
        reference: metric -> where volume is measured from.
    """

    value: float
    low: float
    high: float
    reference: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        reference = {name: number(value) for name, value in self.reference.items()}
        return {"value": number(self.value), "low": number(self.low), "high": number(self.high), "reference": reference}


@dataclass(frozen=True)
class Front:
    """What the trials that got furthest amount to.

    Attributes:
        metrics: full names, the primary metric first.
        rung: where they are compared; None where their lengths differ.
        compared: how many there are.
        members: trials of front 1, in the leaderboard's order.
        possible: trials besides that are not shown to be dominated.
        dominated: trials that are; the rest could not be tested.
        tested: pairs of trials that were tested.
        alpha: level of the tests and 1 - coverage of the interval.
        volume: the hypervolume.
    """

    metrics: tuple[str, ...]
    rung: int | None
    compared: int
    members: tuple[str, ...]
    possible: tuple[str, ...]
    dominated: tuple[str, ...]
    tested: int
    alpha: float
    volume: Volume

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        plain = {**self.__dict__, "volume": self.volume.record()}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    def lines(self) -> list[str]:
        """For people."""
        where = "" if self.rung is None else f" at rung {self.rung}"
        said = f"front 1 = at its rung no trial is as good on all of {_listed(self.metrics)} and better on one"
        lines = [f"{said}: {len(self.members)} of {self.compared}{where}"]
        if self.possible:
            how = f"paired on stored items, Holm over {self.tested}, α = {self.alpha:g}"
            lines.append(f"? = possibly on it: no trial of front 1 is shown to be better on every metric ({how})")
        volume = f"hypervolume {self.volume.value:.4g}"
        if math.isfinite(self.volume.low):
            volume += f" [{self.volume.low:.4g}, {self.volume.high:.4g}] ({100 * (1 - self.alpha):g} %, over items)"
        corner = ", ".join(f"{name} {value:.4g}" for name, value in self.volume.reference.items())
        lines.append(f"{volume}, up to the worst seen there: {corner}")
        return lines


def numbered(rows: Sequence[Row], metrics: Sequence[Metric]) -> list[int | None]:
    """The front of each row, from 1; None for one that lacks a metric."""
    whole = [i for i, row in enumerate(rows) if all(math.isfinite(row.scores[m.name].value) for m in metrics)]
    found: list[int | None] = [None] * len(rows)
    for i, front in zip(whole, pareto.fronts(oriented([rows[i] for i in whole], metrics)), strict=True):
        found[i] = front + 1
    return found


def oriented(rows: Sequence[Row], metrics: Sequence[Metric]) -> Floats:
    """(rows, metrics) values where smaller is better."""
    return np.array([[m.sign * row.scores[m.name].value for m in metrics] for row in rows]).reshape(-1, len(metrics))


def find_front(rows: Sequence[Row], metrics: Sequence[Metric], items: ItemsOf, alpha: float) -> Front | None:
    """The front of rows that stand equally far, each with its `front`; None when none has all metrics.

    Args:
        rows: in the leaderboard's order.
        metrics: of the sweep.
        items: reads item scores.
        alpha: level of the tests.
    """
    there = [row for row in rows if row.front is not None]
    if not there:
        return None
    members = [row for row in there if row.front == 1]
    shown, possible, tested = _dominated(members, [row for row in there if row.front != 1], metrics, items, alpha)
    rungs = {row.rung for row in there}
    return Front(
        metrics=tuple(metric.name for metric in metrics),
        rung=rungs.pop() if len(rungs) == 1 else None,
        compared=len(there),
        members=tuple(row.name for row in members),
        possible=tuple(row.name for row in there if row.name in possible),
        dominated=tuple(row.name for row in there if row.name in shown),
        tested=tested,
        alpha=alpha,
        volume=_volume(there, metrics, items, alpha),
    )


def _dominated(
    members: Sequence[Row], others: Sequence[Row], metrics: Sequence[Metric], items: ItemsOf, alpha: float
) -> tuple[set[str], set[str], int]:
    """Names of the others that are shown to be dominated and of those that are not, and how many pairs were tested."""
    points = oriented(members, metrics)
    pairs: list[tuple[str, float]] = []
    for row in others:
        own = oriented([row], metrics)[0]
        for member, point in zip(members, points, strict=True):
            if pareto.dominates(point, own):
                pairs.append((row.name, _dominance(member, row, metrics, items, alpha)))
    adjusted = holm([p for _, p in pairs])
    tested = {name for (name, p) in pairs if not math.isnan(p)}
    shown = {name for (name, _), p in zip(pairs, adjusted, strict=True) if p <= alpha}
    return shown, tested - shown, sum(not math.isnan(p) for _, p in pairs)


def _dominance(better: Row, worse: Row, metrics: Sequence[Metric], items: ItemsOf, alpha: float) -> float:
    """The p-value of "better on every metric", NaN where it can't be had. Past alpha the exact value plays no part."""
    largest = 0.0
    for metric in metrics:
        if not metric.scored:
            continue
        left, right = items(better, metric.name), items(worse, metric.name)
        if left is None or right is None or left.item_set != right.item_set:
            return math.nan
        if largest <= alpha:
            result = paired(left.values, right.values, left.item_set)
            favoured = metric.sign * result.difference < 0
            largest = max(largest, result.p if favoured and not math.isnan(result.p) else 1.0)
    return largest


def _volume(rows: Sequence[Row], metrics: Sequence[Metric], items: ItemsOf, alpha: float) -> Volume:
    points = oriented(rows, metrics)
    reference = pareto.worst(points)
    low = high = math.nan
    draws = _redrawn(rows, points, metrics, items) if len(rows) > 1 else None
    if draws is not None:
        volumes = [pareto.hypervolume(draw, reference) for draw in draws]
        low, high = (float(x) for x in np.quantile(volumes, [alpha / 2, 1 - alpha / 2]))
    corner = {metric.name: metric.sign * float(x) for metric, x in zip(metrics, reference, strict=True)}
    return Volume(pareto.hypervolume(points, reference), low, high, corner)


def _redrawn(rows: Sequence[Row], points: Floats, metrics: Sequence[Metric], items: ItemsOf) -> Floats | None:
    """(resamples, rows, metrics) oriented values on clusters drawn anew; None where a score lacks comparable items."""
    found: list[tuple[int, tuple[str, ...], Floats, Floats]] = []
    for j, metric in enumerate(metrics):
        if not metric.scored:
            continue
        stored = [items(row, metric.name) for row in rows]
        whole = [one for one in stored if one is not None]
        if len(whole) < len(stored) or any(one.item_set != whole[0].item_set for one in whole[1:]):
            return None
        found.append((j, *_clustered(whole)))
    if not found or any(len(labels) < 2 for _, labels, _, _ in found):
        return None
    resamples = RESAMPLES if len(metrics) == 2 else RESAMPLES_OF_MANY
    draws = np.broadcast_to(points, (resamples, *points.shape)).copy()
    for labels in dict.fromkeys(labels for _, labels, _, _ in found):
        generator = np.random.default_rng(0)
        count = len(labels)
        step = max(1, _NUMBERS_AT_ONCE // count)
        for start in range(0, resamples, step):
            times = generator.multinomial(count, [1 / count] * count, size=min(step, resamples - start))
            for j, own, sums, weights in found:
                if own == labels:
                    with np.errstate(invalid="ignore", divide="ignore"):
                        drawn = metrics[j].sign * (times @ sums.T) / (times @ weights.T)
                    draws[start : start + step, :, j] = np.where(np.isnan(drawn), np.inf, drawn)
    return draws


def _clustered(stored: Sequence[StoredItems]) -> tuple[tuple[str, ...], Floats, Floats]:
    """Cluster names, and (rows, clusters) weighted sums and weights of the scored items."""
    item_set = stored[0].item_set
    labels, index = np.unique(
        np.asarray(item_set.groups or item_set.ids, dtype=object).astype(str), return_inverse=True
    )
    weights = np.ones(len(item_set.ids)) if item_set.weights is None else np.asarray(item_set.weights, dtype=np.float64)
    sums, totals = [], []
    for one in stored:
        x = np.asarray(one.values, dtype=np.float64)
        w = np.where(np.isnan(x), 0.0, weights)
        sums.append(np.bincount(index, weights=w * np.nan_to_num(x), minlength=len(labels)))
        totals.append(np.bincount(index, weights=w, minlength=len(labels)))
    return tuple(str(label) for label in labels), np.array(sums), np.array(totals)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
