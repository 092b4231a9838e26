"""Which backend an address means, and the machines that it is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.commands.places import UsageError
from sweeps.notes import Note
from sweeps.paths import SweepPaths, is_remote

if TYPE_CHECKING:
    from cluster.backend import Backend
    from cluster.demand import Demand

SLURM, KUBERAY = "slurm://", "kuberay://"
RAISING = (SLURM, KUBERAY)
"""Addresses of backends that raise a cluster for each job."""
MACHINES = ("nodes", "cpus", "gpus", "memory_gb")
"""Options that say what such a cluster has."""
PODS = ("image", "volume")


def is_jobs_address(address: str | None) -> bool:
    """Whether an address means Ray Jobs."""
    return (address or "").startswith(("http://", "https://"))


def is_elsewhere(address: str | None, *, detach: bool) -> bool:
    """Whether the driver is to run in another process than this one."""
    return detach or is_jobs_address(address) or (address or "").startswith(RAISING)


def refuse_foreign(arguments: argparse.Namespace) -> None:
    """Raise where an option is given that means nothing at this address, in place of passing it over.

    Raises:
        UsageError: naming it.
    """
    address = arguments.address or ""
    if not address.startswith(RAISING):
        _refuse(
            arguments,
            (*MACHINES, *PODS),
            "is for clusters that are raised for a sweep: --address slurm:// or kuberay://",
        )
    elif address.startswith(SLURM):
        _refuse(arguments, PODS, "is for --address kuberay://")


def _refuse(arguments: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} {why}")


@dataclass(frozen=True)
class Machines:
    """What a backend that raises clusters is asked for.

    Attributes:
        demand: the machines, and the command on them.
        volume: KubeRay's volume claim.
    """

    demand: Demand
    volume: str | None = None

    def record(self) -> dict[str, Any]:
        """What a note keeps, to ask for the same again: JSON, without the sweep file's text."""
        return {"demand": asdict(replace(self.demand, text="")), "volume": self.volume}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Machines | None:
        """From a note; None where it has none."""
        from cluster.demand import Demand

        if not record:
            return None
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record["demand"].items()
        }
        return cls(Demand(**fields), record["volume"])


def open_backend(address: str, machines: Machines | None = None, *, insecure: bool = False) -> Backend:
    """The backend at an address.

    Args:
        address: as given; empty is this machine.
        machines: for those that raise clusters.
        insecure: also where it lets everybody in.

    Raises:
        ClusterError: if it can't be reached, or KubeRay's volume is missing.
    """
    if is_jobs_address(address):
        from cluster.jobs import RayJobs

        return RayJobs(address, insecure=insecure)
    if not address.startswith(RAISING):
        from cluster.background import Background
        from cluster.local import refuse_address

        if address:
            refuse_address(address)
        return Background(address or None)
    assert machines is not None
    rest = address.partition("://")[2].rstrip("/")
    if address.startswith(SLURM):
        from cluster.slurm_jobs import SlurmJobs

        return SlurmJobs(machines.demand, rest)
    from cluster.demand import wanted_volume
    from cluster.kuberay_jobs import KubeRayJobs

    return KubeRayJobs(machines.demand, wanted_volume(machines.volume), rest)


def noted_backend(note: Note, *, insecure: bool = False) -> Backend:
    """The backend that a sweep was submitted to.

    Raises:
        ClusterError: if it can't be reached.
    """
    return open_backend(note.address, Machines.of(note.machines), insecure=insecure)


def machines_of_sweep(arguments: argparse.Namespace, note: Note) -> Machines:
    """For a sweep that ran elsewhere before.

    Raises:
        UsageError: where its files can't be seen from there.
    """
    from sweeps.commands.cluster import demand_for
    from sweeps.load import load_resolved

    if note.address.startswith(KUBERAY):
        raise UsageError("a sweep that began elsewhere can't go on in KubeRay: its volume does not hold it")
    loaded = load_resolved(SweepPaths.of(note.storage, note.name).resolved_spec)
    folder = Path(note.storage) if not is_remote(note.storage) else Path.cwd()
    return Machines(demand_for(loaded, arguments, file=folder / f"{note.name}.yaml", text=""))
