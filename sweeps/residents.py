"""The memo and the resident models as Ray actors, from the driver's side: started before the first trial, ended with it.

The memo's actor is on the driver's own machine, where its SQLite lies, and is its one writer. Each host is an
asynchronous actor in front of a `LocalHost`: requests of many trials wait in it together, and leave it in batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.base import ClusterError
from pipelines.computing import RENEW_SECONDS
from pipelines.hosts import LocalHost
from pipelines.memo import Cost, Entry, LocalMemo
from pipelines.stage import Abandoned, Devices
from sweeps.failures import Failure, classify
from sweeps.host_plan import SHARED, HostPlan, HostProcess
from sweeps.lease_thread import by_lines
from sweeps.resident_clients import (
    NAMESPACE,
    Actors,
    answer_row,
    claim_row,
    error_of,
    open_hosts_client,
    open_memo_client,
)
from sweeps.worker import Setup, current_setup, enter, services

if TYPE_CHECKING:
    from sweeps.paths import SweepPaths

WAITING_AT_ONCE = 1000
"""Requests that one host holds at once."""
START_SECONDS = 180.0
HEARD_SECONDS = 3 * RENEW_SECONDS
"""A lease that waits for models is heard more often."""


class MemoActor:
    """The memo's one writer, and who was heard when."""

    def __init__(self, folder: str) -> None:
        self._memo = LocalMemo(folder)
        self._heard: dict[str, float] = {}
        self._stored = time.monotonic()

    def ready(self) -> int:
        """Its process."""
        return os.getpid()

    def serve(self, caller: str, method: str, *values: Any) -> Any:
        """A call of `Memo` for a lease, with claims and entries as plain rows."""
        self._heard[caller] = time.monotonic()
        if method == "claim":
            return [claim_row(claim) for claim in self._memo.claim(*values)]
        if method == "fulfil":
            self._stored = time.monotonic()
            rows, owner = values
            return self._memo.fulfil([Entry(key, value, Cost(*cost), kind) for key, value, cost, kind in rows], owner)
        return getattr(self._memo, method)(*values)

    def quiet(self, caller: str) -> tuple[float, float]:
        """Seconds since a lease was heard, and since anybody stored an answer."""
        now = time.monotonic()
        return now - self._heard.get(caller, float("-inf")), now - self._stored

    def close(self) -> None:
        """Close the store."""
        self._memo.close()


class HostActor:
    """A process with resident models."""

    def __init__(self, setup: Setup, log: str) -> None:
        if Path(log).parent.is_dir():  # started again: the sweep has begun
            write_to(log)
        enter(setup)
        node = os.getppid()
        given = replace(services(setup), abandoned=lambda: os.getppid() != node)
        self._host = LocalHost(setup.devices, given)

    async def log_to(self, log: str) -> None:
        """Write standard output and error there from now on."""
        write_to(log)

    async def ready(self) -> int:
        """Its process."""
        return os.getpid()

    async def ask(
        self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]
    ) -> tuple[list[tuple[Any, ...]], Failure | None]:
        """The answers as plain rows, or the failure its exception stands for."""
        try:
            answers = await asyncio.wrap_future(self._host.submit(spec, method, items, parameters))
            return [answer_row(answer) for answer in answers], None
        except Abandoned:  # the node has ended, and Ray ends its processes next: who asks sees that, and asks again
            return await asyncio.get_running_loop().create_future()
        except Exception as error:  # typed for the trial that asked
            return [], _told(error)

    async def check(self, specs: Sequence[Mapping[str, Any]]) -> Failure | None:
        """Whether endpoints answer; what is wrong with the first that does not."""
        try:
            await asyncio.to_thread(check_endpoints, specs)
        except Exception as error:  # typed for the driver
            return classify(error)
        return None


