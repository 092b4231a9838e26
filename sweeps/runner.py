"""Leases as Ray Tune's trials: the only module that knows Ray Tune.

A Ray Tune trial is one lease. The search adapter hands a lease out when a slot is free, the scheduler adapter gives the
loop every report and does what it answers. Tune is never the truth: it keeps no checkpoint, no log and no state of its
own (`Tuner.restore` is not used), it starts workers, keeps them warm and notices when they die.

The adapters hang on `TuneController` directly, one layer below `Tuner.fit`: so the loop can tick, stop and kill, no
signal handler is taken over, and nothing is pickled to disk. This leans on Ray's developer interfaces, which is why the
version of Ray is pinned; `tests/slow/test_ray_backend.py` holds what is used here to what it must do.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.air.execution import PlacementGroupResourceManager
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment, Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import SearchAlgorithm
from ray.util.placement_group import placement_group_table

from cluster.base import Node, Placement, holds
from sweeps.elsewhere import Elsewhere
from sweeps.failures import Failure, classify
from sweeps.lease_actors import LeaseActors
from sweeps.lease_thread import Met
from sweeps.loop import Loop
from sweeps.trial import Lease
from sweeps.worker import LeaseWorker

READY_SECONDS = 120.0
"""How long a worker may take to start, or to take up its next lease, before that counts as silence."""
FREE_SECONDS = 1.0
"""A lease that has waited for a place for so long waits for others to end: Ray gives away a free place within a second."""
PLACE_SECONDS = 5.0
"""How long a lease waits for a place of its own before it takes a worker that another one has left."""
ELSEWHERE_SECONDS = 3.0
"""How long a lease waits for a place off the nodes that its run was lost on; then any will do."""
NODE_LABEL = "ray.io/node-id"
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
        """The lease's next report, sign of life, or its end."""
        return {"met": self._worker.next()}

    def cleanup(self) -> None:
        """End the present lease, and what works beside it."""
        self._worker.close()


class LeaseSearch(SearchAlgorithm):
    """Tune asks it for trials; it asks the loop for a lease, only when a slot is free."""

    def __init__(
        self, loop: Loop, slots: int, spawn: Spawn, experiment: Experiment, resources: Any, elsewhere: Elsewhere
    ) -> None:
        self._loop = loop
        self._slots = slots
        self._spawn = spawn
        self._experiment = experiment
        self._resources = resources
        self._elsewhere = elsewhere
        self.running: dict[str, Trial] = {}
        """Leases handed out and not ended."""
        self.held = False
        """Whether no lease is to begin for now."""

    def next_trial(self) -> Trial | None:
        """A Tune trial for the next lease, or None: nothing for now."""
        if self.held or len(self.running) >= self._slots:
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
        self._elsewhere.begun(lease.id, lease.attempt.run.id)
        return trial

    def is_finished(self) -> bool:
        """Whether no lease will come any more."""
        return self._loop.over


class LeaseScheduler(FIFOScheduler):
    """Tune tells it every report; the loop decides."""

    def __init__(self, loop: Loop, search: LeaseSearch, elsewhere: Elsewhere) -> None:
        super().__init__()
        self._loop = loop
        self._running = search.running
        self._elsewhere = elsewhere
        self.recycle: set[str] = set()
        """Leases whose worker must not serve another one."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Nothing to choose: every trial handed out starts."""
        return None

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """A report, a sign of life, an end or a failure of a lease."""
        met: Met = result["met"]
        lease = trial.trial_id
        if met.recycle:
            self.recycle.add(lease)
        if met.kind == "reported" and met.report is not None:
            if self._loop.report(lease, met.report) == "continue":
                return self.CONTINUE
            self._forget(lease)
            self._loop.ended(lease)
        elif met.kind == "moved":
            self._loop.moved(lease, met.at)
            return self.CONTINUE
        elif met.kind == "ended":
            self._forget(lease)
            self._loop.ended(lease)
        else:
            failure = met.failure or Failure("unknown", "the worker gave no reason")
            self._forget(lease, failure)
            self._loop.failed(lease, failure)
        return self.STOP

    def lost(self, lease: str, failure: Failure) -> None:
        """The worker of a lease died, or was killed."""
        if self._forget(lease, failure):
            self._loop.failed(lease, failure)

    def _forget(self, lease: str, failure: Failure | None = None) -> bool:
        self._elsewhere.ended(lease, failure)
        return self._running.pop(lease, None) is not None


