"""Ray executes leases and calls: the backend of a driver, on Ray started here or on a cluster."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.base import ClusterError, ClusterLost, Placement, place
from cluster.local import RayCluster, connect, head_address
from cluster.meters import Meters, Number
from cluster.sharing import Claim, Sharing
from cluster.watch import HeadWatch, NodeCount
from pipelines.config import asks_models, shares_memo
from pipelines.stage import Devices
from sweeps.callers import CallActor, Callers
from sweeps.endpoints import endpoints_of
from sweeps.failures import Failure
from sweeps.host_plan import HostPlan, plan_hosts
from sweeps.interrupts import Interrupts
from sweeps.lease_thread import BEAT_SECONDS
from sweeps.loop import Loop, Pending
from sweeps.paths import SweepPaths, cache_dir, is_remote
from sweeps.residents import Residents
from sweeps.runner import TUNE_ENVIRONMENT, LeaseController
from sweeps.secret_values import know, names_of, refuse_absent, values_of
from sweeps.stopping import GRACE_SECONDS, take_request
from sweeps.trial import Lease
from sweeps.worker import CallWorker, Setup, make_task

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep
    from sweeps.spec import SweepSpec

KILL_SECONDS = 5.0
"""How long Ray may take to notice that it killed a worker."""
TICK_SECONDS = 0.2
TELL_SECONDS = 5.0
"""How long a process that hangs may take to say so before it is ended: the disk or the terminal may hang as well."""
HELD_SECONDS = 3.0
"""Readers are told who goes first, and which leases have no place, once a slot has stood empty for so long."""
_MENDS = {
    False: "set storage: to a folder that all of them share",
    True: "remote storage alone does not carry weights between nodes yet: set STOCKPOT_WORK to a folder that all of them share, or use one node",
}
"""How a folder that some nodes don't see is mended, where storage is a folder (False) or remote (True)."""


