"""The other workers of a trial: actors beside its first one, in its placement group, kept warm with it and gone with it.

The first worker starts them and owns them: whatever ends it, a kill too, ends them. Each runs the same lease as its own rank;
their process group is new for every lease, found through a store that the first one serves. A worker that fails or dies ends
the lease with what it died of, not with the broken connection that the others then see.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipelines.stage import Rank, Task, WorkerLost
from sweeps.failures import Failure, classify
from sweeps.lease_thread import logged

if TYPE_CHECKING:
    from sweeps.worker import Setup

FAILED_SECONDS = 10.0
"""How long a failed worker's own account may take to arrive after the others saw it gone."""
LEAVE_SECONDS = 30.0
"""How long the others may take to leave a lease that ended."""
SELF_SECONDS = 5.0
"""How long the first worker may take to notice by itself that another one failed."""
LOOK_SECONDS = 0.5
HIRE_SECONDS = 120.0
"""How long the others may take to come; their places are reserved, so one that does not come has lost its node."""


class TeamFailed(RuntimeError):
    """Another worker of the trial failed.

    Args:
        failure: of what.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class TeamWorker:
    """A worker after the first: runs the leases that the first one runs."""

    def __init__(self, setup: Setup) -> None:
        from sweeps.worker import enter

        enter(setup)

    def node(self) -> str:
        """The Ray node that it is on."""
        return str(ray.get_runtime_context().get_node_id())

    def run(self, task: Task, log: str | None) -> Failure | None:
        """Run a lease as the task's rank; what it failed of, None where it ended well."""
        from sweeps.worker import give_back, run_lease

        failure = None
        with logged(log, task), contextlib.suppress(SystemExit):
            try:
                run_lease(task, _never_asked)
            except Exception as error:  # told to the first worker, which decides
                failure = classify(error)
                print(failure.traceback, flush=True)
        give_back()
        return failure


def _never_asked(report: Any) -> None:
    raise AssertionError("only a trial's first worker reports")