class LeaseController(TuneController):
    """Tune's own loop with four changes: it writes no state, keeps one warm worker a slot, can kill a lease, and avoids the nodes that a run was lost on."""

    def __init__(self, loop: Loop, placement: Placement, spawn: Spawn, folder: str) -> None:
        tune.register_trainable(TRAINABLE, LeaseTrainable)
        experiment = Experiment(f"sweep-{uuid.uuid4().hex[:8]}", TRAINABLE, storage_path=folder)
        self._placement = placement
        self._resources = resources = _asked_for(placement)
        self._elsewhere = Elsewhere()
        self._places: dict[Any, frozenset[str]] = {}
        self.search = LeaseSearch(loop, placement.slots, spawn, experiment, resources, self._elsewhere)
        self.scheduler = LeaseScheduler(loop, self.search, self._elsewhere)
        self._killed: dict[str, Failure] = {}
        self._began: dict[str, float] = {}
        self._asked: dict[Trial, float] = {}
        super().__init__(
            search_alg=self.search, scheduler=self.scheduler, storage=experiment.storage, reuse_actors=True
        )
        self._actor_manager = LeaseActors(resource_manager=PlacementGroupResourceManager())
        self.update_max_pending_trials(placement.slots)
        self._actor_cache.increase_max(resources, placement.slots)

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        """Nothing is saved: the ledger is the truth."""

    def kill(self, lease: str, failure: Failure) -> None:
        """End a lease at once, its worker or its wait for a place; the loop is told `failure`."""
        worker, trial = self._worker(lease), self.search.running.get(lease)
        if worker is not None and lease not in self._killed:
            self._killed[lease] = failure
            ray.kill(worker)
        elif trial is not None and self._has_no_place(trial):
            self._leave_queue(trial)
            self._schedule_trial_stop(trial)
            self.scheduler.lost(lease, failure)

    def age(self, lease: str) -> float:
        """Seconds since the lease's worker was ready; 0 while it waits for a place or comes, which may take `READY_SECONDS`."""
        now = time.monotonic()
        if self._worker(lease) is None:
            return 0.0
        return max(0.0, now - self._began.setdefault(lease, now + READY_SECONDS))

    @property
    def placed(self) -> int:
        """Workers that have a place, busy or not."""
        return int(self._actor_manager.num_live_actors)

    @property
    def waits(self) -> bool:
        """Whether a lease has waited for a place for longer than Ray takes to give one."""
        return bool(self.unplaced(FREE_SECONDS))

    def unplaced(self, seconds: float) -> list[str]:
        """Leases that have waited for a place for so long, and have none."""
        since = time.monotonic() - seconds
        return [one.trial_id for one, asked in self._asked.items() if asked < since and self._has_no_place(one)]

    def hold_back(self, held: bool) -> None:
        """Begin nothing, keep no free worker and ask for no place, until told otherwise; called again and again."""
        self.search.held = held
        if not held:
            return
        self._cleanup_cached_actors(force_all=True)
        for trial in [trial for trial in self._trial_to_actor if self._has_no_place(trial)]:
            self._leave_queue(trial)
            self._pending_trials_list.append(trial)

    def withdraw(self, failure: Failure) -> None:
        """End the leases that have no place; the loop is told `failure`."""
        for lease, trial in list(self.search.running.items()):
            if self._has_no_place(trial):
                self.kill(lease, failure)

    def _has_no_place(self, trial: Trial) -> bool:
        return trial in self._pending_trials and self._worker(trial.trial_id) is None

    def _leave_queue(self, trial: Trial) -> None:
        """Ask Ray no longer for a place for a trial that has none."""
        own = self._trial_to_actor.pop(trial, None)
        if own is not None:
            del self._actor_to_trial[own]
            self._remove_actor(own)
        if trial in self._staged_trials:
            self._unstage_trial_with_resources(trial)

    def _worker(self, lease: str) -> Any:
        """The actor of a lease, ready or not; None while there is no place for one."""
        trial = self.search.running.get(lease)
        own = self._trial_to_actor.get(trial) if trial is not None else None
        if own is None or not self._actor_manager.is_actor_started(own):
            return None
        return self._actor_manager._live_actors_to_ray_actors_resources[own][0]

    def _actor_started(self, tracked_actor: Any, log: str = "STARTED") -> None:
        """From here on a lease can stall."""
        self._began[self._actor_to_trial[tracked_actor].trial_id] = time.monotonic()
        super()._actor_started(tracked_actor, log)

    def _update_trial_queue(self, blocking: bool = False, timeout: int = 600) -> bool:
        """Never wait for the search: the loop must tick."""
        return super()._update_trial_queue(blocking=False, timeout=timeout)

    def _schedule_trial_actor(self, trial: Trial) -> None:
        """From here on a lease waits for a place.

        Tune asks for what stands in the trial, and keeps free workers by it: one that was asked for elsewhere is one like any other.
        """
        self._asked.setdefault(trial, time.monotonic())
        wanted = self._wanted(trial.trial_id)
        if wanted is not self._resources:
            trial.init_local_path()
            if self._take_free(trial):
                return
        trial.placement_group_factory = wanted
        try:
            super()._schedule_trial_actor(trial)
        finally:
            trial.placement_group_factory = self._resources

    def _wanted(self, lease: str) -> PlacementGroupFactory:
        """A place for a lease: off the nodes that it avoids, where the others can hold it at all."""
        avoided = self._elsewhere.avoided(lease)
        if not avoided:
            return self._resources
        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        others = [Node(has.get("CPU", 0.0), has.get("GPU", 0.0)) for node, has in alive.items() if node not in avoided]
        if not avoided & alive.keys() or not holds(others, self._placement):
            self._elsewhere.anywhere(lease)
            return self._resources
        return _asked_for(self._placement, avoided)

    def _take_free(self, trial: Trial) -> bool:
        """Give a lease a free worker that stands on none of the nodes that it avoids; whether there was one."""
        free = self._actor_cache._cached_objects[self._resources]
        avoided = self._elsewhere.avoided(trial.trial_id)
        good = next((own for own in free if not avoided & self._places.get(own, frozenset())), None)
        if good is None:
            return False
        free.remove(good)
        free.insert(0, good)
        return bool(super()._maybe_reuse_cached_actor(trial))

    def _note_places(self) -> None:
        """Keep where workers stand while they live: nobody says so of dead ones."""
        live = self._actor_manager._live_actors_to_ray_actors_resources
        self._places = {own: self._places.get(own) or _nodes_of(held) for own, (_, held) in live.items()}
        self._elsewhere.stand(
            {self._actor_to_trial[own].trial_id: at for own, at in self._places.items() if own in self._actor_to_trial}
        )

    def _maybe_add_actors(self) -> None:
        """Leases that wait for a place in vain, as a node was lost, take free workers before new leases do.

        Else they would wait for ever: warm workers keep their places. Those that avoid a node take one elsewhere at once.
        """
        self._note_places()
        if self.search.held:
            return
        self._asked = {trial: since for trial, since in self._asked.items() if trial in self._pending_trials}
        now = time.monotonic()
        for trial, since in self._asked.items():
            if self._worker(trial.trial_id) is not None:
                continue
            if not self._elsewhere.avoided(trial.trial_id):
                if since < now - PLACE_SECONDS:
                    super()._maybe_reuse_cached_actor(trial)
            elif not self._take_free(trial) and since < now - ELSEWHERE_SECONDS:
                self._elsewhere.anywhere(trial.trial_id)
                self._leave_queue(trial)
                self._pending_trials_list.append(trial)
        super()._maybe_add_actors()

    def _maybe_reuse_cached_actor(self, trial: Trial) -> bool:
        """A trial whose own worker is starting waits for that one: the free worker is for the next lease."""
        if trial in self._trial_to_actor:
            return trial in self._resetting_trials
        return super()._maybe_reuse_cached_actor(trial)

    def _maybe_cache_trial_actor(self, trial: Trial) -> bool:
        """A worker after an error, one that has grown, and one whose place another sweep waits for, is not kept."""
        if self.search.held:
            return False
        if trial.trial_id in self.scheduler.recycle:
            self.scheduler.recycle.discard(trial.trial_id)
            return False
        return super()._maybe_cache_trial_actor(trial)

    def _process_trial_failure(self, trial: Trial, exception: Exception) -> None:
        """A worker died: the loop gets the typed failure, and a retry is its business."""
        failure = self._killed.pop(trial.trial_id, None) or classify(exception)
        super()._process_trial_failure(trial, exception)
        self.scheduler.lost(trial.trial_id, failure)


def _asked_for(placement: Placement, avoided: frozenset[str] = frozenset()) -> PlacementGroupFactory:
    """What Tune asks Ray for: the workers of one trial, on none of the nodes to avoid."""
    bundles = [{"CPU": placement.cpus, "GPU": placement.gpus}] * placement.workers
    if not avoided:
        return PlacementGroupFactory(bundles, strategy="PACK")
    off = {NODE_LABEL: f"!in({','.join(sorted(avoided))})"}
    return PlacementGroupFactory(bundles, strategy="PACK", bundle_label_selector=[off] * placement.workers)


def _nodes_of(held: Any) -> frozenset[str]:
    """The nodes (ids) on which a worker, and those beside it, have their places."""
    return frozenset(placement_group_table(held.placement_group)["bundles_to_node_id"].values())
