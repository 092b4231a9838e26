"""A sweep as a KubeRay RayJob: one `kubectl apply`, and the cluster goes with the sweep.

Written for KubeRay 1.6 and newer, whose `authOptions` make Ray refuse whoever lacks the token that the operator keeps in a
Secret. The head holds no trial (`num-cpus: 0`); the driver runs there. A network policy lets only the pods of this cluster and
the operator's namespace reach it, which also closes Ray's metrics port: that one asks for no token.

Sources: KubeRay's RayJob resource (ray.io/v1), https://docs.ray.io/en/latest/cluster/kubernetes/getting-started/rayjob-quick-start.html.
"""

from __future__ import annotations

import math
import shlex
from typing import Any

import yaml

from cluster.base import HEALTH, ClusterError
from cluster.demand import Demand, wanted_image

MOUNT = "/stockpot"
"""Where the volume lies in every pod; the sweep file lies on top of it, so its relative paths are the volume's."""
HEAD_CPUS, HEAD_MEMORY_GB = 2, 8
DEFAULT_MEMORY_GB = 16
RETRIES = 3
"""Clusters that KubeRay makes anew when the head is lost; each goes on from the ledger on the volume."""
TTL_SECONDS = 300


def rayjob(demand: Demand, volume: str, operator: str = "kuberay-operator") -> str:
    """A ConfigMap with the sweep file, the RayJob, and its NetworkPolicy, as YAML.

    Args:
        demand: what the sweep asks for.
        volume: name of a PersistentVolumeClaim that many nodes can write: data and `storage` lie on it.
        operator: namespace of the KubeRay operator, which asks the head how the job is.

    Raises:
        ClusterError: if there is no image, or the file is too large for a ConfigMap.
    """
    if len(demand.text.encode()) > 900_000:
        raise ClusterError(f"{demand.file}: more than 900 kB do not fit into a ConfigMap; put it on the volume")
    notes = [
        f"# {demand.name} on {demand.nodes} x {demand.cpus} CPUs + {demand.gpus} GPUs; see docs/guides/deploying.md",
        f"# Paths in {demand.file} are relative to the root of the volume '{volume}'.",
    ]
    if demand.secrets:
        literals = " ".join(f'--from-literal={name}="${name}"' for name in demand.secrets)
        notes.append(f"# Before: kubectl create secret generic {_secret(demand)} {literals}")
    parts = [_config_map(demand), _job(demand, volume), _policy(demand, operator)]
    return "\n".join(notes) + "\n" + yaml.dump_all(parts, Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    """No anchors, and texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)


def _config_map(demand: Demand) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{demand.label}-sweep"},
        "data": {demand.file: demand.text},
    }


def _job(demand: Demand, volume: str) -> dict[str, Any]:
    command = demand.command(f"{MOUNT}/{demand.file}", "auto")
    if not demand.names_storage:
        command += ["--set", f"storage={MOUNT}/stockpot-runs"]
    spec: dict[str, Any] = {
        "entrypoint": shlex.join(command),
        "submissionMode": "K8sJobMode",
        "backoffLimit": RETRIES,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_SECONDS,
    }
    if demand.hours is not None:
        spec["activeDeadlineSeconds"] = math.ceil(demand.hours * 3600)
    spec["rayClusterSpec"] = {
        "rayVersion": demand.ray,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "disable-usage-stats": "true"},
            "template": _pod(demand, volume, "ray-head", HEAD_CPUS, 0, HEAD_MEMORY_GB, head=True),
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
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": demand.label},
        "spec": spec,
    }


def _pod(
    demand: Demand, volume: str, name: str, cpus: int, gpus: int, memory_gb: int, *, head: bool = False
) -> dict[str, Any]:
    has: dict[str, Any] = {"cpu": str(cpus), "memory": f"{memory_gb}Gi"}
    if gpus:
        has["nvidia.com/gpu"] = str(gpus)
    container: dict[str, Any] = {
        "name": name,
        "image": wanted_image(demand),
        "resources": {"limits": has, "requests": has},
        "volumeMounts": [
            {"name": "volume", "mountPath": MOUNT},
            {"name": "sweep", "mountPath": f"{MOUNT}/{demand.file}", "subPath": demand.file, "readOnly": True},
        ],
    }
    container["env"] = [{"name": name, "value": value} for name, value in HEALTH.items()]
    if head:
        container["env"] += [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": _secret(demand), "key": name}}}
            for name in demand.secrets
        ]
    return {
        "metadata": {"labels": _labels(demand)},
        "spec": {
            "containers": [container],
            "volumes": [
                {"name": "volume", "persistentVolumeClaim": {"claimName": volume}},
                {"name": "sweep", "configMap": {"name": f"{demand.label}-sweep"}},
            ],
        },
    }


def _policy(demand: Demand, operator: str) -> dict[str, Any]:
    """Who may reach the pods: themselves, the job's submitter, and the operator; nobody reaches /metrics from outside."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": demand.label},
        "spec": {
            "podSelector": {"matchLabels": _labels(demand)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": _labels(demand)}}]},
                {
                    "from": [{"podSelector": {"matchLabels": {"batch.kubernetes.io/job-name": demand.label}}}],
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
    return {"stockpot/sweep": demand.label}


def _secret(demand: Demand) -> str:
    return f"{demand.label}-secrets"
