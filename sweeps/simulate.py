"""A backend with a virtual clock and known curves: whole sweeps in seconds, for tests and figures of scale.

It runs the same engine that Ray drives. Leases take virtual time, write virtual checkpoints, fail where they are told to,
and a sweep can be killed at any append to its ledger.

Example:
    >>> backend = SimulatedBackend(slots=4, curve=lambda config, resource, seed: config["x"] + 1 / resource)
    >>> engine = drive(plan, root, backend)
    >>> engine.snapshot()["best"]
    {'trial': '0017-5ad5ee31', 'value': 0.11, 'resource': 30}
"""

from __future__ import annotations

import heapq
import importlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.meters import Number
from evaluators.base import Direction, Report, Score, Split
from sweeps.checkpoints import Checkpoint
from sweeps.engine import Engine
from sweeps.events import Event
from sweeps.failures import Failure, classify
from sweeps.ledger import Ledger
from sweeps.loop import CallFailed, Later, Loop, Pending
from sweeps.metrics import TELEMETRY
from sweeps.paths import SweepPaths, checkpoint_name
from sweeps.plan import Plan
from sweeps.trial import Lease, Run

Curve = Callable[[Mapping[str, Any], int, int], float | None]
"""(configuration, resource, seed) -> the metric there; None for a report that lacks it."""


@dataclass(frozen=True)
class Known:
    """A further metric of a simulation: its full name (`cost/...` is telemetry), which way is better, and its curve."""

    metric: str
    direction: Direction
    curve: Curve


Faults = Callable[[Lease, int], Failure | None]
"""(lease, resource) -> a failure just before the checkpoint of that resource is written; of kind `stall` it falls silent."""


class VirtualClock:
    """Seconds since the epoch, as far as the simulation has come."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time."""
        return self.now


class Killed(BaseException):
    """Stands for kill -9 of the driver."""


class MemoryCheckpoints:
    """Checkpoints of a simulation. Outlives its drivers, as a disk does."""

    def __init__(self, paths: SweepPaths, bytes_each: int = 1000) -> None:
        self._paths = paths
        self._bytes = bytes_each
        self._kept: dict[str, dict[str, Checkpoint]] = {}
        self._torn: set[str] = set()

    def write(self, lease: Lease, resource: int) -> str:
        """One more, whole; its folder."""
        run = lease.attempt.run
        folder = str(self._paths.checkpoint(lease.attempt, resource))
        self._kept.setdefault(run.id, {})[folder] = Checkpoint(run.id, lease.attempt.n, resource, folder)
        self._torn.discard(folder)
        return folder

    def tear(self, folder: str) -> None:
        """Damage one: it is still listed, but not whole."""
        self._torn.add(folder)

    def listed(self, run: Run) -> list[Checkpoint]:
        """A run's, the highest resource first, and of equal ones the newest attempt's."""
        return sorted(self._kept.get(run.id, {}).values(), key=lambda c: (c.resource, c.attempt), reverse=True)

    def whole(self, checkpoint: Checkpoint) -> bool:
        """Whether it is there and was not torn."""
        return checkpoint.folder in self._kept.get(checkpoint.run, {}) and checkpoint.folder not in self._torn

    def size(self, checkpoint: Checkpoint) -> int:
        """The same for all."""
        return self._bytes

    def delete(self, checkpoint: Checkpoint) -> None:
        """Away with it."""
        del self._kept[checkpoint.run][checkpoint.folder]

    def ended(self, run: Run) -> None:
        """Nothing is kept between milestones."""

    def close(self) -> None:
        """Nothing goes in the background."""

    @property
    def total(self) -> int:
        """Bytes of all."""
        return self._bytes * sum(map(len, self._kept.values()))


