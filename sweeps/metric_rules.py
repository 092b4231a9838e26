"""What the door says about `metric:`: one, or several of which the first is the primary one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from evaluators.config import EVALUATOR_CONFIGS, METRICS, Direction
from pipelines.config import CustomConfig
from sweeps.draft import Draft
from sweeps.metrics import Metric, MetricError, known_metrics, owner, resolve_metric, soup_metric
from sweeps.problems import unknown
from sweeps.spec import MethodConfig
from sweeps.yaml_source import Place

METHOD_CONFIGS = get_args(get_args(MethodConfig)[0])


def check_metrics(draft: Draft) -> tuple[Metric, ...]:
    """The sweep's metrics in the file's order; empty, with the mistakes noted, where one of them can't be."""
    known: Mapping[str, Direction] = METRICS
    if draft.sound("pipeline"):
        known = known_metrics(draft.spec.pipeline, draft.spec.evaluate)
    listed = isinstance(draft.spec.metric, tuple)
    found: list[Metric] = []
    sound = True
    for index, config in enumerate(draft.spec.metrics):
        place: Place = ("metric", index) if listed else ("metric",)
        try:
            metric = resolve_metric(config, known)
        except MetricError as error:
            draft.wrong((*place, error.field), str(error))
            sound = False
            continue
        if metric.name in (other.name for other in found):
            draft.wrong((*place, "name"), f"'{metric.name}' stands twice; each metric counts once")
            sound = False
        found.append(metric)
        _runs_at_rungs(draft, metric)
        _has_its_entry(draft, metric, place)
    return tuple(found) if sound else ()


def _runs_at_rungs(draft: Draft, metric: Metric) -> None:
    """The evaluator of a metric can't be put off to the end."""
    entries = draft.spec.evaluate
    own = owner(metric.bare, draft.spec) if metric.name.startswith("tune/") else None
    slots = [entry.slot for entry in entries]
    if own is not None and own.slot in slots and own.when in ("end", "final"):
        place: Place = ("evaluate", slots.index(own.slot), "when")
        draft.wrong(place, f"'{own.when}', but the metric's evaluator runs at every rung; delete when")


def _has_its_entry(draft: Draft, metric: Metric, place: Place) -> None:
    """A metric whose evaluator has no defaults is reported by an entry of the file."""
    if not metric.scored or isinstance(draft.spec.pipeline, CustomConfig) or owner(metric.bare, draft.spec) is not None:
        return
    example = next((c.example for c in EVALUATOR_CONFIGS if c.example and metric.bare in c.metrics), None)
    if example is not None:
        draft.wrong(place, f"{metric.bare} is reported by an entry of its own: write evaluate: [{example}]")


def check_method(draft: Draft, metrics: tuple[Metric, ...]) -> None:
    """A method that follows one number takes one metric."""
    method = draft.spec.method
    place: Place = ("method",) if isinstance(draft.document.data.get("method"), str) else ("method", "type")
    if len(metrics) > 1 and not method.several_metrics:
        several = [config.model_fields["type"].default for config in METHOD_CONFIGS if config.several_metrics]
        mend = f"name one, or use one of {', '.join(sorted(several))}"
        draft.wrong(place, f"'{method.type}' takes one metric, but the file has {len(metrics)}; {mend}")


def check_soup_metric(draft: Draft, metrics: tuple[Metric, ...]) -> None:
    """What chooses the soup is a score."""
    spec = draft.spec
    if spec.soup is None:
        return
    bare, known = soup_metric(spec, metrics), known_metrics(spec.pipeline, spec.evaluate)
    if getattr(spec.soup, "early_stop", None) is not None and bare == "perplexity":
        draft.wrong(
            ("soup", "early_stop"),
            "perplexity is no mean over rows, so blocks of them can't be compared; give soup.metric: loss",
        )
    if spec.soup.metric is not None and bare not in known:
        draft.wrong(("soup", "metric"), unknown(spec.soup.metric, list(known)))
    elif spec.soup.metric is None and not any(metric.scored for metric in metrics):
        names = " and ".join(metric.name for metric in metrics)
        what = "is telemetry" if len(metrics) == 1 else "are telemetry"
        draft.wrong(("soup",), f"{names} {what} and can't choose a soup; give soup.metric")
