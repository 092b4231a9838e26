"""Which numbers a sweep knows: the metric it optimises, and which evaluator runs when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluators.config import (
    Direction,
    EvaluatorConfig,
    LossConfig,
    PreferenceConfig,
    Subject,
    default_entries,
    metrics_of,
)
from pipelines.config import AnyPipeline, CustomConfig, DPOConfig, RagConfig
from sweeps.foreign import VALUES
from sweeps.problems import show, unknown
from sweeps.spec import MetricConfig, SweepSpec

HELD_OUT = ("select", "test")
TELEMETRY = ("train", "cost")
_OF_PAIRS: dict[str, EvaluatorConfig] = {"loss": LossConfig(), "preference": PreferenceConfig()}
FRONT = 5
"""Runs of the front that are judged at most: each is scored on `test`, and trained again with every seed of `seeds.test`."""


@dataclass(frozen=True)
class Metric:
    """What a sweep optimises: its full name and which way is better."""

    name: str
    direction: Direction

    @property
    def bare(self) -> str:
        """The name without its split."""
        return self.name.partition("/")[2]

    @property
    def scored(self) -> bool:
        """Whether it is a score with items and an error; telemetry has neither."""
        return self.name.startswith("tune/")

    @property
    def sign(self) -> float:
        """Times this, smaller is better."""
        return 1.0 if self.direction == "minimize" else -1.0


class MetricError(ValueError):
    """A metric that can't be; `field` is `name` or `goal`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def known_metrics(pipeline: AnyPipeline, entries: Sequence[EvaluatorConfig] = ()) -> dict[str, Direction]:
    """Every score on `tune`, without its split, that a pipeline and the evaluators report.

    Args:
        pipeline: the sweep's.
        entries: the file's, some of which report what their settings name (`lm_eval.gsm8k`).
    """
    if isinstance(pipeline, CustomConfig):
        return dict(pipeline.metrics)
    can = subjects(pipeline)
    own = [entry for entry in entries if set(entry.subjects) & set(can)]
    return metrics_of(*can) | {name: way for entry in own if entry.example for name, way in entry.reports().items()}


def subjects(pipeline: AnyPipeline) -> tuple[Subject, ...]:
    """What of a pipeline evaluators can score."""
    if isinstance(pipeline, CustomConfig):
        return ()
    if isinstance(pipeline, RagConfig):
        return ("retrieval", "answer")
    return ("model", "preference") if isinstance(pipeline, DPOConfig) else ("model",)


def with_cut(bare: str, known: Mapping[str, Direction]) -> Direction | None:
    """Which way is better on a metric, also at a cut of its evaluator's (`span_recall.at_5`); None for an unknown one."""
    if bare in known:
        return known[bare]
    grown = next((made for entry in default_entries() if (made := entry.reporting(bare)) is not None), None)
    return None if grown is None or not grown.metrics.keys() & known.keys() else grown.reports()[bare]


def resolve_metric(config: MetricConfig, known: Mapping[str, Direction]) -> Metric:
    """The metric that `metric:` names, among `known_metrics`.

    Raises:
        MetricError: if the name is unknown, held out, or `goal` is missing or contradicts its owner.
    """
    split, _, bare = config.name.partition("/") if "/" in config.name else ("tune", "", config.name)
    if split in HELD_OUT:
        why = "chooses soups" if split == "select" else "is opened once, by the final step"
        raise MetricError("name", f"{split}/ {why}; the sweep decides on tune: write '{bare}'")
    if split in TELEMETRY and bare:
        if config.goal is None:
            raise MetricError(
                "name", f"{show(config.name)} is telemetry; say which way is better: goal: minimize or maximize"
            )
        return Metric(config.name, config.goal)
    direction = with_cut(bare, known)
    if split != "tune" or direction is None:
        if not known and split == "tune" and config.goal is not None and bare:
            return Metric(f"tune/{bare}", config.goal)
        mend = VALUES["metric"].get(config.name)
        if not known:
            mend = "name it under pipeline.metrics, or give its goal: minimize or maximize"
        if bare.startswith("lm_eval"):
            task = bare.partition(".")[2] or "TASK"
            mend = f"a task is known by its entry: write evaluate: [{{type: lm_eval, tasks: [{task}]}}]"
        raise MetricError("name", unknown(config.name, list(known), mend))
    if config.goal is not None and config.goal != direction:
        raise MetricError("goal", f"'{config.goal}' contradicts {bare}, which is to {direction}; delete goal")
    return Metric(f"tune/{bare}", direction)


