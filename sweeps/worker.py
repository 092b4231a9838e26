"""What runs inside a worker process: leases and calls. It knows pipelines, not Ray and not the ledger.

A lease runs in a thread of its own and meets the driver at every report: `report` waits there until the driver says
continue, and raises `SystemExit` where it says stop. The pipeline stays loaded from lease to lease.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.base import Report, Score
from pipelines import build_pipeline, pipeline_key
from pipelines.custom import add_folder
from pipelines.stage import Devices, EvaluationJob, ModelSource, Pipeline, Services, Task, UserError
from sweeps.failures import Failure, classify
from sweeps.lease_thread import BEAT_SECONDS, END_SECONDS, LeaseThread, Met, logged
from sweeps.secret_values import absent, filled_in, know, masked, read_secret, values_of

if TYPE_CHECKING:
    from pipelines.calls import Host
    from pipelines.memo import Memo
    from sweeps.load import LoadedSweep
    from sweeps.paths import SweepPaths
    from sweeps.team import Team
    from sweeps.trial import Lease

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GROWTH_BYTES = 2 * 1024**3
"""A worker is recycled when it holds more than twice what it held after its first lease, and this much more."""


@dataclass(frozen=True)
class Setup:
    """What a worker process is told once.

    Attributes:
        devices: what its trials may use.
        folder: the sweep file's folder, put on the module path.
        env: environment variables of trials, as the file has them: secrets are named, and each worker reads its own node's.
        cache: folder for converted models.
        memo: opens the memo's client for a caller; None where the pipeline asks no model through it.
        hosts: opens the client of resident models; None keeps them in this process.
        beat_seconds: so long without a report, a lease that gives signs of life is told of.
    """

    devices: Devices
    folder: str
    env: Mapping[str, str] = field(default_factory=dict)
    cache: str | None = None
    memo: Callable[[str], Memo] | None = None
    hosts: Callable[[], Host] | None = None
    beat_seconds: float = BEAT_SECONDS


def prepare(setup: Setup) -> None:
    """Set this process up before anything heavy is imported: devices, threads, environment, module path.

    Raises:
        UserError: where this process's environment lacks what `env` names.
    """
    missing = absent(setup.env)
    if missing:
        raise UserError(
            f"{', '.join(missing)} not in the environment that Ray was started in on {socket.gethostname()}; export it there and "
            "start the node again"
        )
    env = filled_in(setup.env)
    know(values_of(setup.env))
    threads = str(thread_count(setup.devices))
    for name in THREAD_VARIABLES:
        os.environ[name] = threads
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if setup.devices.workers > 1:  # while a process group forms, c10d warns of ports that are not there yet
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not setup.devices.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.update(env)
    add_folder(setup.folder)


def thread_count(devices: Devices) -> int:
    """Threads of a trial: its CPUs, rounded down, at least one."""
    return max(1, int(devices.cpus))


def make_task(loaded: LoadedSweep, paths: SweepPaths, lease: Lease, setup: Setup) -> Task:
    """A lease as the pipeline sees it."""
    attempt, when = lease.attempt, loaded.timetable
    return Task(
        config=lease.config,
        trial=attempt.run.trial,
        seed=attempt.run.seed,
        attempt=attempt.n,
        folder=str(paths.attempt(attempt)),
        milestones=lease.milestones,
        total=loaded.total_of(lease.config),
        start=lease.from_checkpoint,
        start_resource=lease.from_resource,
        rung_evaluators=when.rung,
        end_evaluators=when.end,
        report_every=loaded.spec.report_every,
        checkpoint_seconds=loaded.spec.checkpoint_seconds,
        devices=setup.devices,
        replay=lease.replay,
        services=services(setup, lease.id),
        judge=loaded.judge,
        energy=loaded.spec.resources.energy.model_dump(),
    )


def services(setup: Setup, caller: str = "call") -> Services:
    """What pipelines get from above in this process.

    Args:
        setup: the process's.
        caller: the lease, or whatever else asks.
    """
    memo = None if setup.memo is None else partial(setup.memo, caller)
    return Services(memo=memo, hosts=setup.hosts, secret=read_secret, cache=setup.cache)


class WarmPipelines:
    """The newest pipeline, kept while configurations ask for the same one."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._pipeline: Pipeline | None = None

    def get(self, config: Mapping[str, Any], devices: Devices) -> Pipeline:
        """The pipeline for a configuration; torch, once loaded, is held to the trial's threads."""
        key = pipeline_key(config)
        if self._pipeline is None or key != self._key:
            self._pipeline = None
            self._pipeline, self._key = build_pipeline(config), key
        limit_torch(devices)
        return self._pipeline


WARM = WarmPipelines()
"""One a process: what makes the next lease or evaluation cheap."""