class SimulatedBackend:
    """Executes leases in virtual time.

    Args:
        slots: leases at once.
        curve: the metric of a configuration, resource and seed.
        metric: full name of the metric.
        direction: which way is better.
        seconds: virtual seconds of one unit of resource of a configuration.
        faults: where leases fail.
        report_every: resource between reports of telemetry; None for none.
        clock: the virtual clock; hand the same one to the ledger and the engine (`drive` does).
        checkpoints: None runs pipelines that write none.
        more: further metrics.
    """

    def __init__(
        self,
        slots: int,
        curve: Curve,
        metric: str = "tune/loss",
        direction: Direction = "minimize",
        seconds: Callable[[Mapping[str, Any]], float] = lambda config: 1.0,
        faults: Faults | None = None,
        report_every: int | None = None,
        clock: VirtualClock | None = None,
        checkpoints: MemoryCheckpoints | None = None,
        more: Sequence[Known] = (),
    ) -> None:
        self._slots = slots
        self._metrics = (Known(metric, direction, curve), *more)
        self._seconds = seconds
        self._faults = faults
        self._report_every = report_every
        self.clock = clock or VirtualClock()
        self.checkpoints = checkpoints
        self._queue: list[tuple[float, int, Lease, list[int]]] = []
        self._count = itertools.count()
        self._busy: set[str] = set()

    @property
    def slots(self) -> int:
        """Leases that run at once."""
        return self._slots

    def run(self, loop: Loop) -> None:
        """Drive the loop until it is over.

        Raises:
            RuntimeError: if nothing runs, nothing is handed out, and the loop is not over: it would hang.
        """
        while True:
            loop.tick()
            while len(self._busy) < self._slots and (lease := loop.ask()) is not None:
                self._busy.add(lease.id)
                self._start(lease)
            if loop.over:
                return
            if not self._queue:
                raise RuntimeError("the loop is not over, but hands out nothing and runs nothing")
            self.clock.now, _, lease, points = heapq.heappop(self._queue)
            if points:
                self._reach(loop, lease, points)
            for stalled in loop.stalled():
                self._busy.discard(stalled)
                loop.failed(stalled, Failure("stall", "no report for too long"))

    def call(self, function: str, payload: Mapping[str, Any], on_progress: Callable[[str], None] | None = None) -> Any:
        """Run `module:function(payload)` here.

        Raises:
            CallFailed: with the typed failure.
        """
        module, _, name = function.partition(":")
        try:
            return getattr(importlib.import_module(module), name)(payload)
        except Exception as error:  # typed, as `CallWorker` does on a worker
            raise CallFailed(classify(error)) from error

    def start(self, function: str, payload: Mapping[str, Any]) -> Pending:
        """A call that is made when its result is asked for."""
        return Later(lambda on_progress: self.call(function, payload, on_progress))

    def export(self, numbers: Sequence[Number]) -> None:
        """Nobody monitors a simulation."""

    def close(self) -> None:
        """Forget what runs."""
        self._queue.clear()
        self._busy.clear()

    def _start(self, lease: Lease) -> None:
        points = list(lease.milestones)
        if self._report_every:
            total = points[-1] if points else lease.from_resource
            between = range(lease.from_resource + 1, total + 1)
            points = sorted({*points, *(r for r in between if r % self._report_every == 0)})
        if lease.replay:
            points.insert(0, lease.from_resource)
        self._schedule(lease, points, lease.from_resource)

    def _schedule(self, lease: Lease, points: list[int], resource: int) -> None:
        ahead = (points[0] - resource) * self._seconds(lease.config) if points else 0.0
        heapq.heappush(self._queue, (self.clock.now + ahead, next(self._count), lease, points))

    def _reach(self, loop: Loop, lease: Lease, points: list[int]) -> None:
        """A lease has come to its next point."""
        if lease.id not in self._busy:
            return
        resource, *rest = points
        replayed = lease.replay and resource == lease.from_resource
        failure = self._faults(lease, resource) if self._faults is not None and not replayed else None
        if failure is not None and failure.kind == "stall":
            late = self.clock.now + 1e6
            heapq.heappush(self._queue, (late, next(self._count), lease, []))
            return
        if failure is not None:
            self._busy.discard(lease.id)
            loop.failed(lease.id, failure)
            return
        if loop.report(lease.id, self._report(lease, resource, replayed)) == "continue" and rest:
            self._schedule(lease, rest, resource)
            return
        self._busy.discard(lease.id)
        loop.ended(lease.id)

    def _report(self, lease: Lease, resource: int, replayed: bool) -> Report:
        if resource not in lease.milestones and not replayed:
            return Report(resource, telemetry={"train/loss": 1.0 / resource})
        scores: list[Score] = []
        telemetry = {"cost/seconds": self.clock.now}
        for known in self._metrics:
            value = known.curve(lease.config, resource, lease.attempt.run.seed)
            split, _, name = known.metric.partition("/")
            if value is None:
                telemetry.pop(known.metric, None)
            elif split in TELEMETRY:
                telemetry[known.metric] = value
            else:
                error = 0.01 if math.isfinite(value) else math.nan
                scores.append(Score(name, _split(split), value, error, 100, 0, known.direction))
        checkpoint = None
        if self.checkpoints is not None:
            checkpoint = checkpoint_name(resource)
            if not replayed:
                self.checkpoints.write(lease, resource)
        return Report(resource, tuple(scores), telemetry, checkpoint)


