"""KubeRay's RayJobs as a backend: a job raises its own cluster, which goes with it (`cluster.kuberay` has the manifest).

Everything goes through `kubectl`, with whatever context and rights its user has there. What is asked of a running job is run in its
head's pod. A job is cancelled by `suspend`: KubeRay would answer the end of its driver with a new cluster (`backoffLimit`).

Source: KubeRay 1.6, `ray-operator/apis/ray/v1/rayjob_types.go` and `rayjob_controller.go`.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from cluster.backend import Asked, Errand, Job, JobState, call
from cluster.base import ClusterError
from cluster.demand import Demand
from cluster.kuberay import rayjob, secret_name

SUSPEND = '{"spec":{"suspend":true}}'
_DEPLOYED: dict[str, JobState] = {
    "Running": "running",
    "Failed": "failed",
    "ValidationFailed": "failed",
    "Suspending": "stopped",
    "Suspended": "stopped",
}
_ENDED: dict[str, JobState] = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped"}


class KubeRayJobs(Asked):
    """RayJobs of one sweep.

    Args:
        demand: the machines.
        volume: name of the PersistentVolumeClaim that holds data and `storage`.
        namespace: Kubernetes'; the context's where empty.
    """

    inside = "auto"
    every, queues = 5.0, True

    def __init__(self, demand: Demand, volume: str, namespace: str = "") -> None:
        self.place = f"KubeRay{f' in {namespace}' if namespace else ''}"
        self._demand, self._volume = demand, volume
        self._kubectl = ["kubectl", *(["--namespace", namespace] if namespace else [])]

    def submit(self, errand: Errand) -> Job:
        """Apply the manifest; see `Backend.submit`.

        Raises:
            ClusterError: also where secrets that the sweep names are in no Secret yet.
        """
        if self._demand.secrets:
            self._refuse_missing(secret_name(self._demand))
        name = f"{self._demand.label[:33].rstrip('-')}-{secrets.token_hex(3)}"
        text = rayjob(dataclasses.replace(self._demand, job=name), self._volume, words=errand.words)
        self._call(["apply", "-f", "-"], stdin=text)
        return Job(name, "waiting")

    def status(self, job: str) -> Job:
        """See `Backend.status`."""
        told = self._status(job)
        deployed, ran = str(told.get("jobDeploymentStatus", "")), str(told.get("jobStatus", ""))
        state = _ENDED.get(ran, "running") if deployed == "Complete" else _DEPLOYED.get(deployed, "waiting")
        words = [word for word in (deployed or "New", told.get("reason"), told.get("message")) if word]
        return Job(job, state, ": ".join(map(str, words)))

    def logs(self, job: str) -> str:
        """What the pod that submitted the command has seen of it; see `Backend.logs`."""
        if self.status(job).state == "waiting":
            return ""
        return self._call(["logs", f"job/{job}", "--tail=-1"])

    def cancel(self, job: str) -> None:
        """See `Backend.cancel`."""
        if not self.status(job).over:
            self._call(["patch", "rayjob", job, "--type=merge", "-p", SUSPEND])

    def ask(self, errand: Errand, near: str, seconds: float) -> str:
        """A command in the head's pod; see `Asked.ask`."""
        return call([*self._there(near), *_with(errand)], self.place, seconds=seconds)

    def attend(self, errand: Errand, near: str, say: Callable[[str], None]) -> int:
        """A command in the head's pod; see `Asked.attend`."""
        with subprocess.Popen([*self._there(near), *_with(errand)], stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            try:
                for line in running.stdout:
                    say(line)
            except BaseException:
                running.terminate()
                raise
        return Job.ended(near, running.returncode).exit_status

    def _there(self, job: str) -> list[str]:
        """The words before a command that is to run in the pod of a job's head."""
        cluster = self._status(job).get("rayClusterName")
        labels = f"ray.io/cluster={cluster},ray.io/node-type=head"
        pods = [] if not cluster else self._call(["get", "pods", "-l", labels, "-o", "name"]).split()
        if not pods:
            raise ClusterError(
                f"the cluster of {job} is not there, and nobody else sees the volume {self._volume}: with storage: s3://bucket/prefix a sweep "
                "can be read from anywhere, before and after"
            )
        return [*self._kubectl, "exec", pods[0], "-c", "ray-head", "--"]

    def _status(self, job: str) -> dict[str, Any]:
        found = json.loads(self._call(["get", "rayjob", job, "-o", "json"]))
        status: dict[str, Any] = found.get("status") or {}
        return status

    def _refuse_missing(self, name: str) -> None:
        there = self._call(["get", "secret", name, "--ignore-not-found", "-o", "json"])
        has = json.loads(there).get("data") or {} if there.strip() else {}
        missing = [secret for secret in self._demand.secrets if secret not in has]
        if missing:
            literals = " ".join(f'--from-literal={secret}="${secret}"' for secret in self._demand.secrets)
            raise ClusterError(
                f"the Secret {name} lacks {', '.join(missing)}: {' '.join(self._kubectl)} create secret generic {name} {literals}"
            )

    def _call(self, words: Sequence[str], stdin: str | None = None) -> str:
        return call([*self._kubectl, *words], self.place, stdin=stdin)


def _with(errand: Errand) -> list[str]:
    """A command with its variables, as `env` takes it."""
    return ["env", *(f"{name}={value}" for name, value in errand.environment.items()), *errand.words]
