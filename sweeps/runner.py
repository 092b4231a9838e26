"""Ray executes leases: the only module that knows Ray Tune.

A Ray Tune trial is one lease. The search adapter hands a lease out when a slot is free, the scheduler adapter gives the
loop every report and does what it answers. Tune is never the truth: it keeps no checkpoint, no log and no state of its
own (`Tuner.restore` is not used), it starts workers, keeps them warm and notices when they die.

The adapters hang on `TuneController` directly, one layer below `Tuner.fit`: so the loop can tick, stop and kill, no
signal handler is taken over, and nothing is pickled to disk. This leans on Ray's developer interfaces, which is why the
version of Ray is pinned; `tests/slow/test_ray_backend.py` holds what is used here to what it must do.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment, Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import SearchAlgorithm
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.base import ClusterError, Placement, place
from cluster.local import RayCluster, connect
from cluster.meters import Meters, Number
from pipelines.config import asks_models, shares_memo
from pipelines.stage import Devices
from sweeps.callers import CallActor, Callers
from sweeps.endpoints import endpoints_of
from sweeps.failures import Failure, classify
from sweeps.host_plan import HostPlan, plan_hosts
from sweeps.interrupts import Interrupts
from sweeps.lease_thread import Met
from sweeps.loop import Loop, Pending
from sweeps.paths import SweepPaths, cache_dir, is_remote
from sweeps.residents import Residents
from sweeps.trial import Lease
from sweeps.worker import CallWorker, LeaseWorker, Setup, make_task, worker_environment

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

GRACE_SECONDS = 10.0
"""How long running leases may take to their next report after the first Ctrl-C."""
KILL_SECONDS = 5.0
"""How long Ray may take to notice that it killed a worker."""
TICK_SECONDS = 0.2
TRAINABLE = "stockpot-lease"
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "60",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
Spawn = Callable[[Lease], dict[str, Any]]
_MENDS = {
    False: "set storage: to a folder that all of them share",
    True: "remote storage alone does not carry weights between nodes yet: set STOCKPOT_WORK to a folder that all of them share, or use one node",
}
"""How a folder that some nodes don't see is mended, where storage is a folder (False) or remote (True)."""


