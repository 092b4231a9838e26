"""A sweep as a KubeRay RayJob: one `kubectl apply`, and the cluster goes with the sweep.

Written for KubeRay 1.6 and newer, whose `authOptions` make Ray refuse whoever lacks the token that the operator keeps in a
Secret. The head holds no trial (`num-cpus: 0`); the driver runs there. A network policy lets only the pods of this cluster and
the operator's namespace reach it, which also closes Ray's metrics port: that one asks for no token.

Sources: KubeRay's RayJob resource (ray.io/v1), https://docs.ray.io/en/latest/cluster/kubernetes/getting-started/rayjob-quick-start.html.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml

from cluster.base import HEALTH, ClusterError
from cluster.demand import Demand, on_one_line, wanted_image

MOUNT = "/stockpot"
"""Where the volume lies in every pod; the sweep file lies on top of it, so its relative paths are the volume's."""
HEAD_CPUS, HEAD_MEMORY_GB = 2, 8
DEFAULT_MEMORY_GB = 16
RETRIES = 3
"""Clusters that KubeRay makes anew when the head is lost; each goes on from the ledger on the volume."""
TTL_SECONDS = 300
LONGEST_KEY = 200
"""Letters of a ConfigMap's key; Kubernetes allows 253."""


def rayjob(demand: Demand, volume: str, operator: str = "kuberay-operator", words: Sequence[str] = ()) -> str:
    """A ConfigMap with the sweep file, the RayJob, and its NetworkPolicy, as YAML.

    Args:
        demand: what the sweep asks for.
        volume: name of a PersistentVolumeClaim that many nodes can write: data and `storage` lie on it.
        operator: namespace of the KubeRay operator, which asks the head how the job is.
        words: the command; empty runs the sweep, or goes on with it.

    Raises:
        ClusterError: if there is no image, or the file is too large for a ConfigMap.
    """
    if len(demand.text.encode()) > 900_000:
        raise ClusterError(f"{demand.file}: more than 900 kB do not fit into a ConfigMap; put it on the volume")
    notes = [
        f"# {on_one_line(demand.name)} on {demand.nodes} x {demand.cpus} CPUs + {demand.gpus} GPUs; see docs/guides/deploying.md",
        f"# Paths in {on_one_line(demand.file)} are relative to the root of the volume '{on_one_line(volume)}'.",
    ]
    notes += _asked_before(demand)
    parts = [_config_map(demand)] if demand.text else []
    return _written(notes, [*parts, _job(demand, volume, words), _policy(demand, operator)])


def raycluster(demand: Demand, volume: str, operator: str = "kuberay-operator") -> str:
    """A RayCluster that stays, for sweeps that come as Ray Jobs, and its NetworkPolicy, as YAML.

    Args:
        demand: what a sweep asks for; its file is not part of it.
        volume: as of `rayjob`.
        operator: as of `rayjob`.

    Raises:
        ClusterError: if there is no image.
    """
    name = _name(demand)
    standing = replace(demand, text="")
    head = f"kubectl get secret {name} -o jsonpath={{.data.auth_token}} | base64 -d"
    notes = [
        f"# A cluster of {demand.nodes} x {demand.cpus} CPUs + {demand.gpus} GPUs that stays until: kubectl delete raycluster {name}",
        f"# Its token: (umask 077; {head} > ~/.stockpot/ray-token)",
        f"# Its door: kubectl port-forward service/{name}-head-svc 8265",
        f"# A sweep: stockpot submit SWEEP.yaml --address http://127.0.0.1:8265 --set storage={MOUNT}/stockpot-runs --detach",
        *_asked_before(demand),
    ]
    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name},
        "spec": _cluster(standing, volume),
    }
    return _written(notes, [cluster, _policy(standing, operator)])


def secret_name(demand: Demand) -> str:
    """The Secret with what the sweep names, the same for all its jobs."""
    return f"{demand.label}-secrets"


def _asked_before(demand: Demand) -> list[str]:
    """How the secrets get where pods read them."""
    literals = " ".join(f'--from-literal={name}="${name}"' for name in demand.secrets)
    return [f"# Before: kubectl create secret generic {secret_name(demand)} {literals}"] if literals else []


def _written(notes: Sequence[str], parts: Sequence[dict[str, Any]]) -> str:
    return "\n".join(notes) + "\n" + yaml.dump_all(parts, Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True)


def _name(demand: Demand) -> str:
    return demand.job or demand.label


