"""Ray Jobs: a command that runs on a cluster's head, whether or not anybody watches.

The address is the dashboard's, `http://head:8265`. A cluster that answers without a token is refused: whoever reaches it runs
programs on it. Nothing secret goes into a job: its entrypoint and environment can be read by everybody who has the token.

Source: Ray 2.60's `ray.job_submission`.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.base import ClusterError
from cluster.token import read_token

LARGEST_BYTES = 90 * 1024**2
"""Of what travels with a job; Ray's dashboard refuses 100 MiB."""
REACH_SECONDS = 10.0
POLL_SECONDS = 0.5

JobState = Literal["waiting", "running", "succeeded", "failed", "stopped"]
_STATES: dict[str, JobState] = {
    "PENDING": "waiting",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it.

    Attributes:
        id: its name there.
        state: how far it is.
        message: what the cluster says of it.
        status: exit status of its command, once it has ended by itself.
    """

    id: str
    state: JobState
    message: str = ""
    status: int | None = None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in ("succeeded", "failed", "stopped")


class RayJobs:
    """The jobs of one cluster.

    Args:
        address: `http://host:port` of its dashboard.
        insecure: also where it lets everybody in.

    Raises:
        ClusterError: if nobody answers, the token is not the cluster's, or it asks for none.
    """

    def __init__(self, address: str, *, insecure: bool = False) -> None:
        self.address = address.rstrip("/")
        token = read_token(os.environ)
        refuse_open(self.address, token, insecure=insecure)
        try:
            from ray.job_submission import JobSubmissionClient

            for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
                logging.getLogger(name).setLevel(logging.WARNING)
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            self._client = JobSubmissionClient(self.address, headers=headers)
        except (ImportError, RuntimeError, ConnectionError) as error:
            raise ClusterError(f"can't use Ray Jobs at {self.address}: {_first(error)}") from error

    def submit(self, words: Sequence[str], job: str, folder: Path | None, environment: Mapping[str, str]) -> str:
        """Start a command on the head; returns the job's name.

        Args:
            words: the command; quoted here, so nothing in it is the shell's.
            job: its name; one name is taken once.
            folder: travels along, and is where the command runs.
            environment: variables of the command, no secrets.

        Raises:
            ClusterError: if the cluster refuses it.
        """
        runtime: dict[str, Any] = {"env_vars": dict(environment)}
        if folder is not None:
            runtime["working_dir"] = str(folder)
        try:
            name: str = self._client.submit_job(entrypoint=shlex.join(words), submission_id=job, runtime_env=runtime)
        except (RuntimeError, ValueError) as error:
            raise ClusterError(f"{self.address} refuses the job: {_first(error)}") from error
        return name

    def status(self, job: str) -> Job:
        """How far a job is.

        Raises:
            ClusterError: if the cluster doesn't know it, or doesn't answer.
        """
        try:
            info = self._client.get_job_info(job)
        except (RuntimeError, OSError) as error:
            raise ClusterError(f"{self.address} says nothing of the job {job}: {_first(error)}") from error
        return Job(job, _STATES[str(info.status.value)], info.message or "", info.driver_exit_code)

    def logs(self, job: str) -> str:
        """What its command has printed so far.

        Raises:
            ClusterError: as `status`.
        """
        try:
            text: str = self._client.get_job_logs(job)
        except (RuntimeError, OSError) as error:
            raise ClusterError(f"{self.address} has no log of the job {job}: {_first(error)}") from error
        return text

    def follow(self, job: str, every: float = 1.0) -> Iterator[str]:
        """What its command prints, as it comes, until it has ended.

        The log is asked for again and again: Ray's own stream may end while the job runs (ray#60665).

        Raises:
            ClusterError: as `status`.
        """
        shown = 0
        while True:
            over = self.status(job).over
            text = self.logs(job)
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)
            if over:
                return
            time.sleep(every)

    def cancel(self, job: str) -> None:
        """Ask a job to end; its driver has a moment to write what it knows.

        Raises:
            ClusterError: as `status`.
        """
        try:
            self._client.stop_job(job)
        except (RuntimeError, OSError) as error:
            raise ClusterError(f"{self.address} does not stop the job {job}: {_first(error)}") from error

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


def is_jobs_address(address: str | None) -> bool:
    """Whether an address means Ray Jobs."""
    return address is not None and address.startswith(("http://", "https://"))


def refuse_open(address: str, token: str | None, *, insecure: bool) -> None:
    """Check who is let in.

    Raises:
        ClusterError: if nobody answers, it is no dashboard, the token is wrong, or none is asked for.
    """
    status, body = _get(f"{address}/api/version", None)
    if status == 200:
        if "ray_version" not in body:
            raise ClusterError(f"{address} is no Ray dashboard; give http://HEAD:8265")
        if not insecure:
            raise ClusterError(
                f"{address} lets everybody in: whoever reaches it runs programs there. Start the cluster with a token "
                "(stockpot cluster up does, docs/guides/deploying.md), or say --insecure"
            )
        return
    if token is None:
        raise ClusterError(
            f"{address} asks for a token, and there is none here: set RAY_AUTH_TOKEN_PATH, or copy the cluster's to "
            "~/.stockpot/ray-token"
        )
    status, _ = _get(f"{address}/api/version", token)
    if status in (401, 403):
        raise ClusterError(
            f"{address} does not take the token that is here; copy the cluster's to ~/.stockpot/ray-token"
        )
    if status != 200:
        raise ClusterError(f"{address} answers {status}; is it the head's dashboard (usually port 8265)?")


def _get(url: str, token: str | None) -> tuple[int, dict[str, Any]]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=REACH_SECONDS) as answer:
            body = answer.read(1 << 16)
            try:
                found = json.loads(body)
            except ValueError:
                found = {}
            return int(answer.status), found if isinstance(found, dict) else {}
    except urllib.error.HTTPError as error:
        return error.code, {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ClusterError(
            f"can't reach {url.removesuffix('/api/version')}: {reason}; is it the head's dashboard (usually port 8265)?"
        ) from error


def _first(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
