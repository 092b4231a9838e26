"""What runs inside a worker process: leases and calls. It knows pipelines, not Ray and not the ledger.

A lease runs in a thread of its own and meets the driver at every report: `report` waits there until the driver says
continue, and raises `SystemExit` where it says stop. The pipeline stays loaded from lease to lease.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluators.base import Report, Score
from pipelines import build_pipeline, pipeline_key
from pipelines.custom import add_folder
from pipelines.stage import Devices, EvaluationJob, ModelSource, Pipeline, Services, Task, UserError
from sweeps.failures import Failure, classify

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep
    from sweeps.paths import SweepPaths
    from sweeps.trial import Lease

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
END_SECONDS = 30.0
"""How long a stopped lease may take to leave its pipeline before its worker is given up."""
GROWTH_BYTES = 2 * 1024**3
"""A worker is recycled when it holds more than twice what it held after its first lease, and this much more."""


@dataclass(frozen=True)
class Setup:
    """What a worker process is told once.

    Attributes:
        devices: what its trials may use.
        folder: the sweep file's folder, put on the module path.
        env: environment variables of trials, secrets already filled in; never written anywhere.
        cache: folder for converted models.
    """

    devices: Devices
    folder: str
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cache: str | None = None


@dataclass(frozen=True)
class Met:
    """What came of letting a lease go on.

    Attributes:
        kind: `reported`, `ended` (the pipeline returned) or `failed`.
        report: with `reported`.
        failure: with `failed`.
        recycle: this process should not serve another lease.
    """

    kind: Literal["reported", "ended", "failed"]
    report: Report | None = None
    failure: Failure | None = None
    recycle: bool = False


def prepare(setup: Setup) -> None:
    """Set this process up before anything heavy is imported: devices, threads, environment, module path."""
    threads = str(thread_count(setup.devices))
    for name in THREAD_VARIABLES:
        os.environ[name] = threads
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not setup.devices.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.update(setup.env)
    add_folder(setup.folder)


def thread_count(devices: Devices) -> int:
    """Threads of a trial: its CPUs, rounded down, at least one."""
    return max(1, int(devices.cpus))


def read_secret(name: str) -> str:
    """A secret by its name from this worker's environment.

    Raises:
        KeyError: when it is not there.
    """
    return os.environ[name]


def worker_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The file's `env` with `${NAME}` filled in from this process's environment: the one place where secrets are read.

    Raises:
        UserError: naming every variable that is not there.
    """
    missing = sorted({name for value in env.values() for name in _REFERENCE.findall(value) if name not in os.environ})
    if missing:
        raise UserError(f"env: {', '.join(missing)} not in the environment; export it, then submit again")
    return {key: _REFERENCE.sub(lambda found: os.environ[found[1]], value) for key, value in env.items()}


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
        devices=setup.devices,
        replay=lease.replay,
        services=services(setup),
    )


def services(setup: Setup) -> Services:
    """What pipelines get from above in this process."""
    return Services(secret=read_secret, cache=setup.cache)


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
            `evaluators` (`evaluate` entries) and, where they replace the split's own, `rows`. Devices and services are
            this worker's.
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
    )
    return WARM.get(job.config, job.devices).evaluate(job)


