"""Slurm's batch jobs as a backend: a job raises its own Ray cluster and takes it down again (`cluster.slurm` has the script).

Source: Slurm's manuals of sbatch, squeue, sacct and scancel (22.05).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from cluster.backend import ADDRESS, STOPPED, Backend, Errand, Job, JobState, call
from cluster.base import ClusterError
from cluster.demand import Demand
from cluster.slurm import log_name, sbatch

_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}
_ENDED: dict[str, JobState] = {"COMPLETED": "succeeded", "CANCELLED": "stopped"}


class SlurmJobs(Backend):
    """Batch jobs of one sweep.

    Args:
        demand: the machines; its folder must be on a file system that all nodes share.
        partition: Slurm's; its default where empty.
    """

    place = "Slurm"
    inside = ADDRESS
    every, queues = 10.0, True

    def __init__(self, demand: Demand, partition: str = "") -> None:
        self._demand = demand
        self._partition = partition or None

    def submit(self, errand: Errand) -> Job:
        """Queue a command; the environment that this is called in, secrets included, is the job's. See `Backend.submit`."""
        script = sbatch(self._demand, self._partition, errand.words)
        told = call(["sbatch", "--parsable", "--export=ALL"], self.place, stdin=script, folder=self._demand.folder)
        return Job(told.strip().partition(";")[0], "waiting")  # `;CLUSTER` follows where there are several

    def status(self, job: str) -> Job:
        """See `Backend.status`. A job that has left the queue is in the accounts."""
        with contextlib.suppress(ClusterError):  # "Invalid job id specified" some minutes after the end
            queued = call(["squeue", "--noheader", "--format=%T|%r", f"--jobs={job}"], self.place).strip()
            if queued:
                state, _, reason = queued.splitlines()[0].partition("|")
                return Job(job, _state(state), state if reason in ("", "None") else f"{state}: {reason}")
        asked = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=State,ExitCode", f"--jobs={job}"]
        line = call(asked, self.place).strip().partition("\n")[0]
        if not line:
            raise ClusterError(f"Slurm knows no job {job}")
        state, _, ended = line.partition("|")
        status = int(ended.partition(":")[0] or 0)
        found = "stopped" if status == STOPPED else _state(state.partition(" ")[0])
        return Job(job, found, state, status if found in ("succeeded", "failed", "stopped") else None)

    def logs(self, job: str) -> str:
        """See `Backend.logs`."""
        try:
            file = Path(self._demand.folder) / log_name(self._demand, job)
            return file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def cancel(self, job: str) -> None:
        """See `Backend.cancel`."""
        if not self.status(job).over:
            call(["scancel", job], self.place)


def _state(state: str) -> JobState:
    if state in _WAITING:
        return "waiting"
    if state in _RUNNING:
        return "running"
    return _ENDED.get(state, "failed")
