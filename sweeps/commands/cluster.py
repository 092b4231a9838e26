"""`cluster`: what other people's clusters need to run a sweep."""

from __future__ import annotations

import argparse
import getpass
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.arguments import MANIFESTS
from sweeps.commands.places import UsageError, sweep_file

if TYPE_CHECKING:
    from cluster.demand import Demand
    from sweeps.load import LoadedSweep

AT_ONCE = 8
"""Trials at once where the file does not say: a searcher that sees no results learns nothing."""
CPUS = 4
"""CPU threads of a trial where the file leaves them to the cluster; Ray shares what there is."""
_SECRET = re.compile(r"\$\{(\w+)\}\Z")


def cluster(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    return {"manifest": manifest}[arguments.verb](arguments)


def manifest(arguments: argparse.Namespace) -> int:
    """Print, or write, what a backend takes to run a sweep."""
    from sweeps.problems import unknown

    if arguments.backend not in MANIFESTS:
        raise UsageError(f"BACKEND: {unknown(arguments.backend, MANIFESTS)}")
    _refuse_foreign(arguments)
    text = _write(arguments, demand_of(arguments))
    if arguments.output is None:
        sys.stdout.write(text)
        return 0
    Path(arguments.output).expanduser().write_text(text, encoding="utf-8")
    print(f"wrote {arguments.output}")
    return 0


def demand_of(arguments: argparse.Namespace) -> Demand:
    """The sweep's wishes, from its file, with what the command line says of machines."""
    from importlib.metadata import version

    from cluster.demand import Demand
    from sweeps.load import load_file
    from sweeps.yaml_source import read

    file = sweep_file(arguments)
    loaded = load_file(file, arguments.sets)
    cpus, gpus, nodes = machines_of(loaded, arguments.cpus, arguments.gpus, arguments.nodes)
    text = file.read_text(encoding="utf-8")
    written = read(text.encode()).data
    references = (_SECRET.match(value) for value in loaded.spec.env.values())
    return Demand(
        name=loaded.spec.name,
        nodes=nodes,
        cpus=cpus,
        gpus=gpus,
        file=file.name,
        text=text,
        folder=os.path.abspath(file.parent),
        memory_gb=arguments.memory_gb,
        names_storage="storage" in written or any(text.startswith("storage=") for text in arguments.sets),
        sets=tuple(arguments.sets),
        secrets=tuple(found[1] for found in references if found),
        hours=None if loaded.spec.budget.hours is None else loaded.spec.budget.hours + 1.0,
        image=arguments.image,
        ray=version("ray"),
    )


def machines_of(loaded: LoadedSweep, cpus: int | None, gpus: int | None, nodes: int | None) -> tuple[int, int, int]:
    """CPU threads and GPUs of a machine, and how many of them.

    A machine holds one trial where nothing else is said, and there are as many as trials that run at once. A trial that
    leaves its GPUs to the cluster gets one where it trains, none where it asks resident models.

    Raises:
        UsageError: if one trial does not fit on a machine.
    """
    from pipelines.config import asks_models

    asked, light = loaded.spec.resources, asks_models(loaded.spec.pipeline)
    a_trial_gpus = (0.0 if light else 1.0) if asked.gpus == "auto" else float(asked.gpus)
    a_trial_cpus = (float(cpus or CPUS) if not light else 0.1) if asked.cpus == "auto" else float(asked.cpus)
    machine_gpus = math.ceil(a_trial_gpus) if gpus is None else gpus
    if asked.gpus == "auto" and gpus == 0:
        a_trial_gpus = 0.0
    machine_cpus = max(CPUS if light else 1, math.ceil(a_trial_cpus)) if cpus is None else cpus
    if a_trial_gpus > machine_gpus or a_trial_cpus > machine_cpus:
        raise UsageError(
            f"a trial takes {a_trial_cpus:g} CPUs and {a_trial_gpus:g} GPUs (resources), which a machine of {machine_cpus} "
            f"CPUs and {machine_gpus} GPUs has not; raise --cpus and --gpus, or lower resources"
        )
    if nodes is None:
        by_gpus = math.floor(machine_gpus / a_trial_gpus) if a_trial_gpus else math.inf
        a_machine = max(1, min(by_gpus, math.floor(machine_cpus / a_trial_cpus)))
        at_once = min(loaded.spec.max_concurrent_trials or AT_ONCE, loaded.trials or AT_ONCE)
        nodes = math.ceil(at_once / a_machine)
    return machine_cpus, machine_gpus, nodes


def _write(arguments: argparse.Namespace, demand: Demand) -> str:
    if arguments.backend == "kuberay":
        from cluster.kuberay import rayjob

        if arguments.volume is None:
            raise UsageError(
                "--volume: name the volume claim that holds data and storage; many nodes must be able to write it"
            )
        return rayjob(demand, arguments.volume)
    if arguments.backend == "slurm":
        from cluster.slurm import sbatch

        return sbatch(demand, arguments.partition)
    from cluster.ray_up import INSTALL, autoscaler

    hosts = tuple(host.strip() for host in (arguments.hosts or "").split(",") if host.strip())
    return autoscaler(
        demand,
        user=arguments.user or (getpass.getuser() if hosts else "ubuntu"),
        hosts=hosts,
        region=arguments.region,
        instance=arguments.instance,
        install=arguments.install or INSTALL,
    )


_OWN = {
    "kuberay": ("image", "volume"),
    "slurm": ("partition",),
    "ray-up": ("hosts", "user", "region", "instance", "install"),
}
"""Options that mean something to one backend alone."""


def _refuse_foreign(arguments: argparse.Namespace) -> None:
    for backend, names in _OWN.items():
        given = [name for name in names if getattr(arguments, name) is not None]
        if backend != arguments.backend and given:
            raise UsageError(
                f"--{given[0]} is of {backend}'s manifest and means nothing to {arguments.backend}; delete it"
            )
