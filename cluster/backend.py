"""Where a sweep's driver runs when nobody watches: backends with the same verbs, `submit`, `status`, `logs`, `cancel`, `result`.

| address | backend | what a job is |
|---|---|---|
| none, `host:port`, `auto` | `cluster.background.Background` | a process of this machine, with a Ray of its own or attached to a cluster |
| `http://HEAD:8265` | `cluster.jobs.RayJobs` | a command on the cluster's head |
| `slurm://PARTITION` | `cluster.slurm_jobs.SlurmJobs` | a batch job, which raises its cluster |
| `kuberay://NAMESPACE` | `cluster.kuberay_jobs.KubeRayJobs` | a RayJob, which raises its cluster |

An `Errand` is opaque: a backend never learns what a sweep is.
"""

from __future__ import annotations

import abc
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cluster.base import ClusterError, last_line

ADDRESS = "\0"
"""Stands in a command for the address of a cluster that is not there yet; the backend's script finds it out."""
POLL_SECONDS = 0.5
CALL_SECONDS = 60.0
"""How long a program of another system (sbatch, kubectl) may take."""

JobState = Literal["waiting", "running", "succeeded", "failed", "stopped"]
FAILED, STOPPED = 1, 130
"""Exit statuses of a job that failed, and of one that was stopped."""
INTERRUPTED = (STOPPED, -signal.SIGINT, -signal.SIGTERM)
"""How a command ends that was asked to."""


@dataclass(frozen=True)
class Job:
    """A job as its backend knows it.

    Attributes:
        id: its name there.
        state: how far it is.
        message: what the backend says of it.
        status: exit status of its command, once it has ended by itself and the backend tells; negative is a signal.
    """

    id: str
    state: JobState
    message: str = ""
    status: int | None = None

    @classmethod
    def ended(cls, id: str, status: int, message: str = "") -> Job:
        """A job whose command has ended, by how it did."""
        state: JobState = "succeeded" if status == 0 else "stopped" if status in INTERRUPTED else "failed"
        return cls(id, state, message, status)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in ("succeeded", "failed", "stopped")

    @property
    def exit_status(self) -> int:
        """What whoever followed it ends with: 0 only where it succeeded, as Slurm has a 0 for what it ended itself."""
        if self.state == "succeeded":
            return 0
        if self.status:
            return self.status if self.status > 0 else 128 - self.status
        return STOPPED if self.state == "stopped" else FAILED


@dataclass(frozen=True)
class Errand:
    """A command that is to run somewhere.

    Attributes:
        name: the job's, where the backend lets us choose; one name is taken once.
        words: the command; every backend quotes it, so nothing in it is a shell's.
        folder: travels along, and is where the command runs; None where nothing travels.
        environment: variables of the command, no secrets.
    """

    name: str
    words: Sequence[str]
    folder: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class Backend(abc.ABC):
    """A place where commands run, whether or not anybody watches.

    Attributes:
        place: what people call it.
        inside: the address of the cluster for a command that runs there; None where it raises a Ray of its own.
        every: seconds between two questions while a job is followed; schedulers of many users are asked less often.
        queues: whether a job may wait there for others to end.
    """

    place: str
    inside: str | None
    every: float = 1.0
    queues: bool = False

    @abc.abstractmethod
    def submit(self, errand: Errand) -> Job:
        """Start a command, or queue it.

        Raises:
            ClusterError: if the backend refuses it.
        """

    @abc.abstractmethod
    def status(self, job: str) -> Job:
        """How far a job is.

        Raises:
            ClusterError: if the backend doesn't know it, or doesn't answer.
        """

    @abc.abstractmethod
    def logs(self, job: str) -> str:
        """What its command has printed so far; empty before it runs.

        Raises:
            ClusterError: as `status`.
        """

    @abc.abstractmethod
    def cancel(self, job: str) -> None:
        """Ask a job to end; its driver has a moment to write what it knows. One that has ended is left alone.

        Raises:
            ClusterError: as `status`.
        """

    def result(self, job: str, seconds: float) -> Job:
        """Wait for the end of a job.

        Raises:
            ClusterError: as `status`, and where it has not ended in time.
        """
        until = time.monotonic() + seconds
        while not (found := self.status(job)).over:
            if time.monotonic() > until:
                raise ClusterError(f"the job {job} has not ended after {seconds:g} s")
            time.sleep(POLL_SECONDS)
        return found

    def follow(self, job: str) -> Iterator[str]:
        """What its command prints, as it comes in whole lines, until it has ended.

        Raises:
            ClusterError: as `status`.
        """
        shown = 0
        while True:
            over = self.status(job).over
            text = self.logs(job)
            end = len(text) if over else text.rfind("\n") + 1
            if end > shown:
                yield text[shown:end]
                shown = end
            if over:
                return
            time.sleep(self.every)


class Asked(Backend):
    """A backend whose commands see files that this machine may not see."""

    @abc.abstractmethod
    def ask(self, errand: Errand, near: str, seconds: float) -> str:
        """Run a short command where a job's files are; what it printed.

        Args:
            errand: the command.
            near: the job.
            seconds: it may take.

        Raises:
            ClusterError: if nobody is there to run it, or it takes too long.
        """

    @abc.abstractmethod
    def attend(self, errand: Errand, near: str, say: Callable[[str], None]) -> int:
        """Run a command where a job's files are until it ends, or this call is interrupted; its exit status.

        Args:
            errand: the command.
            near: the job.
            say: gets what it prints, as it comes in whole lines.

        Raises:
            ClusterError: if nobody is there to run it.
        """


def call(
    words: Sequence[str],
    whose: str,
    *,
    stdin: str | None = None,
    folder: str | None = None,
    seconds: float = CALL_SECONDS,
) -> str:
    """What a program of another system printed.

    Args:
        words: the program and its arguments; no shell reads them.
        whose: the system it is a part of, for messages.
        stdin: what it reads.
        folder: where it runs.
        seconds: it may take.

    Raises:
        ClusterError: if it is not there, fails (with the last line that it wrote), or does not end.
    """
    try:
        done = subprocess.run(
            words, input=stdin, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]} is not on the PATH: call this on a machine of {whose}") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{words[0]} has not answered after {seconds:g} s") from error
    if done.returncode:
        raise ClusterError(f"{words[0]}: {last_line(done.stderr) or last_line(done.stdout) or done.returncode}")
    return done.stdout