def asked_metric(word: str, own: Sequence[Metric], spec: SweepSpec) -> Metric:
    """The metric that `NAME` or `NAME:GOAL` of a command means: one of the sweep's own, or any other that trials report.

    Of `cost/` less is better unless the goal says otherwise.

    Args:
        word: as the user gave it.
        own: the sweep's metrics.
        spec: the sweep's.

    Raises:
        MetricError: as `resolve_metric`.
    """
    name, _, goal = word.partition(":")
    if goal not in ("", "minimize", "maximize"):
        raise MetricError("name", f"{show(word)}: '{goal}' is no goal; write {name}:minimize or {name}:maximize")
    mine = next((metric for metric in own if name == metric.name or (metric.scored and name == metric.bare)), None)
    if mine is not None and goal in ("", mine.direction):
        return mine
    if not goal and name.startswith("cost/"):
        goal = "minimize"
    if not goal and name.startswith("train/"):
        raise MetricError(
            "name", f"{show(name)} is telemetry; say which way is better: {name}:minimize or {name}:maximize"
        )
    known = known_metrics(spec.pipeline, spec.evaluate)
    return resolve_metric(MetricConfig.model_validate({"name": name, "goal": goal or None}), known)


def owner(bare: str, spec: SweepSpec) -> EvaluatorConfig | None:
    """The entry that reports a metric: the file's own, else the evaluator's defaults; None for a pipeline's own metric."""
    if isinstance(spec.pipeline, CustomConfig) and bare in spec.pipeline.metrics:
        return None
    made = (entry.reporting(bare) for entry in (*spec.evaluate, *default_entries()))
    return next((entry for entry in made if entry is not None), None)


@dataclass(frozen=True)
class Timetable:
    """`evaluate` entries (JSON) by when they run; each list says all that runs then.

    Attributes:
        rung: at every milestone, on tune.
        end: at the last milestone as well, on tune.
        final: in the final step, on test.
        soup: the one that chooses soups, on select.
    """

    rung: tuple[dict[str, Any], ...]
    end: tuple[dict[str, Any], ...]
    final: tuple[dict[str, Any], ...]
    soup: tuple[dict[str, Any], ...]


def timetable(spec: SweepSpec, metrics: Sequence[Metric]) -> Timetable:
    """When each evaluator runs: those of the metrics, and of preferences, at every milestone and in the final step."""
    mine: dict[str, EvaluatorConfig] = {}
    for metric in metrics:
        own = owner(metric.bare, spec) if metric.scored else None
        if own is not None:
            before = mine.get(own.slot)
            mine[own.slot] = own if before is None else before.reporting(metric.bare) or own
    if isinstance(spec.pipeline, DPOConfig):  # one pass over the pairs gives all of them
        named = {entry.type for entry in spec.evaluate}
        mine |= {kind: made for kind, made in _OF_PAIRS.items() if kind not in mine and kind not in named}
    others = [entry for entry in spec.evaluate if entry.slot not in mine]
    rung = [entry for entry in others if entry.when == "rung"]
    end = [entry for entry in others if entry.when in (None, "end")]
    final = [entry for entry in others if entry.when in (None, "final")]
    chosen = owner(soup_metric(spec, metrics), spec) if spec.soup is not None else None
    return Timetable(
        _json([*mine.values(), *rung]),
        _json(end),
        _json([*mine.values(), *final]),
        _json([] if chosen is None else [chosen]),
    )


def soup_metric(spec: SweepSpec, metrics: Sequence[Metric]) -> str:
    """The metric that chooses soups, without its split: the soup's own, else the sweep's first that is a score."""
    named = spec.soup.metric if spec.soup is not None else None
    if named is None:
        return next((metric for metric in metrics if metric.scored), metrics[0]).bare
    return named.partition("/")[2] if named.startswith(("tune/", "select/")) else named


def ingredient_metric(spec: SweepSpec, metrics: Sequence[Metric]) -> Metric:
    """What ranks a soup's ingredients: the metric that chooses the soup where it is one of the sweep's, else the primary."""
    if spec.soup is None or len(metrics) == 1:
        return metrics[0]
    bare = soup_metric(spec, metrics)
    return next((metric for metric in metrics if metric.scored and metric.bare == bare), metrics[0])


def _json(entries: list[Any]) -> tuple[dict[str, Any], ...]:
    return tuple(entry.model_dump(mode="json") for entry in entries)
