"""A comparison as JSON and as text for people. Missing is not zero: an unknown number is null, and a blank or `-`."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

from evaluators.statistics import Paired, items_to_tell
from sweeps.board_text import aligned, score_text
from sweeps.compare import Comparison, Comparisons, Contestant
from sweeps.effects import lines
from sweeps.methods import QUANTILES, Methods


def all_to_json(comparisons: Comparisons) -> dict[str, Any]:
    """JSON-ready; with one metric its comparison alone."""
    axes = [
        {"sweep": sweep, "metric": metric, "effects": [effect.record() for effect in found]}
        for sweep, metric, found in comparisons.effects
    ]
    costs = [
        {"sweep": sweep, "metric": metric, "axes": [axis.record() for axis in found]}
        for sweep, metric, found in comparisons.costs
    ]
    if len(comparisons.blocks) == 1:
        return {**to_json(comparisons.blocks[0]), "axes": axes, "costs": costs}
    front = None if comparisons.front is None else comparisons.front.record()
    return {"axes": axes, "costs": costs, "metrics": [to_json(block) for block in comparisons.blocks], "front": front}


def all_to_text(comparisons: Comparisons, width: int | None = None) -> str:
    """A block a metric, the front, and what the axes are worth."""
    blocks = [to_text(block, width) for block in comparisons.blocks]
    blocks += _front(comparisons, width)
    for sweep, metric, found in comparisons.effects:
        head = ["axis", "change", f"{metric} (95 %)", "p (Holm)", "", "n", "trials"]
        title = (
            f"what each axis of {sweep} is worth on {metric}, averaged over the rest, on the items that all answered"
        )
        blocks.append("\n".join([title, *aligned(head, lines(found, metric), width)]))
    for sweep, metric, costs in comparisons.costs:
        title = f"what each axis of {sweep} costs in {metric}: means ± standard deviations of whole runs (Welch, Holm)"
        blocks.append("\n".join([title, *(line for axis in costs for line in axis.lines())]))
    return "\n\n".join(blocks)


def _front(comparisons: Comparisons, width: int | None) -> list[str]:
    """Who is on the front or possibly so, each metric with half of its interval, and the hypervolume."""
    front = comparisons.front
    if front is None:
        return []
    reach = NormalDist().inv_cdf(1 - front.alpha / 2)
    rows = []
    for row in comparisons.fronted:
        scores = [row.scores[name] for name in front.metrics]
        cells = [score_text(replace(score, se=reach * score.se)) for score in scores]
        rows.append([f"{row.front}{'?' if row.name in front.possible else ''}", row.name, *cells])
    percent = f"{100 * (1 - front.alpha):g} %"
    table = aligned(["front", "trial", *(f"{name} ({percent})" for name in front.metrics)], rows, width)
    return ["\n".join([*table, *front.lines()])]


def to_json(comparison: Comparison) -> dict[str, Any]:
    """JSON-ready; unknown numbers are null."""
    return {
        "metric": comparison.metric,
        "direction": comparison.direction,
        "alpha": comparison.alpha,
        "tested": comparison.tested,
        "contestants": [_contestant(one) for one in comparison.contestants],
        "tied_best": list(comparison.tied_best),
        "pairs": [pair.record() for pair in comparison.pairs],
        "left_out": [{"name": name, "reason": reason} for name, reason in comparison.left_out],
    }


def _contestant(one: Contestant) -> dict[str, Any]:
    return {**one.__dict__, "score": one.score.record(), "test": None if one.test is None else one.test.record()}


def to_text(comparison: Comparison, width: int | None = None) -> str:
    """Every contestant against the best, the tied-best set, and who was left out."""
    if not comparison.tested:
        return _values(comparison, width)
    best, *others = comparison.contestants
    better = "lower" if comparison.direction == "minimize" else "higher"
    against = {pair.right: pair for pair in comparison.pairs if pair.left == best.name}
    rows = [["=", best.name, str(best.rung), score_text(best.score), "best", "", ""]]
    for other in others:
        pair = against[other.name]
        p = "" if math.isnan(pair.against_best or 0.0) else f"{pair.against_best:.3g}"
        row = [
            "=" if other.tied else " ",
            other.name,
            str(other.rung),
            score_text(other.score),
            _behind(pair.result),
            p,
            _needed(pair.result) if other.tied else "",
        ]
        rows.append(row)
    percent = f"{100 * (1 - comparison.alpha):g} %"
    lines = [f"{comparison.metric} ({better} is better), each minus the best, paired on the same items"]
    lines += aligned(
        ["=", "trial", "rung", comparison.metric, f"difference ({percent})", "p (Holm)", "to tell"], rows, width
    )
    if others:
        tied = len(comparison.tied_best)
        told = "the best stands alone" if tied == 1 else f"{tied} can't be told from the best (marked =)"
        if tied > 1:
            now = against[others[0].name].result.n
            told += f"; to tell: items in all ({now} now) that would show the present difference, if it is real, 4 times in 5"
        apart = sum(pair.better != "neither" for pair in comparison.pairs)
        lines.append(f"{told}; of all {len(comparison.pairs)} pairs {apart} can be told apart")
    lines += [
        f"on test, which chose nothing: {one.name} {score_text(one.test)} (n={one.test.n})"
        for one in comparison.contestants
        if one.test is not None
    ]
    lines += [f"left out: {name}: {reason}" for name, reason in comparison.left_out]
    return "\n".join(lines)


def _values(comparison: Comparison, width: int | None) -> str:
    better = "lower" if comparison.direction == "minimize" else "higher"
    best = comparison.contestants[0].score.value
    rows = [
        [c.name, str(c.rung), score_text(c.score), "best" if c.score.value == best else f"{c.score.value - best:+.3g}"]
        for c in comparison.contestants
    ]
    lines = [f"{comparison.metric} ({better} is better), telemetry without an error: nothing is judged"]
    return "\n".join(lines + aligned(["trial", "rung", comparison.metric, "difference"], rows, width))


def _needed(result: Paired) -> str:
    """Items in all that would tell a pair apart."""
    wanted = items_to_tell(result)
    if math.isnan(wanted):
        return ""
    return f"{math.ceil(wanted):,}" if wanted < 1e7 else "never"


def _behind(result: Paired) -> str:
    """The other minus the best, with half of its interval."""
    if math.isnan(result.difference):
        return ""
    half = (result.high - result.low) / 2
    return f"{-result.difference:+.3g}" + ("" if math.isnan(half) else f" ± {half:.2g}")


def methods_to_text(methods: Methods, width: int | None = None) -> str:
    """A line a method: quantiles over its configurations, how many beat the baseline; then the means of further metrics."""
    better = "lower" if methods.direction == "minimize" else "higher"
    head = [methods.by, "configs", *QUANTILES, "beat baseline", "shown", "diverged"]
    rows = [
        [
            one.value,
            str(one.configurations),
            *("-" if math.isnan(value) else f"{value:.4g}" for value in one.quantiles.values()),
            _share(one.beats, one.compared),
            _share(one.shown, one.compared),
            str(one.diverged),
        ]
        for one in methods.methods
    ]
    lines = [f"{methods.metric} ({better} is better) over all configurations of each {methods.by}, best median first"]
    lines += aligned(head, rows, width)
    for sweep, score in methods.baselines.items():
        name = f"baseline of {sweep}" if len(methods.baselines) > 1 else "baseline"
        lines.append(f"{name}: {score_text(score)} (n={score.n}) on the same split")
    if methods.baselines:
        lines.append(
            "beat baseline: of the configurations, diverged ones included; shown: paired on the same items, Holm over "
            f"{sum(one.compared - one.diverged for one in methods.methods)}, α = {methods.alpha:g}"
        )
    failed = sum(one.failed for one in methods.methods)
    if failed:
        lines.append(f"{failed} configurations failed for reasons that are not theirs and count in configs alone")
    lines += [f"note: {note}" for note in methods.notes]
    return "\n\n".join(["\n".join(lines), *_means(methods, width)])


def _share(count: int, n: int) -> str:
    return f"{count}/{n} ({100 * count / n:.0f} %)" if n else "-"


def _means(methods: Methods, width: int | None) -> list[str]:
    """Further metrics, each with the error over configurations."""
    names = list(dict.fromkeys(name for one in methods.methods for name in one.means))
    if not names:
        return []
    rows = [
        [one.value, *(score_text(one.means[n]) if n in one.means else "" for n in names)] for one in methods.methods
    ]
    title = "means over the configurations, with their errors over these"
    return ["\n".join([title, *aligned([methods.by, *names], rows, width)])]