class _Plain(yaml.SafeDumper):
    """No anchors, and texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    strange = not all(one.isprintable() or one == "\n" for one in text)  # U+0085 is a line's end to some readers
    style = '"' if strange else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _text)


def _config_map(demand: Demand) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{_name(demand)}-sweep"},
        "data": {_key(demand): demand.text},
    }


def _key(demand: Demand) -> str:
    """The sweep file's name as Kubernetes takes it for the key of a ConfigMap, and so in the pods."""
    letters = re.sub(r"[^-._a-zA-Z0-9]+", "-", demand.file)
    return letters[-LONGEST_KEY:].lstrip(".-") or "sweep.yaml"


def _entrypoint(words: Sequence[str]) -> str:
    """The command, quoted for the shell that KubeRay puts it before.

    It stands in the arguments of a container, where Kubernetes reads `$(NAME)` and `$$` in its own way, quotes or not: they are
    taken apart by an empty pair of quotes.
    """
    return " ".join(shlex.quote(word).replace("$", "$''") for word in words)


def _job(demand: Demand, volume: str, words: Sequence[str]) -> dict[str, Any]:
    command = list(words) or demand.command(f"{MOUNT}/{_key(demand)}", "auto")
    if not words and not demand.names_storage:
        command += ["--set", f"storage={MOUNT}/stockpot-runs"]
    spec: dict[str, Any] = {
        "entrypoint": _entrypoint(command),
        "submissionMode": "K8sJobMode",
        "backoffLimit": RETRIES,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_SECONDS,
    }
    if demand.hours is not None:
        spec["activeDeadlineSeconds"] = math.ceil(demand.hours * 3600)
    spec["rayClusterSpec"] = _cluster(demand, volume)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": _name(demand)},
        "spec": spec,
    }


def _cluster(demand: Demand, volume: str) -> dict[str, Any]:
    """A RayCluster's spec: a head that holds no trial, and the machines."""
    return {
        "rayVersion": demand.ray,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "disable-usage-stats": "true"},
            "template": _pod(demand, volume, "ray-head", HEAD_CPUS, 0, HEAD_MEMORY_GB),
        },
        "workerGroupSpecs": [
            {
                "groupName": "trials",
                "replicas": demand.nodes,
                "minReplicas": demand.nodes,
                "maxReplicas": demand.nodes,
                "rayStartParams": {"num-cpus": str(demand.cpus), "disable-usage-stats": "true"},
                "template": _pod(
                    demand, volume, "ray-worker", demand.cpus, demand.gpus, demand.memory_gb or DEFAULT_MEMORY_GB
                ),
            }
        ],
    }


def _pod(demand: Demand, volume: str, name: str, cpus: int, gpus: int, memory_gb: int) -> dict[str, Any]:
    has: dict[str, Any] = {"cpu": str(cpus), "memory": f"{memory_gb}Gi"}
    if gpus:
        has["nvidia.com/gpu"] = str(gpus)
    container: dict[str, Any] = {
        "name": name,
        "image": wanted_image(demand),
        "resources": {"limits": has, "requests": has},
        "volumeMounts": [{"name": "volume", "mountPath": MOUNT}],
    }
    volumes: list[dict[str, Any]] = [{"name": "volume", "persistentVolumeClaim": {"claimName": volume}}]
    if demand.text:
        key = _key(demand)
        place = {"name": "sweep", "mountPath": f"{MOUNT}/{key}", "subPath": key, "readOnly": True}
        container["volumeMounts"].append(place)
        volumes.append({"name": "sweep", "configMap": {"name": f"{_name(demand)}-sweep"}})
    container["env"] = [{"name": name, "value": value} for name, value in HEALTH.items()]
    container["env"] += [  # trials read them on the workers, the driver and its trackers on the head
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret_name(demand), "key": name}}}
        for name in demand.secrets
    ]
    return {
        "metadata": {"labels": _labels(demand)},
        "spec": {
            "containers": [container],
            "volumes": volumes,
        },
    }


def _policy(demand: Demand, operator: str) -> dict[str, Any]:
    """Who may reach the pods: themselves, the job's submitter, and the operator; nobody reaches /metrics from outside."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": _name(demand)},
        "spec": {
            "podSelector": {"matchLabels": _labels(demand)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": _labels(demand)}}]},
                {
                    "from": [{"podSelector": {"matchLabels": {"batch.kubernetes.io/job-name": _name(demand)}}}],
                    "ports": [{"protocol": "TCP", "port": 8265}],
                },
                {
                    "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator}}}],
                    "ports": [{"protocol": "TCP", "port": 8265}],
                },
            ],
        },
    }


def _labels(demand: Demand) -> dict[str, str]:
    return {"stockpot/sweep": _name(demand)}
