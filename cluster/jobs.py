"""Ray Jobs: a command that runs on a cluster's head, whether or not anybody watches.

The address is the dashboard's, `http://head:8265`. A cluster that answers without a token is refused: whoever reaches it runs
programs on it. Nothing secret goes into a job: its entrypoint and environment can be read by everybody who has the token.

Source: Ray 2.60's `ray.job_submission`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.backend import Asked, Errand, Job, JobState
from cluster.base import ClusterError, reason
from cluster.packages import CODE, code_hash, not_unpacked, pack, stage
from cluster.token import no_token, open_door, read_token, wrong_token

LARGEST_BYTES = 90 * 1024**2
"""Of what travels with a job; Ray's dashboard refuses 100 MiB."""
REACH_SECONDS = 10.0
_PREAMBLE = re.compile(
    r"(.*\tINFO job_manager\.py:\d+ -- Runtime env is setting up\.\n)?(Running entrypoint for job .*\n)?"
)
"""What Ray itself writes at the beginning of a job's log."""

_STATES: dict[str, JobState] = {
    "PENDING": "waiting",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


class RayJobs(Asked):
    """The jobs of one cluster.

    Args:
        address: `http://host:port` of its dashboard.
        insecure: also where it lets everybody in.

    Raises:
        ClusterError: if nobody answers, the token is not the cluster's, or it asks for none.
    """

    inside = "auto"

    def __init__(self, address: str, *, insecure: bool = False) -> None:
        self.address = self.place = address.rstrip("/")
        token = read_token(os.environ)
        refuse_open(self.address, token, insecure=insecure)
        try:
            from ray.job_submission import JobSubmissionClient

            for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
                logging.getLogger(name).setLevel(logging.WARNING)
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            self._client = JobSubmissionClient(self.address, headers=headers)
        except (ImportError, RuntimeError, ConnectionError) as error:
            raise ClusterError(f"can't use Ray Jobs at {self.address}: {reason(error)}") from error

    def submit(self, errand: Errand) -> Job:
        """Start a command on the head, with our packages; see `Backend.submit`."""
        with tempfile.TemporaryDirectory(prefix="stockpot-") as own:
            runtime: dict[str, Any] = {"env_vars": {**errand.environment, CODE: code_hash()}}
            runtime["py_modules"] = stage(Path(own) / "code")
            if errand.folder is not None:
                runtime["working_dir"] = str(pack(errand.folder, Path(own) / "files.zip"))
            try:
                job: str = self._client.submit_job(
                    entrypoint=shlex.join(errand.words), submission_id=errand.name, runtime_env=runtime
                )
            except (RuntimeError, ValueError, OSError) as error:
                raise ClusterError(f"{self.address} refuses the job: {reason(error)}") from error
        return Job(job, "waiting")

    def status(self, job: str) -> Job:
        """See `Backend.status`."""
        try:
            info = self._client.get_job_info(job)
        except (RuntimeError, OSError) as error:
            raise ClusterError(f"{self.address} says nothing of the job {job}: {reason(error)}") from error
        message = info.message or ""
        if message.startswith("runtime_env setup failed"):
            message = f"the head {not_unpacked(message)}"
        if info.driver_exit_code is not None:
            return Job.ended(job, info.driver_exit_code, message)
        return Job(job, _STATES[str(info.status.value)], message)

    def logs(self, job: str) -> str:
        """See `Backend.logs`. Asked for again and again by `follow`: Ray's own stream may end while the job runs (ray#60665)."""
        try:
            text: str = self._client.get_job_logs(job)
        except (RuntimeError, OSError) as error:
            raise ClusterError(f"{self.address} has no log of the job {job}: {reason(error)}") from error
        return _PREAMBLE.sub("", text, count=1)

    def cancel(self, job: str) -> None:
        """See `Backend.cancel`."""
        try:
            self._client.stop_job(job)
        except (RuntimeError, OSError) as error:
            raise ClusterError(f"{self.address} does not stop the job {job}: {reason(error)}") from error

    def ask(self, errand: Errand, near: str, seconds: float) -> str:
        """A short job on the head, wherever the other one is; see `Asked.ask`."""
        job = self.submit(errand)
        self.result(job.id, seconds)
        return self.logs(job.id)

    def attend(self, errand: Errand, near: str, say: Callable[[str], None]) -> int:
        """A job on the head that goes on until it ends or nobody reads what it says; see `Asked.attend`."""
        job = self.submit(errand)
        try:
            for text in self.follow(job.id):
                say(text)
        except BaseException:
            with contextlib.suppress(ClusterError):
                self.cancel(job.id)
            raise
        return self.status(job.id).exit_status


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
            raise ClusterError(open_door(address))
        return
    if token is None:
        raise ClusterError(no_token(address))
    status, _ = _get(f"{address}/api/version", token)
    if status in (401, 403):
        raise ClusterError(wrong_token(address))
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