class LeaseTrainable(tune.Trainable):
    """A worker as Tune knows it: `reset` begins a lease, `train` lets it go on to its next report."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the process and begin its first lease."""
        self._worker = LeaseWorker(config["setup"])
        self._worker.begin(config["task"], config["log"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next lease; what could not be ended is told by the next `step`."""
        self._worker.begin(new_config["task"], new_config["log"])
        return True

    def step(self) -> dict[str, Any]:
        """The lease's next report or its end."""
        return {"met": self._worker.next()}

    def cleanup(self) -> None:
        """End the present lease, and what works beside it."""
        self._worker.close()


class LeaseSearch(SearchAlgorithm):
    """Tune asks it for trials; it asks the loop for a lease, only when a slot is free."""

    def __init__(self, loop: Loop, slots: int, spawn: Spawn, experiment: Experiment, resources: Any) -> None:
        self._loop = loop
        self._slots = slots
        self._spawn = spawn
        self._experiment = experiment
        self._resources = resources
        self.running: dict[str, Trial] = {}
        """Leases handed out and not ended."""

    def next_trial(self) -> Trial | None:
        """A Tune trial for the next lease, or None: nothing for now."""
        if len(self.running) >= self._slots:
            return None
        lease = self._loop.ask()
        if lease is None:
            return None
        trial = Trial(
            TRAINABLE,
            config=self._spawn(lease),
            trial_id=lease.id,
            experiment_tag=lease.id,
            storage=self._experiment.storage,
            placement_group_factory=self._resources,
            trial_dirname_creator=lambda trial: trial.trial_id,
        )
        self.running[lease.id] = trial
        return trial

    def is_finished(self) -> bool:
        """Whether no lease will come any more."""
        return self._loop.over


class LeaseScheduler(FIFOScheduler):
    """Tune tells it every report; the loop decides."""

    def __init__(self, loop: Loop, search: LeaseSearch) -> None:
        super().__init__()
        self._loop = loop
        self._running = search.running
        self.recycle: set[str] = set()
        """Leases whose worker must not serve another one."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Nothing to choose: every trial handed out starts."""
        return None

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """A report, an end or a failure of a lease."""
        met: Met = result["met"]
        lease = trial.trial_id
        if met.recycle:
            self.recycle.add(lease)
        if met.kind == "reported" and met.report is not None:
            if self._loop.report(lease, met.report) == "continue":
                return self.CONTINUE
            self._forget(lease)
            self._loop.ended(lease)
        elif met.kind == "ended":
            self._forget(lease)
            self._loop.ended(lease)
        else:
            self._forget(lease)
            self._loop.failed(lease, met.failure or Failure("unknown", "the worker gave no reason"))
        return self.STOP

    def lost(self, lease: str, failure: Failure) -> None:
        """The worker of a lease died, or was killed."""
        if self._forget(lease):
            self._loop.failed(lease, failure)

    def _forget(self, lease: str) -> bool:
        return self._running.pop(lease, None) is not None


class LeaseController(TuneController):
    """Tune's own loop with three changes: it writes no state, keeps one warm worker a slot, and can kill a lease."""

    def __init__(self, loop: Loop, placement: Placement, spawn: Spawn, folder: str) -> None:
        tune.register_trainable(TRAINABLE, LeaseTrainable)
        experiment = Experiment(f"sweep-{uuid.uuid4().hex[:8]}", TRAINABLE, storage_path=folder)
        bundles = [{"CPU": placement.cpus, "GPU": placement.gpus}] * placement.workers
        resources = PlacementGroupFactory(bundles, strategy="PACK")
        self.search = LeaseSearch(loop, placement.slots, spawn, experiment, resources)
        self.scheduler = LeaseScheduler(loop, self.search)
        self._killed: dict[str, Failure] = {}
        self._began: dict[str, float] = {}
        super().__init__(
            search_alg=self.search, scheduler=self.scheduler, storage=experiment.storage, reuse_actors=True
        )
        self.update_max_pending_trials(placement.slots)
        self._actor_cache.increase_max(resources, placement.slots)

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        """Nothing is saved: the ledger is the truth."""

    def kill(self, lease: str, failure: Failure) -> None:
        """End a lease's worker at once; the loop is told `failure`."""
        trial = self.search.running.get(lease)
        actor = trial.temporary_state.ray_actor if trial is not None else None
        if actor is not None:
            self._killed[lease] = failure
            ray.kill(actor)

    def age(self, lease: str) -> float:
        """Seconds since the lease's worker was ready; 0 while it is starting."""
        now = time.monotonic()
        return now - self._began.get(lease, now)

    def _actor_started(self, tracked_actor: Any, log: str = "STARTED") -> None:
        """From here on a lease can stall."""
        self._began[self._actor_to_trial[tracked_actor].trial_id] = time.monotonic()
        super()._actor_started(tracked_actor, log)

    def _update_trial_queue(self, blocking: bool = False, timeout: int = 600) -> bool:
        """Never wait for the search: the loop must tick."""
        return super()._update_trial_queue(blocking=False, timeout=timeout)

    def _maybe_reuse_cached_actor(self, trial: Trial) -> bool:
        """A trial whose own worker is starting waits for that one: the free worker is for the next lease."""
        if trial in self._trial_to_actor:
            return trial in self._resetting_trials
        return super()._maybe_reuse_cached_actor(trial)

    def _maybe_cache_trial_actor(self, trial: Trial) -> bool:
        """A worker after an error, or one that has grown, is not kept."""
        if trial.trial_id in self.scheduler.recycle:
            self.scheduler.recycle.discard(trial.trial_id)
            return False
        return super()._maybe_cache_trial_actor(trial)

    def _process_trial_failure(self, trial: Trial, exception: Exception) -> None:
        """A worker died: the loop gets the typed failure, and a retry is its business."""
        failure = self._killed.pop(trial.trial_id, None) or classify(exception)
        super()._process_trial_failure(trial, exception)
        self.scheduler.lost(trial.trial_id, failure)


class RayBackend:
    """Leases and calls on Ray, started here or reached by its address.

    Args:
        loaded: the sweep.
        paths: where it lies.
        address: `host:port` or `auto`; None starts Ray in this process.
        on_message: told what a person should know (a first Ctrl-C).

    Raises:
        ClusterError: when the cluster can't be reached, or can never run one trial.
    """

    def __init__(
        self,
        loaded: LoadedSweep,
        paths: SweepPaths,
        address: str | None = None,
        on_message: Callable[[str], None] | None = None,
    ) -> None:
        self._loaded = loaded
        self._paths = paths
        self._say = on_message or (lambda text: None)
        self._callers = Callers(self._new_caller, lambda: self.slots)
        self._spared: dict[str, float] = {}
        self._meters = Meters()
        env = worker_environment(loaded.spec.env)
        os.environ.update(TUNE_ENVIRONMENT)
        self._cluster: RayCluster = connect(address)
        self._residents: Residents | None = None
        try:
            self._setup, self.placement = self._prepare(env)
        except BaseException:
            self._cluster.close()
            raise

    def _prepare(self, env: Mapping[str, str]) -> tuple[Setup, Placement]:
        """What workers are told and get; resident models are started first, where the pipeline asks them."""
        spec, nodes = self._loaded.spec, self._cluster.nodes
        setup = Setup(Devices(), str(self._loaded.folder), env, str(cache_dir()))
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
        """
        self._callers.close()  # leases need what idle workers of calls hold
        self._open_memo()
        interrupts = Interrupts()
        with interrupts.caught():
            controller = LeaseController(loop, self.placement, self._spawn, str(self._cluster.folder / "tune"))
            ticked, stage = 0.0, 0
            while not controller.is_finished():
                controller.step()
                now = time.monotonic()
                if now - ticked >= TICK_SECONDS:
                    ticked = now
                    self._tick(loop, controller)
                if interrupts.count:
                    stage = self._wind_down(loop, controller, now - interrupts.at, stage)
                if stage == 3:
                    break
            controller.cleanup()
        if interrupts.count:
            raise KeyboardInterrupt

    def call(self, function: str, payload: Mapping[str, Any], on_progress: Callable[[str], None] | None = None) -> Any:
        """Run `module:function(payload)` on a warm worker with a trial's resources and return its result.

        Raises:
            CallFailed: with the typed failure; the next call gets a fresh worker.
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
        self._callers.close()
        if self._residents is not None:
            self._residents.close()
        self._cluster.close()

    def _new_caller(self, number: int) -> CallActor:
        placed = self.placement
        options: dict[str, Any] = {"num_cpus": placed.cpus, "num_gpus": placed.gpus, "max_concurrency": 2}
        log = str(self._paths.log("calls" if number == 0 else f"calls-{number}"))
        if placed.workers == 1:
            return CallActor(ray.remote(**options)(CallWorker).remote(self._setup, log))
        group = ray.util.placement_group([{"CPU": placed.cpus, "GPU": placed.gpus}] * placed.workers, strategy="PACK")
        first = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        return CallActor(ray.remote(**options, scheduling_strategy=first)(CallWorker).remote(self._setup, log), group)

    def _spawn(self, lease: Lease) -> dict[str, Any]:
        task = make_task(self._loaded, self._paths, lease, self._setup)
        return {"setup": self._setup, "task": task, "log": str(self._paths.log(lease.attempt.run.trial))}

    def _wind_down(self, loop: Loop, controller: LeaseController, since: float, stage: int) -> int:
        """After the first Ctrl-C, `since` seconds ago: ask (1), kill at the end of the grace (2), give up (3)."""
        if stage == 0:
            loop.request_stop("ctrl-c")
            self._say(
                f"stopping: running trials end at their next report, or in {GRACE_SECONDS:g} s; again ends at once"
            )
            return 1
        if stage == 1 and since > GRACE_SECONDS:
            for lease in list(controller.search.running):
                controller.kill(lease, Failure("node", "killed at the end of the grace after Ctrl-C"))
            return 2
        return 3 if stage == 2 and since > GRACE_SECONDS + KILL_SECONDS else stage

    def _tick(self, loop: Loop, controller: LeaseController) -> None:
        loop.tick()
        seconds = self._loaded.spec.stall_after
        for lease in loop.stalled():
            if controller.age(lease) > seconds and not self._waits(lease, seconds):
                controller.kill(lease, Failure("stall", f"no report for {seconds:g} s (stall_after)"))

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