def drive(
    plan: Plan,
    root: Path,
    backend: SimulatedBackend,
    kill: Callable[[Ledger], None] | None = None,
    budget: Mapping[str, Any] | None = None,
) -> Engine:
    """Submit the sweep, or resume it where its ledger is there already, and run it to its end.

    Args:
        plan: the loaded sweep.
        root: the sweep's folder.
        backend: brings the clock and the checkpoints.
        kill: arms the ledger before anything is appended (`kill_at`).
        budget: body of a `budget_changed` event to begin with; `plan` is the sweep under it.

    Returns:
        The engine as it ended.

    Raises:
        Killed: where `kill` said so; the ledger is left as a killed driver leaves it.
    """
    paths = SweepPaths(root)
    fresh = not paths.ledger.exists()
    ledger = Ledger.create(root, durable=False) if fresh else Ledger.open(root, durable=False)
    ledger.clock = backend.clock
    if kill is not None:
        kill(ledger)
    try:
        past = list(ledger.events())
        backend.clock.now = max(backend.clock.now, past[-1].time if past else 0.0)
        if not past:
            spec = plan.spec.model_dump(mode="json")
            ledger.append([Event("sweep_created", {"name": plan.spec.name, "spec": spec, "versions": {}, "space": {}})])
        changed = [] if budget is None else [Event("budget_changed", budget)]
        ledger.append([Event("driver_started", {"pid": 0, "host": "simulation", "version": ""}), *changed])
        checkpoints = backend.checkpoints or MemoryCheckpoints(paths)
        engine = Engine(plan, ledger, paths, backend.slots, backend.clock, checkpoints, keep_every=0.0)
        backend.run(engine)
        ledger.append([Event("driver_ended", {"reason": "interrupted" if engine.stopping else "finished"})])
        ledger.close()
        return engine
    except Killed:
        ledger.drop()
        backend.close()
        raise


def kill_at(append: int, written: bool) -> Callable[[Ledger], None]:
    """Arms a ledger: its append numbered `append` (from 0) raises `Killed`, before or after it is written."""

    def arm(ledger: Ledger) -> None:
        count, plain = itertools.count(), ledger.append

        def deadly(*args: Any, **kwargs: Any) -> list[Event]:
            last = next(count) == append
            if last and not written:
                raise Killed
            stored = plain(*args, **kwargs)
            if last:
                raise Killed
            return stored

        ledger.append = deadly  # type: ignore[method-assign]

    return arm


def _split(text: str) -> Split:
    splits: dict[str, Split] = {"train": "train", "tune": "tune", "select": "select", "test": "test"}
    if text not in splits:
        raise ValueError(f"a metric's split must be one of {', '.join(splits)}, but got {text!r}")
    return splits[text]