class Team:
    """The workers after the first of one that runs leases, or calls that train.

    Args:
        setup: what they are told, as the first one was.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._group = get_current_placement_group()
        self._workers: list[Any] = []
        self._runs: list[Any] = []
        self._store: Any = None
        self._host = ""

    def begin(self, task: Task, log: str | None) -> Task:
        """Start a lease on all of them; the task for the first worker.

        Raises:
            WorkerLost: when they do not come.
        """
        from pipelines.finetune.group import begin_anew

        begin_anew()
        self._hire()
        self._store, port = serve_store(self._host)
        size = len(self._workers) + 1
        seats = [replace(task, rank=Rank(index, size, self._host, port)) for index in range(size)]
        self._runs = [
            worker.run.remote(seat, _log_of(log, seat.rank.index))
            for worker, seat in zip(self._workers, seats[1:], strict=True)
        ]
        return seats[0]

    def failure(self, seconds: float = 0.0) -> Failure | None:
        """Why one of them did not end well, as `_cause` says."""
        return _cause(self._runs, seconds)

    def watch(self, tell: Callable[[Failure], None]) -> Callable[[], None]:
        """Tell when one of them fails while the first still runs. What is returned ends the watch: nothing is told after it."""
        from pipelines.finetune.group import abort

        over, telling, runs = threading.Event(), threading.Lock(), list(self._runs)

        def look() -> None:
            while not over.wait(LOOK_SECONDS):
                if any(_outcome(run) is not None for run in runs):
                    found = None if over.wait(SELF_SECONDS) else _cause(runs, LOOK_SECONDS)
                    with telling:  # else the next lease could begin in between, and be broken off
                        if found is not None and not over.is_set():
                            abort()
                            tell(found)
                    return

        def end() -> None:
            with telling:
                over.set()

        threading.Thread(target=look, name="team-watch", daemon=True).start()
        return end

    def settle(self) -> None:
        """Wait until all have left a lease that ended well; those that have not are ended."""
        runs, self._runs = self._runs, []
        if not runs:
            return
        done, late = ray.wait(runs, num_returns=len(runs), timeout=LEAVE_SECONDS)
        self._store = None
        if late or any(_outcome(run) is not None for run in done):
            self.dismiss()

    def dismiss(self) -> None:
        """End their processes; the next lease starts new ones."""
        workers, self._workers, self._runs, self._store = self._workers, [], [], None
        for worker in workers:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(worker)

    def _hire(self) -> None:
        if self._workers:
            return
        group, devices = self._group, self._setup.devices
        make = ray.remote(num_cpus=devices.cpus, num_gpus=devices.gpus, max_restarts=0)(TeamWorker)
        self._workers = [
            make.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
            ).remote(self._setup)
            for bundle in range(1, devices.workers)
        ]
        here = ray.get_runtime_context().get_node_id()
        try:
            nodes = ray.get([worker.node.remote() for worker in self._workers], timeout=HIRE_SECONDS)
        except ray.exceptions.GetTimeoutError as error:
            self.dismiss()
            raise WorkerLost(f"the trial's other workers did not come within {HIRE_SECONDS:g} s") from error
        self._host = "127.0.0.1" if all(node == here for node in nodes) else ray.util.get_node_ip_address()


@contextlib.contextmanager
def teamwork(team: Team, task: Task, log: str | None, tell: Callable[[Failure], None] | None = None) -> Iterator[Task]:
    """The first worker's task of a lease that the team runs too.

    Args:
        team: the other workers.
        task: the lease.
        log: the first worker's log.
        tell: told when another worker fails and the block goes on.

    Raises:
        TeamFailed: in place of the block's error, when another worker's failure explains it; that the others lost their
            connection explains nothing.
        WorkerLost: when the others do not come.
    """
    seat = team.begin(task, log)
    end_watch = team.watch(tell or (lambda failure: None))
    try:
        yield seat
    except SystemExit:
        raise
    except BaseException as error:
        end_watch()  # what the others see of this error must not be told before it
        if classify(error).kind in ("node", "unknown"):
            found = team.failure(FAILED_SECONDS)
            if found is not None and not _echo(found):
                raise TeamFailed(found) from error
        raise
    finally:
        end_watch()


def _echo(failure: Failure) -> bool:
    """Whether a failure is only that somebody else is gone."""
    return failure.message.startswith(WorkerLost.__name__)


def _cause(runs: Sequence[Any], seconds: float) -> Failure | None:
    """Why one of the runs did not end well, waiting so long for an account; None while nothing is known.

    A worker's own failure comes before a death, and a death before what the rest saw of it.
    """
    until = time.monotonic() + seconds
    while True:
        found = [failure for run in runs if (failure := _outcome(run)) is not None]
        telling = [failure for failure in found if failure.kind not in ("node", "unknown")]
        own = [failure for failure in found if not _echo(failure)]
        if telling or own:
            return (telling or own)[0]
        if len(found) == len(runs) or time.monotonic() >= until:
            return found[0] if found else None
        time.sleep(0.05)


def _outcome(run: Any) -> Failure | None:
    """What a run failed of; None while it goes on, and when it ended well."""
    if not ray.wait([run], timeout=0)[0]:
        return None
    try:
        failure: Failure | None = ray.get(run)
        return failure
    except ray.exceptions.RayError as error:
        return classify(error)


def serve_store(host: str) -> tuple[Any, int]:
    """A store for the process group on a free port of this address alone."""
    from torch.distributed import TCPStore

    listener = socket.socket()
    listener.bind((host, 0))
    listener.listen(256)
    port = int(listener.getsockname()[1])
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()), port


def _log_of(log: str | None, rank: int) -> str | None:
    """Beside the trial's log: `<trial>.worker-<rank>.log`."""
    return None if log is None else str(Path(log).with_suffix(f".worker-{rank}.log"))