class LeaseThread:
    """One lease running beside the process's main thread, met at every report.

    Args:
        task: what to run.
        log: file that standard output and error go to while it runs; None leaves them.
        run: `run_lease`, or a stand-in.
    """

    def __init__(
        self, task: Task, log: str | None, run: Callable[[Task, Callable[[Report], None]], None] = run_lease
    ) -> None:
        self._task = task
        self._log = log
        self._run = run
        self._met: queue.SimpleQueue[Met] = queue.SimpleQueue()
        self._go = threading.Semaphore(0)
        self._stopped = False
        self._waiting = False
        self._thread = threading.Thread(target=self._main, name=f"lease-{task.trial}", daemon=True)
        self._thread.start()

    def next(self) -> Met:
        """Let it go on until it reports, ends or fails."""
        if self._waiting:
            self._waiting = False
            self._go.release()
        met = self._met.get()
        self._waiting = met.kind == "reported"
        return met

    def finish(self, seconds: float = END_SECONDS) -> bool:
        """Make `report` raise `SystemExit` and wait for the pipeline to leave; whether it did."""
        self._stopped = True
        self._go.release()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _report(self, report: Report) -> None:
        if not isinstance(report, Report):
            raise TypeError(f"report() takes an evaluators.base.Report, but got {type(report).__name__}")
        if not self._stopped:
            self._met.put(Met("reported", report=report))
            self._go.acquire()
        if self._stopped:
            raise SystemExit

    def _main(self) -> None:
        with _logged(self._log, self._task):
            try:
                self._run(self._task, self._report)
            except SystemExit:
                end = Met("ended")
            except BaseException as error:  # the one place where a trial may fail and the sweep goes on
                failure = classify(error)
                print(failure.traceback, end="", file=sys.stderr, flush=True)
                end = Met("failed", failure=failure, recycle=True)
            else:
                end = Met("ended")
        self._met.put(end)


@contextlib.contextmanager
def _logged(path: str | None, task: Task | None) -> Iterator[None]:
    """Append standard output and error, also of libraries in C, to a file. A file that can't be written is done without."""
    try:
        if path is None:
            raise OSError
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        yield
        return
    saved = {1: os.dup(1), 2: os.dup(2)}
    _flush()
    for stream in saved:
        os.dup2(target, stream)
    os.close(target)
    if task is not None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        head = f"--- {stamp} seed {task.seed} attempt {task.attempt} from {task.start_resource} pid {os.getpid()}\n"
        os.write(1, head.encode())
    try:
        yield
    finally:
        _flush()
        for stream, old in saved.items():
            os.dup2(old, stream)
            os.close(old)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


class LeaseWorker:
    """A worker process's leases, one after another."""

    def __init__(self, setup: Setup) -> None:
        enter(setup)
        self._setup = setup
        self._lease: LeaseThread | None = None
        self._first_bytes: int | None = None
        self._stuck = False

    def begin(self, task: Task, log: str | None) -> None:
        """End the lease before and start this one."""
        self.end()
        if not self._stuck:
            self._lease = LeaseThread(task, log)

    def next(self) -> Met:
        """Let the present lease go on until it reports, ends or fails."""
        if self._stuck or self._lease is None:
            failure = Failure("node", f"the lease before did not leave its pipeline within {END_SECONDS:g} s")
            return Met("failed", failure=failure, recycle=True)
        met = self._lease.next()
        if met.kind == "reported" and self._has_grown():
            return Met("reported", report=met.report, recycle=True)
        return met

    def end(self) -> None:
        """End the present lease, where there is one."""
        lease, self._lease = self._lease, None
        if lease is not None and not lease.finish():
            self._stuck = True

    def _has_grown(self) -> bool:
        held = resident_bytes()
        if self._first_bytes is None:
            self._first_bytes = held
        grown = held > 2 * self._first_bytes + GROWTH_BYTES
        if grown:
            print(f"this worker holds {held >> 20} MiB, {self._first_bytes >> 20} MiB at first; it will be replaced")
        return grown


def resident_bytes() -> int:
    """This process's resident memory; 0 where it can't be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class CallWorker:
    """A worker process's calls: `module:function(payload)`, with text on the way."""

    def __init__(self, setup: Setup, log: str | None) -> None:
        enter(setup)
        self._setup = setup
        self._log = log

    def call(self, function: str, payload: Mapping[str, Any]) -> tuple[Any, Failure | None]:
        """The function's result, or the failure its exception stands for."""
        PROGRESS.clear()
        module, _, name = function.partition(":")
        with _logged(self._log, None):
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
    PROGRESS.append(text)


_SETUP: list[Setup] = []


def enter(setup: Setup) -> None:
    """Make this process a worker with the given setup."""
    prepare(setup)
    _SETUP[:] = [setup]


def current_setup() -> Setup:
    """This worker's setup; what a function of `Backend.call` may use.

    Raises:
        RuntimeError: outside a worker.
    """
    if not _SETUP:
        raise RuntimeError("this process is no worker; run it through Backend.call")
    return _SETUP[0]