def check_endpoints(specs: Sequence[Mapping[str, Any]]) -> None:
    """Ask each endpoint once.

    Raises:
        UserError: for the first that does not answer, or refuses its key.
    """
    from pipelines.endpoint import EndpointClient

    for spec in specs:
        client = EndpointClient.of(spec, services(current_setup()))
        try:
            client.check()
        finally:
            client.close()


class Residents:
    """The actors of one driver.

    Args:
        plan: which processes; none where trials share the memo alone.
        paths: of the sweep, for the memo's place and the logs.
        setup: of its workers; the hosts get the same environment.

    Raises:
        ClusterError: when a host can't be started, or there is no room for it in time.
    """

    def __init__(self, plan: HostPlan, paths: SweepPaths, setup: Setup) -> None:
        self._paths = paths
        mark = uuid.uuid4().hex[:8]
        names = {process.name: f"{mark}-{process.name}" for process in plan.processes}
        roles = {role: name for role, name in names.items() if role != SHARED}
        self.actors = Actors(f"{mark}-memo", names.get(SHARED, ""), roles)
        self._hosts = {process.name: self._start(process, names[process.name], setup) for process in plan.processes}
        self._memo: Any = None
        try:
            ray.get([host.ready.remote() for host in self._hosts.values()], timeout=START_SECONDS)
        except ray.exceptions.RayError as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise ClusterError(f"the processes of resident models did not start: {first}") from error

    def open(self) -> None:
        """Start the memo and the hosts' logs, once the sweep has begun: nothing was written before."""
        if self._memo is not None:
            return
        for name, host in self._hosts.items():
            host.log_to.remote(str(self._paths.log(f"host-{name}")))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        named = {"name": self.actors.memo, "namespace": NAMESPACE}
        self._memo = ray.remote(MemoActor).options(**options, **named).remote(str(self._paths.memo))
        ray.get(self._memo.ready.remote(), timeout=START_SECONDS)

    def check(self, endpoints: Sequence[Mapping[str, Any]]) -> None:
        """Ask each endpoint once, from where it will be asked.

        Raises:
            UserError: for the first that does not answer, or refuses its key.
        """
        failure = ray.get(self._hosts[SHARED].check.remote(list(endpoints)))
        if failure is not None:
            raise error_of(failure)

    @property
    def memo(self) -> Callable[[str], Any]:
        """Opens the memo's client for a lease; pickles."""
        return partial(open_memo_client, self.actors)

    @property
    def hosts(self) -> Callable[[], Any]:
        """Opens the hosts' client; pickles."""
        return partial(open_hosts_client, self.actors)

    def waits(self, lease: str, seconds: float) -> bool:
        """Whether a lease that has not reported for long waits for models that get on."""
        try:
            heard, stored = ray.get(self._memo.quiet.remote(lease), timeout=5.0)
        except ray.exceptions.RayError:
            return False
        return bool(heard < HEARD_SECONDS and stored < seconds)

    def close(self) -> None:
        """End them; what was stored stays."""
        if not ray.is_initialized():
            return
        if self._memo is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._memo.close.remote(), timeout=10.0)
            ray.kill(self._memo)
        for host in self._hosts.values():
            ray.kill(host)

    def _start(self, process: HostProcess, name: str, setup: Setup) -> Any:
        devices = Devices(float(process.threads), process.gpus)
        own = Setup(devices, setup.folder, setup.env, setup.cache)
        options = {"num_cpus": process.cpus, "num_gpus": process.gpus, "max_restarts": -1}
        named = {"name": name, "namespace": NAMESPACE, "max_concurrency": WAITING_AT_ONCE}
        log = str(self._paths.log(f"host-{process.name}"))
        return ray.remote(HostActor).options(**options, **named).remote(own, log)


def _told(error: Exception) -> Failure:
    failure = classify(error)
    print(failure.traceback, end="", file=sys.stderr, flush=True)
    return failure


def write_to(log: str) -> None:
    """Standard output and error go to a log, for good; one that can't be written is done without."""
    try:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        return
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)
    by_lines()
