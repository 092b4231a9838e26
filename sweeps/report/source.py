"""What a report reads: the folded ledger, its events, the plan behind it, and who drives the sweep now."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluators.base import Direction
from sweeps.driving import holder_of
from sweeps.events import Event
from sweeps.fold import fold
from sweeps.ledger import Ledger
from sweeps.load import LoadedSweep, from_record, load_resolved
from sweeps.metrics import Metric
from sweeps.paths import SweepPaths
from sweeps.problems import SpecError
from sweeps.state import SweepState


@dataclass(frozen=True)
class PlainPlan:
    """What can be said of a sweep whose file this version can't load any more: from its record, else from its scores.

    Attributes:
        metric: full name; empty where nothing was ever scored.
        direction: which way is better.
        milestones: resources at which runs were compared.
        warnings: why it is so plain.
    """

    metric: str
    direction: Direction
    milestones: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The one metric."""
        return (Metric(self.metric, self.direction),)

    def milestones_of(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """The same for all."""
        return self.milestones


Plan = LoadedSweep | PlainPlan


@dataclass(frozen=True)
class Source:
    """A sweep opened for reading.

    Attributes:
        paths: its paths.
        ledger: for item scores.
        events: all of them.
        state: their fold.
        plan: the loaded sweep, or what is left of it.
        driver: who drives it now ({pid, host, started}), None when nobody does.
    """

    paths: SweepPaths
    ledger: Ledger
    events: Sequence[Event]
    state: SweepState
    plan: Plan
    driver: Mapping[str, Any] | None = None

    @property
    def phase(self) -> str:
        """`finished`, `running`, `stopped`, `interrupted`, or `empty` before the first event."""
        if not self.state.seq:
            return "empty"
        if self.state.finished is not None:
            return "finished"
        if self.driver is not None:
            return "running"
        return "stopped" if self.state.stop is not None else "interrupted"


@contextlib.contextmanager
def opened(paths: SweepPaths) -> Iterator[Source]:
    """Read a sweep in any state, beside a running driver too.

    Raises:
        LedgerError: when there is no ledger, or it can't be read.
    """
    driver = holder_of(paths)
    ledger = Ledger.read(paths.root)
    try:
        events = list(ledger.events())
        state = fold(events)
        yield Source(paths, ledger, events, state, _plan(paths, state), driver)
    finally:
        ledger.close()


def _plan(paths: SweepPaths, state: SweepState) -> Plan:
    try:
        return load_resolved(paths.resolved_spec) if paths.resolved_spec.is_file() else from_record(state.spec)
    except (SpecError, ValueError, KeyError, TypeError) as error:
        return _plain(state.spec, state, str(error))


def _plain(record: Mapping[str, Any], state: SweepState, why: str) -> PlainPlan:
    """From what the record says by name, else from the reports."""
    reports = [report for run in state.runs.values() for report in run.reports.values()]
    scored = {key: score for report in reports for key, score in report.scores.items()}
    named = record.get("metric")
    metric = named if isinstance(named, str) else next(iter(scored), "")
    owned = scored[metric].direction if metric in scored else "minimize"
    direction: Direction = "maximize" if record.get("direction", owned) == "maximize" else "minimize"
    reached = sorted({report.resource for report in reports})
    milestones = tuple(int(m) for m in record.get("milestones") or reached or (1,))
    said = (f"this version can't load the sweep's file: {why.strip().splitlines()[0]}",) if state.seq else ()
    return PlainPlan(metric, direction, milestones, said)


def spec_of(source: Source) -> Mapping[str, Any]:
    """The resolved spec: from the ledger, else from the file beside it; empty where neither has one."""
    if source.state.spec:
        return source.state.spec
    try:
        record = json.loads(source.paths.resolved_spec.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
