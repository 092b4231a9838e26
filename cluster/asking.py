"""What the nodes of a cluster say: a function runs on each of them, in a task that takes no resources. This process is connected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.base import ClusterError, reason
from cluster.packages import not_unpacked

RayNode = Mapping[str, Any]
"""An entry of `ray.nodes()`."""


def living() -> list[RayNode]:
    """The nodes that are alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def where(node: RayNode) -> str:
    """Its address."""
    return str(node["NodeManagerAddress"])


def holds_trials(node: RayNode) -> bool:
    """Whether trials run on it: a head, for one, may have neither CPUs nor GPUs to give."""
    return bool(node["Resources"].get("CPU") or node["Resources"].get("GPU"))


def asked_of(node: RayNode, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Have a function run on a node; the reference of what it will return."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pin = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(function).options(scheduling_strategy=pin).remote(*arguments, **named)


def ask_each(
    nodes: Sequence[RayNode], seconds: float, function: Callable[..., Any], *arguments: Any, **named: Any
) -> list[Any]:
    """What a function returns on each node.

    Raises:
        ClusterError: when a node does not answer in time, or can't unpack what travels.
    """
    import ray

    asked = [asked_of(node, function, *arguments, **named) for node in nodes]
    try:
        found: list[Any] = ray.get(asked, timeout=seconds)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a node of the cluster {why_silent(error)}") from error
    return found


def why_silent(error: Exception) -> str:
    """What to tell of a node that did not answer, from Ray's error."""
    import ray

    if isinstance(error, ray.exceptions.RuntimeEnvSetupError):
        return not_unpacked(str(error))
    return f"does not answer: {reason(error)}"
