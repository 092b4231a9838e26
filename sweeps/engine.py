"""The loop's core: searcher, scheduler and ledger meet here, and nothing else does.

The engine is plain Python without Ray: a backend asks it for leases, hands it reports, and does what it answers. Every
answer is in the ledger before it is given, so that a fold of the ledger after a kill -9 goes on with the same decisions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from evaluators.base import Report
from sweeps.checkpoints import Checkpoints, DiskCheckpoints
from sweeps.failures import Failure, SameError, remedy
from sweeps.journal import Journal
from sweeps.keep import Keeper
from sweeps.leases import Held, LeaseDesk
from sweeps.ledger import Ledger, number
from sweeps.loop import Answer, Backend, CallFailed, Loop
from sweeps.pace import Pace
from sweeps.paths import SweepPaths
from sweeps.plan import Plan
from sweeps.rulings import on_report
from sweeps.schedulers import build_scheduler
from sweeps.searchers import build_searcher
from sweeps.standings import Standings
from sweeps.state import RunState, SweepState
from sweeps.stopping import take_request
from sweeps.trial import Lease, Run, finite

__all__ = ["Answer", "Backend", "CallFailed", "Engine", "Loop"]


class Engine:
    """The loop: a fold of the ledger so far, then one event after another.

    A retry is a new attempt from the newest whole checkpoint; a promotion keeps its attempt, unless its checkpoint is torn.
    The driver writes `driver_started` before it makes an engine, so that what a dead driver had running counts as
    interrupted. When nothing is left to do (or the hours are used up), runs that still wait are ended as `stopped`.

    Args:
        plan: the loaded sweep.
        ledger: open for writing, with `sweep_created` and `driver_started` in it.
        paths: where the sweep lies.
        slots: leases at once.
        clock: seconds since the epoch.
        checkpoints: where checkpoints lie; default: in the sweep's folder.
        keep_every: seconds (real ones) between looks at what `keep` says.

    Attributes:
        slots: leases at once; `ask` gives None beyond.
        abort: the error that stopped the sweep (`abort_after_same_error`), or None.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        paths: SweepPaths,
        slots: int,
        clock: Callable[[], float] = time.time,
        checkpoints: Checkpoints | None = None,
        keep_every: float = 1.0,
    ) -> None:
        self.slots = slots
        self.abort: Failure | None = None
        self._plan = plan
        self._ledger = ledger
        self._paths = paths
        self._clock = clock
        searcher = build_searcher(plan.spec.method, plan.space, [metric.direction for metric in plan.metrics])
        self._scheduler = build_scheduler(plan.spec.early_terminate, plan.milestones, plan.finalists)
        self._standings = Standings(plan, self._scheduler.milestones, searcher.finite)
        for event in ledger.events():
            self._standings.apply(event)
        self._journal = Journal(ledger, self._standings, clock)
        self._standings.items = self._journal.metric_items
        self._checkpoints = checkpoints or DiskCheckpoints(paths)
        self._keeper = Keeper(plan.spec, plan.finalists, self._standings, self._checkpoints)
        self._keep_every = keep_every
        self._kept_at = float("-inf")
        self._desk = LeaseDesk(
            plan,
            self._standings,
            self._journal,
            searcher,
            self._scheduler,
            self._checkpoints,
            self._keeper,
            self._invalid,
        )
        self._leases: dict[str, Held] = {}
        self._over: bool | None = None
        self._patient_until = math.inf
        self._pace = Pace(self._standings)
        scored = any(run.reports for run in self.state.runs.values())
        self._same_error = SameError(plan.spec.on_failure.abort_after_same_error, scored)
        self._settle()

    @property
    def state(self) -> SweepState:
        """The fold of the ledger, kept up with every event of this engine."""
        return self._standings.state

    @property
    def stopping(self) -> bool:
        """True once a stop was requested: running leases end at their next report, and nothing new starts."""
        return self.state.stop is not None

    @property
    def over(self) -> bool:
        """True when nothing runs and nothing can be asked any more."""
        if self._leases:
            return False
        if self._over is None:
            self._over = self.stopping or self._desk.empty
        return self._over

    def ask(self) -> Lease | None:
        """The next lease, or None: nothing for now."""
        self._watch_hours()
        if self.stopping or len(self._leases) >= self.slots:
            return None
        held = self._desk.next(self._clock())
        self._commit()
        if held is None:
            self._settle()
            return None
        self._leases[held.lease.id] = held
        return held.lease

    def report(self, lease: str, report: Report) -> Answer:
        """A report of a running lease; the answer is in the ledger when this returns.

        A report of a lease that has ended (it was stopped, or taken for stalled) is dropped and answered `stop`.
        """
        held = self._leases.get(lease)
        if held is None or held.stopped:
            return "stop"
        run, now = self.state.runs[held.lease.attempt.run.id], self._clock()
        waited, held.heard = now - held.heard, now
        if report.resource in run.reports:
            self._made_again(run, held, report)
        else:
            self._take_in(run, held, report, waited)
        if self.stopping and not held.stopped:
            self._end(run, held, "interrupted")
        self._commit()
        self._keeper.changed(run.id)
        return "stop" if held.stopped else "continue"

    def moved(self, lease: str, at: int | None) -> None:
        """A running lease gave a sign of life between two reports: nothing is written, but it is no stalled one."""
        held = self._leases.get(lease)
        if held is not None and not held.stopped:
            held.moved = self._clock()
            self.state.runs[held.lease.attempt.run.id].moved(at, held.moved)

    def ended(self, lease: str) -> None:
        """The lease ended; without a `stop` answered before, that is a failure."""
        held = self._leases.get(lease)
        if held is not None and not held.stopped:
            target = self.state.runs[held.lease.attempt.run.id].target
            self.failed(lease, Failure("unknown", f"the trial ended without reporting its milestone {target}"))
            return
        self._leases.pop(lease, None)
        self._settle()

    def failed(self, lease: str, failure: Failure) -> None:
        """The lease ended with a failure; a retry is handed out at a later `ask`, where the file allows one.

        A worker lost while the sweep is stopping was most likely ended with it: that is an interruption, not a failure.
        """
        held = self._leases.pop(lease, None)
        if held is not None and not held.stopped:
            run = self.state.runs[held.lease.attempt.run.id]
            if self.stopping and failure.kind == "node":
                self._end(run, held, "interrupted")
            else:
                self._fail(run, held, failure)
            self._commit()
            self._keeper.changed(run.id)
        self._settle()

    def stalled(self) -> list[str]:
        """Leases without a report or a sign of life for longer than `stall_after`: to be killed, and told to `failed` as `stall`."""
        bound = self._clock() - self._plan.spec.stall_after
        return [
            lease for lease, held in self._leases.items() if max(held.heard, held.moved) < bound and not held.stopped
        ]

    def held_back(self, by: str | None, priority: int = 0) -> None:
        """Keep for readers what slots stand empty for; said again and again, it is an event once."""
        if self.state.held_back != (None if by is None else (by, priority)):
            self._journal.stage("held_back", by=by, priority=priority)
            self._commit()

    def unplaced(self, leases: Sequence[str]) -> None:
        """Keep for readers which leases have no place yet; said again and again, it is an event once."""
        found = self._leases.keys() & leases
        if found != self._leases.keys() & self.state.unplaced:
            self._journal.stage("unplaced", leases=sorted(found))
            self._commit()

    @property
    def overdue(self) -> bool:
        """True once running leases have had the time that a stop gave them to their next report."""
        return self.stopping and self._clock() >= self._patient_until

    def request_stop(self, by: str, grace: float = math.inf) -> None:
        """Ask the sweep to stop: `ctrl-c`, `command` or `budget`. A second request can only shorten the grace.

        Args:
            by: who asks.
            grace: seconds that running leases may take to their next report.
        """
        self._patient_until = min(self._patient_until, self._clock() + grace)
        if not self.stopping:
            self._journal.stage("stop_requested", by=by)
            self._commit()
            self._settle()

    def tick(self) -> None:
        """Poll the stop request, watch the budget, delete checkpoints that need not stay, ship segments."""
        grace = take_request(self._paths, self.state.driver_started_at)
        if grace is not None:
            self.request_stop("command", grace)
        self._watch_hours()
        if time.monotonic() - self._kept_at >= self._keep_every:
            self._tidy()
        self._ledger.ship()

    def snapshot(self) -> dict[str, Any]:
        """How far the sweep is: trials, best so far, resource done and expected, seconds. Costs next to nothing."""
        return {
            **self._pace.record(self._scheduler.expected),
            "running": sum(not held.stopped for held in self._leases.values()),
            "slots": self.slots,
            "stopping": self.state.stop,
            "elapsed": max(0.0, self._clock() - self.state.driver_started_at),
            "elapsed_before": self.state.spent,
        }

    def drive(self, backend: Backend, shown: Loop | None = None) -> None:
        """Run what is left on a backend, if anything is, and close.

        Args:
            backend: runs leases.
            shown: a loop around this one.
        """
        try:
            if not self.over:
                backend.run(shown or self)
        finally:
            self.close()

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked it to stop, so that a resume goes on."""
        return self.state.interrupted

    def close(self) -> None:
        """Wait for deletions in the background. The ledger stays the driver's."""
        self._checkpoints.close()

    def _commit(self) -> None:
        self._over = None
        self._journal.commit()

    def _made_again(self, run: RunState, held: Held, report: Report) -> None:
        """Already in the ledger: go on. Only a checkpoint that had to be made again leaves a trace."""
        kept, attempt = run.reports[report.resource], held.lease.attempt.n
        beyond = report.resource > held.lease.from_resource
        if beyond and report.checkpoint is not None and kept.checkpoint is not None and kept.attempt != attempt:
            body = {"run": run.id, "resource": report.resource, "action": "continue", "attempt": attempt}
            self._journal.stage(
                "decided", **body, checkpoint=report.checkpoint, reason="checkpoint was lost, made again"
            )

    def _take_in(self, run: RunState, held: Held, report: Report, waited: float) -> None:
        lease, resource = held.lease, report.resource
        body: dict[str, Any] = {"lease": lease.id, "run": run.id, "attempt": lease.attempt.n, "resource": resource}
        if held.origin is not None and resource == held.origin.resource and held.origin.attempt != lease.attempt.n:
            body["checkpoint_attempt"] = held.origin.attempt
        body["scores"] = [score.record() for score in report.scores]
        body["telemetry"] = {name: number(float(value)) for name, value in report.telemetry.items()}
        self._journal.stage("reported", **body, checkpoint=report.checkpoint, worker_seconds=round(waited, 3))
        self._journal.stage_items(run.id, resource, report.scores)
        self._pace.reported(run, resource)
        if resource > run.target:
            self._fail(
                run, held, Failure("user", f"reported {resource} without a report at its milestone {run.target}")
            )
        elif resource in self._standings.milestones_of(run.trial):
            self._judge(run, held, report)

    def _judge(self, run: RunState, held: Held, report: Report) -> None:
        values = dict(zip((m.name for m in self._plan.metrics), self._standings.metrics_of(report), strict=True))
        missing = [name for name, value in values.items() if value is None]
        broken = [f"{name} is {value:g}" for name, value in values.items() if value is not None and not finite(value)]
        if missing:
            there = ", ".join([*(score.key for score in report.scores), *report.telemetry]) or "nothing"
            lacks = " and ".join(missing)
            message = f"the report at {report.resource} lacks the metric {lacks}; it has {there}"
            self._fail(run, held, Failure("user", message))
        elif broken:
            self._fail(run, held, Failure("nan", f"{' and '.join(broken)} at {report.resource}"))
        else:
            self._same_error.scored()
            self._decide(run, held, report.resource)

    def _decide(self, run: RunState, held: Held, resource: int) -> None:
        ruling = on_report(self._standings, self._scheduler, run, resource)
        action = "continue" if ruling.goes_on else "stop"
        body: dict[str, Any] = {"run": run.id, "resource": resource, "action": action, "reason": ruling.reason}
        if ruling.target is not None:
            body["target"] = ruling.target
        self._journal.stage("decided", **body)
        if not ruling.goes_on:
            finished = resource >= self._standings.milestones_of(run.trial)[-1]
            self._end(run, held, "finished" if finished else "stopped")
            if finished:
                self._run_ended(run, "finished", ruling.reason)
        for other in ruling.others:
            if other.action == "stop" and self.state.runs[other.run.id].phase == "waiting":
                self._run_ended(self.state.runs[other.run.id], "stopped", other.reason)
                self._keeper.changed(other.run.id)

    def _run_ended(self, run: RunState, state: str, reason: str) -> None:
        self._journal.stage("run_ended", run=run.id, state=state, reason=reason)
        self._checkpoints.ended(Run(run.trial, run.seed))

    def _end(self, run: RunState, held: Held, reason: str) -> None:
        self._journal.stage("lease_ended", lease=held.lease.id, run=run.id, reason=reason)
        held.stopped = True

    def _fail(self, run: RunState, held: Held, failure: Failure) -> None:
        answer = remedy(failure, self._plan.spec.on_failure, run.failures, held.lease.config)
        held.stopped = True
        body = {"lease": held.lease.id, "run": run.id, "attempt": held.lease.attempt.n, "changes": answer.changes}
        self._journal.stage("failed", **body, **_described(failure), final=not answer.retry)
        if answer.retry:
            self._desk.again(run.id)
        else:
            self._bury(run, failure)

    def _invalid(self, run: Run, failure: Failure) -> None:
        self._journal.stage("failed", lease=None, run=run.id, attempt=0, **_described(failure), final=True)
        self._bury(self.state.runs[run.id], failure)

    def _bury(self, run: RunState, failure: Failure) -> None:
        self._run_ended(run, "failed", failure.message)
        self._pace.ended(run)
        if self._same_error.too_many(failure) and not self.stopping:
            self.abort = failure
            self._journal.stage("stop_requested", by="same-error")

    def _watch_hours(self) -> None:
        hours = self._plan.spec.budget.hours
        if hours is None or self.stopping:
            return
        if self.state.spent + self._clock() - self.state.driver_started_at >= hours * 3600:
            self.request_stop("budget")

    def _settle(self) -> None:
        """Once all is done, end the runs that still wait."""
        if not self.over or self.state.stop not in (None, "budget"):
            return
        for run in self.state.runs.values():
            if run.phase in ("waiting", "interrupted", "running"):
                rung = self._standings.rung(run)
                reason = (
                    "the budget of hours was used up" if self.state.stop else self._scheduler.left_behind.format(rung)
                )
                self._run_ended(run, "stopped", reason)
                self._keeper.changed(run.id)
        self._commit()
        self._tidy()

    def _tidy(self) -> None:
        self._kept_at = time.monotonic()
        gone = self._keeper.due()
        for sized in gone:
            found = sized.checkpoint
            body = {"run": found.run, "attempt": found.attempt, "resource": found.resource, "bytes": sized.bytes}
            self._journal.stage("checkpoint_deleted", **body)
        self._commit()
        for sized in gone:
            self._checkpoints.delete(sized.checkpoint)


def _described(failure: Failure) -> dict[str, str]:
    return {"kind": failure.kind, "message": failure.message, "traceback": failure.traceback}
