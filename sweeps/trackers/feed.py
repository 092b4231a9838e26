"""What trackers are told of a ledger's events: names, parameters, numbers and outcomes, and no secret in any text.

A run's report is told once, as the fold counts it: what an older attempt reports again, and what is dropped, is not told.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evaluators.base import Score
from sweeps.fold import apply_event
from sweeps.load import from_record
from sweeps.progress import best
from sweeps.report.redact import cut, redact, secret_name
from sweeps.secret_values import MASK, Masks
from sweeps.state import ReportState, SweepState
from sweeps.trackers.base import RunFacts, SweepFacts, Value

if TYPE_CHECKING:
    from sweeps.events import Event
    from sweeps.load import LoadedSweep
    from sweeps.trackers.base import Tracker

TEXT = 500
"""Characters of a reason at most."""
Said = tuple[str, tuple[Any, ...]]
"""A method of `Tracker` and its arguments."""


def say(tracker: Tracker, said: Said) -> None:
    """Tell a tracker."""
    name, arguments = said
    getattr(tracker, name)(*arguments)


class Feed:
    """Turns events, one after another, into what trackers are told.

    Args:
        folder: the sweep's, absolute.
        masks: take out what no text may hold.

    Attributes:
        state: the fold of the events so far.
    """

    def __init__(self, folder: str, masks: Masks | None = None) -> None:
        self.state = SweepState()
        self._folder = folder
        self._masks = masks or Masks()
        self._loaded: LoadedSweep | None = None
        self._ended: set[str] = set()
        self._key = ""

    def take(self, event: Event, new: bool = True) -> list[Said]:
        """What an event says; it is folded too. One that is not `new` says nothing."""
        body, state = event.body, self.state
        run = state.runs.get(body["run"]) if event.kind == "reported" else None
        known = run is not None and body["resource"] in run.reports
        apply_event(state, event)
        if event.kind in ("sweep_created", "budget_changed"):
            self._loaded = from_record(state.spec)
            self._key = self._key or hashlib.sha256(f"{state.name} {event.time!r}".encode()).hexdigest()[:8]
        said = self._said(event, known) if new else []
        if event.kind == "lease_started":
            self._ended.discard(body["run"])
        elif event.kind == "run_ended":
            self._ended.add(body["run"])
        return said

    def _said(self, event: Event, known: bool) -> list[Said]:
        """What an event says that was just folded; `known`: a report of its resource was there before."""
        body, state = event.body, self.state
        if event.kind == "lease_started":
            return self._began(body["run"], event.time)
        if event.kind == "reported" and not known and body["resource"] in state.runs[body["run"]].reports:
            report = state.runs[body["run"]].reports[body["resource"]]
            return [("reported", (self._facts(body["run"]), report.resource, _numbers(report), event.time))]
        if event.kind == "run_ended":
            return self._run_ended(body, event.time)
        if event.kind in ("final_scored", "verdict", "soup_finished"):
            values = _final(event.kind, body)
            return [("told", (self._tried(), values, event.time))] if values else []
        return []

    @property
    def sweep(self) -> SweepFacts:
        """The sweep, once its first event was taken in."""
        assert self._loaded is not None, "the first event says what the sweep is"
        spec = self._loaded.spec
        settings = {
            "pipeline": spec.pipeline.type,
            "method": spec.method.type,
            "early_terminate": spec.early_terminate.type,
            "trials": str(self._loaded.trials if self._loaded.trials is not None else "until the hours are up"),
            "base_model": self._text(str(self._loaded.pipeline.get("base_model") or ""), "base_model"),
        }
        return SweepFacts(
            name=self.state.name,
            key=self._key,
            folder=self._folder,
            metrics=tuple(metric.name for metric in self._loaded.metrics),
            parameters=tuple(self._loaded.space.paths),
            settings={name: text for name, text in settings.items() if text},
        )

    def _began(self, run: str, time: float) -> list[Said]:
        if self.state.runs[run].leases > 1 and run not in self._ended:
            return []
        return [("began", (self._facts(run), time))]

    def _run_ended(self, body: Mapping[str, Any], time: float) -> list[Said]:
        run = body["run"]
        told: list[Said] = [] if self.state.runs[run].leases else [("began", (self._facts(run), time))]
        told.append(("ended", (self._facts(run), body["state"], self._text(body.get("reason") or ""), time)))
        return [*told, ("told", (self._tried(), self._so_far(), time))]

    def _facts(self, run: str) -> RunFacts:
        found = self.state.runs[run]
        parameters = self.state.trials[found.trial].suggestion.parameters
        values = {path: self._value(path, value) for path, value in parameters.items()}
        return RunFacts(run, found.trial, found.seed, values)

    def _value(self, path: str, value: Any) -> Value:
        if isinstance(value, bool | int | float):
            return value
        key = path.rpartition(".")[2]
        if isinstance(value, str):
            return self._text(value, key)
        return MASK if secret_name(key) else cut(json.dumps(redact(self._masks.value(value))), TEXT)

    def _text(self, text: str, key: str = "") -> str:
        return cut(str(redact(self._masks.text(text), key)), TEXT)

    def _tried(self) -> int:
        """Trials that have ended or wait at a rung."""
        return len({run.trial for run in self.state.searched_runs.values() if run.reports or run.phase == "failed"})

    def _so_far(self) -> dict[str, float]:
        assert self._loaded is not None, "runs come after the first event"
        phases = [run.phase for run in self.state.runs.values()]
        values = {f"runs/{phase}": float(phases.count(phase)) for phase in ("finished", "stopped", "failed")}
        found = best(self.state, self._loaded)
        return values if found is None else {f"best/{self._loaded.metric}": float(found["value"]), **values}


def _numbers(report: ReportState) -> dict[str, float]:
    values: dict[str, float] = {}
    for key, score in report.scores.items():
        values[key] = score.value
        if math.isfinite(score.se):
            values[f"{key}.se"] = score.se
    return {**values, **report.telemetry}


def _final(kind: str, body: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of the final step, by who they are of."""
    if kind == "verdict":
        pair = f"verdict/{body['left']}-{body['right']}/{body['metric']}"
        named = {"difference": body.get("difference"), "se": body.get("se"), "p_holm": body.get("p_holm")}
        return {f"{pair}.{name}": float(value) for name, value in named.items() if value is not None}
    records = body.get("scores") or ([body["score"]] if isinstance(body.get("score"), Mapping) else [])
    whose = str(body.get("role") or f"soup-{body.get('soup')}")
    if body.get("seed") is not None:
        whose = f"{whose}/seed-{body['seed']}"
    scores = [Score.from_record(record) for record in records]
    return {f"{whose}/{score.key}": score.value for score in scores if math.isfinite(score.value)}