def limit_torch(devices: Devices) -> None:
    """Hold torch, where it is loaded, to the trial's threads in the calling thread."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(thread_count(devices))


def run_lease(task: Task, report: Callable[[Report], None]) -> None:
    """Run one lease; returns or raises `SystemExit` when it ended well.

    Raises:
        BaseException: whatever the pipeline raises.
    """
    WARM.get(task.config, task.devices).run(task, report)


def evaluate(payload: Mapping[str, Any]) -> tuple[Score, ...]:
    """Score given weights: the function `sweeps.worker:evaluate` of `Backend.call`.

    Args:
        payload: `config` (a trial's resolved configuration), `model` (`ModelSource` or its fields), `split`,
            `evaluators` (`evaluate` entries) and, where there are any, `judge` and `rows` that replace
            the split's own, and `samples` (a folder). Devices and services are this worker's.
    """
    setup = current_setup()
    model = payload["model"]
    job = EvaluationJob(
        config=payload["config"],
        model=model if isinstance(model, ModelSource) else ModelSource(**model),
        split=payload["split"],
        evaluators=tuple(payload["evaluators"]),
        devices=setup.devices,
        services=services(setup),
        rows=payload.get("rows"),
        judge=payload.get("judge"),
        samples=payload.get("samples"),
    )
    return WARM.get(job.config, job.devices).evaluate(job)


def probe(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a RAG configuration's latency: the function `sweeps.worker:probe` of `Backend.call`.

    Args:
        payload: `config` (resolved).
    """
    from pipelines.rag.probe import probe as measure

    setup = current_setup()
    return measure(payload["config"], services(setup), setup.devices)


def run_together(
    task: Task,
    report: Callable[[Report], None],
    log: str | None = None,
    tell: Callable[[Failure], None] | None = None,
) -> None:
    """Run one lease with the workers beside this one, where there are any; as `run_lease`.

    Args:
        task: the lease.
        report: as the pipeline gets it, on this worker alone.
        log: this worker's log; the others write beside it.
        tell: told when another worker fails and this one does not come to an end by itself.
    """
    team = current_team()
    if team is None:
        run_lease(task, report)
        return
    from sweeps.team import teamwork

    with teamwork(team, task, log, tell) as seat:
        run_lease(seat, report)


class LeaseWorker:
    """A worker process's leases, one after another; where trials have several workers, the first one of them."""

    def __init__(self, setup: Setup) -> None:
        self._refused = entered(setup)
        self._setup = setup
        self._team = None if self._refused else current_team()
        self._lease: LeaseThread | None = None
        self._first_bytes: int | None = None
        self._stuck = False
        self._grown = False

    def begin(self, task: Task, log: str | None) -> None:
        """End the lease before and start this one."""
        self.end()
        if not self._stuck and self._refused is None:
            self._lease = LeaseThread(
                task, log, partial(run_together, log=log, tell=self._break), self._setup.beat_seconds
            )

    def next(self) -> Met:
        """Let the present lease go on; see `LeaseThread.next`."""
        if self._refused is not None:
            return Met("failed", failure=self._refused, recycle=True)
        if self._stuck or self._lease is None:
            failure = Failure("node", f"the lease before did not leave its pipeline within {END_SECONDS:g} s")
            return Met("failed", failure=failure, recycle=True)
        met = self._lease.next()
        return replace(met, recycle=True) if self._grown else met

    def end(self) -> None:
        """End the present lease, where there is one."""
        lease, self._lease = self._lease, None
        if lease is not None:
            if lease.broken and self._team is not None:
                self._team.dismiss()  # what the lease waits for then breaks
            self._stuck = not lease.finish()
            if self._team is not None:
                self._team.settle()
            self._grown = self._has_grown()

    def _break(self, failure: Failure) -> None:
        if self._lease is not None:
            self._lease.fail(failure)

    def close(self) -> None:
        """End the present lease, and the workers beside this one."""
        self.end()
        if self._team is not None:
            self._team.dismiss()

    def _has_grown(self) -> bool:
        """Whether, between two leases, the process keeps much more than after its first one.

        Every lease has a thread, and with it a heap, of its own; what it freed there would stay until the process ends.
        """
        trim()
        held = resident_bytes()
        if self._first_bytes is None:
            self._first_bytes = held
        limit = 2 * self._first_bytes + GROWTH_BYTES
        if held > limit:
            give_back()
            held = resident_bytes()
        return held > limit


def give_back() -> None:
    """Give memory that nothing uses back to the system."""
    gc.collect()
    trim()


def trim() -> None:
    """Give free pages of the C library's heaps back to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """This process's resident memory; 0 where it can't be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class CallWorker:
    """A worker process's calls: `module:function(payload)`, with text on the way."""

    def __init__(self, setup: Setup, log: str | None) -> None:
        self._refused = entered(setup)
        self._setup = setup
        self._log = log

    def call(self, function: str, payload: Mapping[str, Any]) -> tuple[Any, Failure | None]:
        """The function's result, or the failure its exception stands for."""
        PROGRESS.clear()
        if self._refused is not None:
            return None, self._refused
        module, _, name = function.partition(":")
        with logged(self._log, None):
            try:
                limit_torch(self._setup.devices)
                return getattr(importlib.import_module(module), name)(payload), None
            except BaseException as error:  # typed for the driver, which decides
                failure = classify(error)
                print(failure.traceback, end="", file=sys.stderr, flush=True)
                return None, failure

    def poll(self, since: int) -> list[str]:
        """Texts of the present call from the number `since` on."""
        return PROGRESS[since:]


PROGRESS: list[str] = []
"""Texts of the present call."""


def progress(text: str) -> None:
    """Say how far a call is; the driver's `on_progress` gets it."""
    PROGRESS.append(masked(text))


_SETUP: list[Setup] = []
_TEAM: list[Team] = []


def enter(setup: Setup) -> None:
    """Make this process a worker with the given setup; raises as `prepare`."""
    prepare(setup)
    _SETUP[:] = [setup]
    _TEAM.clear()


def entered(setup: Setup) -> Failure | None:
    """As `enter`; what this node lacks for it, where it does: another node may have it."""
    try:
        enter(setup)
    except UserError as error:
        return Failure("node", str(error))
    return None


def current_team() -> Team | None:
    """The workers beside this one, where a trial has several."""
    setup = current_setup()
    if setup.devices.workers > 1 and not _TEAM:
        from sweeps.team import Team

        _TEAM.append(Team(setup))
    return _TEAM[0] if _TEAM else None


def current_setup() -> Setup:
    """This worker's setup; what a function of `Backend.call` may use.

    Raises:
        RuntimeError: outside a worker.
    """
    if not _SETUP:
        raise RuntimeError("this process is no worker; run it through Backend.call")
    return _SETUP[0]