class RayBackend:
    """Leases and calls on Ray, started here or reached by its address.

    Args:
        loaded: the sweep.
        paths: where it lies.
        address: `host:port` or `auto`; None starts Ray in this process.
        on_message: told what a person should know (a first Ctrl-C).
        on_hang: told why, from a thread of its own, when this process is to be ended because it hangs in a call of Ray's.
        insecure: also a cluster that lets everybody in.

    Raises:
        ClusterError: when the cluster can't be reached, can never run one trial, or has nodes of other versions or without what
            `env` names.
        UserError: when `env` names what is not in this process's environment, which that of Ray started here is.
    """

    def __init__(
        self,
        loaded: LoadedSweep,
        paths: SweepPaths,
        address: str | None = None,
        on_message: Callable[[str], None] | None = None,
        on_hang: Callable[[str], None] = lambda why: None,
        *,
        insecure: bool = False,
    ) -> None:
        self._loaded = loaded
        self._on_hang = on_hang
        self._paths = paths
        self._say = on_message or (lambda text: None)
        self._began = time.time()
        self._callers = Callers(self._new_caller, lambda: self.slots, self._check_call, self._attached)
        self._spared: dict[str, float] = {}
        self._meters = Meters()
        if address is None:
            refuse_absent(loaded.spec.env)  # Ray that is started here has this process's environment
        know(values_of(loaded.spec.env))
        os.environ.update(TUNE_ENVIRONMENT)
        self._told_lost = False
        self._stderr = 2
        self._embedded = address is None
        self._cluster: RayCluster = self._join(address, insecure=insecure)
        self._watch = HeadWatch(self._cluster.head, self._give_up)
        odd = tuple if self._cluster.embedded else self._cluster.differences
        self._nodes = NodeCount(lambda: len(self._cluster.nodes), joined=odd)
        self._residents: Residents | None = None
        self._sharing = None if self._cluster.embedded else self._share(loaded.spec)
        self._held_at = math.inf
        self.differences: tuple[str, ...] = ()
        """In what versions the cluster's nodes differ from this machine, where they may."""
        try:
            if not self._cluster.embedded:
                self._note_versions()
                self._cluster.refuse_unset(names_of(loaded.spec.env))
            self._setup, self.placement = self._prepare()
        except BaseException:
            self._end_watching()
            self._cluster.close()
            self._watch.close()
            raise
        if self._sharing is not None:
            self._sharing.placement = self.placement

    def _join(self, address: str | None, *, insecure: bool) -> RayCluster:
        """Connect; a head that dies meanwhile is watched for, as Ray would try to reach it for a quarter of an hour."""
        if address is None:
            return connect()
        address = head_address(address)
        self._stderr = os.dup(2)  # what is printed while Ray joins is held back
        self._watch = HeadWatch(address, self._give_up)
        try:
            return connect(address, insecure=insecure)
        finally:
            self._watch.close()
            os.close(self._stderr)
            self._stderr = 2

    def _share(self, spec: SweepSpec) -> Sharing:
        """Tell the cluster's other drivers of this one; resident models wait for their places from the start."""
        return Sharing(Claim(spec.name, spec.priority, waiting=asks_models(spec.pipeline)), lambda: self._cluster.nodes)

    def _note_versions(self) -> None:
        """Raise where nodes have versions that no sweep may begin with, and say in what else they differ from this machine."""
        self.differences = self._cluster.differences()
        for line in self.differences:
            self._say(f"versions: {line}")

    def _prepare(self) -> tuple[Setup, Placement]:
        """What workers are told and get; resident models are started first, where the pipeline asks them."""
        spec, nodes = self._loaded.spec, self._cluster.nodes
        beat_seconds = min(BEAT_SECONDS, self._loaded.spec.stall_after / 4)
        setup = Setup(Devices(), str(self._loaded.folder), spec.env, str(cache_dir()), beat_seconds=beat_seconds)
        if not asks_models(spec.pipeline):
            wanted = spec.resources
            placement = place(nodes, wanted.cpus, wanted.gpus_each, spec.max_concurrent_trials, wanted.together)
            setup = replace(setup, devices=Devices(placement.cpus, placement.gpus, placement.workers))
            if shares_memo(spec.pipeline):
                self._residents = Residents(HostPlan((), placement), self._paths, setup)
                setup = replace(setup, memo=self._residents.memo)
            return setup, placement
        plan = plan_hosts(spec, nodes)
        if plan.note:
            self._say(plan.note)
        self._residents = Residents(plan, self._paths, setup)
        self._residents.check(endpoints_of(self._loaded))
        devices = Devices(plan.placement.cpus, plan.placement.gpus)
        memo, hosts = self._residents.memo, self._residents.hosts
        return replace(setup, devices=devices, memo=memo, hosts=hosts), plan.placement

    def refuse_unseen(self, folder: Path) -> None:
        """Raise where the cluster has several nodes and not all of them read and write the folder of sweeps.

        Raises:
            ClusterError: naming them.
        """
        if len(self._cluster.nodes) < 2:
            return
        from cluster.doctor import unseen

        bad = unseen(folder)
        if bad:
            raise ClusterError(
                f"{'; '.join(bad)}: trials there could not hand over their checkpoints. Every node must mount {folder} at the same "
                f"path; {_MENDS[is_remote(self._loaded.spec.storage)]}"
            )

    @property
    def slots(self) -> int:
        """Leases that run at once."""
        return self.placement.slots

    def run(self, loop: Loop) -> None:
        """Drive the loop until it is over.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, when running leases have ended or were killed; at once after the
                second one.
            ClusterLost: when the cluster's head does not answer any more.
        """
        self._callers.close()  # leases need what idle workers of calls hold
        self._open_memo()
        interrupts = Interrupts()
        with interrupts.caught(), self._attached():
            controller = LeaseController(loop, self.placement, self._spawn, str(self._cluster.folder / "tune"))
            ticked, asked, overdue = 0.0, False, math.inf
            while not controller.is_finished() and time.monotonic() < overdue + KILL_SECONDS:
                controller.step()
                now = time.monotonic()
                if now - ticked >= TICK_SECONDS:
                    ticked = now
                    self._tick(loop, controller)
                if interrupts.count and not asked:
                    asked = True
                    self._ask_to_end(loop)
                if loop.overdue:
                    overdue = min(overdue, now)
                    for lease in list(controller.search.running):
                        controller.kill(lease, Failure("node", "ended with the grace of a stop"))
            controller.cleanup()
        if self._sharing is not None:
            self._sharing.tell(waiting=False, placed=0)
        if interrupts.count:
            raise KeyboardInterrupt

    def call(self, function: str, payload: Mapping[str, Any], on_progress: Callable[[str], None] | None = None) -> Any:
        """Run `module:function(payload)` on a warm worker with a trial's resources and return its result.

        Raises:
            CallFailed: with the typed failure; the next call gets a fresh worker.
            ClusterLost: when the cluster's head does not answer any more.
        """
        return self.start(function, payload).result(on_progress)

    def start(self, function: str, payload: Mapping[str, Any]) -> Pending:
        """Begin a call on a free warm worker, or on a new one while there are fewer than slots; else wait for one."""
        self._open_memo()
        return self._callers.start(function, payload)

    def export(self, numbers: Sequence[Number]) -> None:
        """Hand numbers to Ray, whose nodes serve them to Prometheus."""
        self._meters.show(numbers)

    def close(self) -> None:
        """End workers and hosts, and Ray where it was started here."""
        if not self._watch.lost:
            self._callers.close()
            if self._residents is not None:
                self._residents.close()
        self._end_watching()
        with self._watch.bounded():
            self._cluster.close()
        self._watch.close()

    def _end_watching(self) -> None:
        self._nodes.close()
        if self._sharing is not None:
            self._sharing.close()

    def _new_caller(self, number: int) -> CallActor:
        placed = self.placement
        options: dict[str, Any] = {"num_cpus": placed.cpus, "num_gpus": placed.gpus, "max_concurrency": 2}
        log = str(self._paths.log("calls" if number == 0 else f"calls-{number}"))
        if placed.workers == 1:
            actor = ray.remote(**options)(CallWorker).remote(self._setup, log)
            return CallActor(actor, ready=actor.__ray_ready__.remote())
        group = ray.util.placement_group([{"CPU": placed.cpus, "GPU": placed.gpus}] * placed.workers, strategy="PACK")
        first = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        actor = ray.remote(**options, scheduling_strategy=first)(CallWorker).remote(self._setup, log)
        return CallActor(actor, group, actor.__ray_ready__.remote())

    def _spawn(self, lease: Lease) -> dict[str, Any]:
        task = make_task(self._loaded, self._paths, lease, self._setup)
        return {"setup": self._setup, "task": task, "log": str(self._paths.log(lease.attempt.run.trial))}

    def _ask_to_end(self, loop: Loop) -> None:
        loop.request_stop("ctrl-c", GRACE_SECONDS)
        self._say(f"stopping: running trials end at their next report, or in {GRACE_SECONDS:g} s; again ends at once")

    def _tick(self, loop: Loop, controller: LeaseController) -> None:
        self._refuse_lost()
        for line in self._nodes.news():
            self._say(line)
        loop.tick()
        if loop.stopping:
            controller.withdraw(Failure("node", "the sweep stopped before there was a place"))
        loop.unplaced(controller.unplaced(HELD_SECONDS))
        self._let_others_go_first(loop, controller)
        seconds = self._loaded.spec.stall_after
        for lease in loop.stalled():
            if controller.age(lease) > seconds and not self._waits(lease, seconds):
                controller.kill(
                    lease, Failure("stall", f"no report and no sign of life for {seconds:g} s (stall_after)")
                )

    def _let_others_go_first(self, loop: Loop, controller: LeaseController) -> None:
        """Start nothing while another sweep goes first; what a slot stands empty for is told once it has for a while."""
        if self._sharing is None:
            return
        waits = controller.waits and not loop.stopping
        self._sharing.tell(waits, controller.placed)
        first, now = self._sharing.first, time.monotonic()
        controller.hold_back(first is not None)
        empty = (waits or first is not None) and not loop.stopping and controller.placed < self.slots
        self._held_at = min(self._held_at, now) if empty else math.inf
        if now - self._held_at > HELD_SECONDS:
            loop.held_back(*(("", 0) if first is None else (first.sweep, first.priority)))
        elif not empty:
            loop.held_back(None)

    def _check_call(self) -> None:
        """Raise where a call need not be waited for: the head is gone, or somebody asked for a stop."""
        self._refuse_lost()
        if take_request(self._paths, self._began) is not None:
            raise KeyboardInterrupt("command")
        if self._sharing is not None:
            self._sharing.tell(self._callers.waits, self._callers.placed)

    def _refuse_lost(self) -> None:
        """Raise ClusterLost when the head is gone; else Ray would end this process in the middle of something."""
        if self._watch.lost:
            self._told_lost = True
            self._watch.close()  # it would end the process while the end is written and shown
            raise self._lost()

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        """Raise ClusterLost where this process's own node has ended. Ray says so by a plain OSError without a number.

        Those of the system have one, and those of libraries and of tasks that failed are of classes of their own.
        """
        try:
            yield
        except OSError as error:
            if type(error) is not OSError or error.errno is not None:
                raise
            self._watch.severed = True
            self._refuse_lost()

    def _give_up(self) -> None:
        """End this process, which hangs in a call to a head that is gone; the ledger is as whole as after a kill -9."""
        told = threading.Thread(target=self._tell_hang, name="last-words", daemon=True)
        told.start()
        told.join(TELL_SECONDS)
        os._exit(130)

    def _tell_hang(self) -> None:
        lost = self._lost()
        self._on_hang(str(lost))
        if not self._told_lost:
            os.write(self._stderr, f"stockpot: {lost}; {lost.mend}\n".encode())

    def _lost(self) -> ClusterLost:
        silence = f"has not answered for {self._watch.silent:.0f} s"
        if self._watch.severed and not self._embedded:
            node = f"this machine's node of the Ray cluster ({self._watch.address}) has ended"
            return ClusterLost(node, "start it, or the cluster, again, then resume the sweep")
        if self._embedded:
            return ClusterLost(f"Ray, which this command had started here, {silence}: something ended it")
        head = f"the head of the Ray cluster ({self._watch.address}) {silence}"
        return ClusterLost(head, "raise one again, then resume the sweep")

    def _open_memo(self) -> None:
        if self._residents is not None:
            self._residents.open()

    def _waits(self, lease: str, seconds: float) -> bool:
        """Whether a silent lease waits for resident models that get on; asked now and then."""
        if self._residents is None:
            return False
        now = time.monotonic()
        if now >= self._spared.get(lease, 0.0):
            if not self._residents.waits(lease, seconds):
                return False
            self._spared[lease] = now + min(10.0, seconds)
        return True
