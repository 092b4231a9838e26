"""`cluster`: nodes on this machine, what is wrong with a cluster, and what other people's need to run a sweep."""

from __future__ import annotations

import argparse
import functools
import getpass
import importlib.util
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.cluster_arguments import MANIFESTS
from sweeps.commands.places import UsageError, sweep_file
from sweeps.paths import is_remote, storage_folder

if TYPE_CHECKING:
    from cluster.demand import Demand
    from cluster.doctor import Finding
    from cluster.nodes import LocalNodes
    from sweeps.interrupts import Interrupts
    from sweeps.load import LoadedSweep

INTERRUPTED = 130
AT_ONCE = 8
"""Trials at once where the file does not say: a searcher that sees no results learns nothing."""
CPUS = 4
"""CPU threads of a trial where the file leaves them to the cluster; Ray shares what there is."""


def cluster(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    verbs = {"up": up, "doctor": doctor, "manifest": manifest}
    return verbs[arguments.verb](arguments)


def up(arguments: argparse.Namespace) -> int:
    """Raise nodes on this machine, or have them join a head elsewhere, until Ctrl-C; 130 where it comes before they run."""
    from cluster.door import refuse_join
    from cluster.local import refuse_address, refuse_silence
    from cluster.nodes import LocalNodes
    from cluster.token import make_token
    from sweeps.interrupts import noted

    join, count = arguments.join, arguments.nodes
    cpus = arguments.cpus or max(1, (os.cpu_count() or 1) // count)
    port = _jobs_port(arguments)
    token = make_token()
    if join is not None:
        refuse_address(join)
        refuse_silence(join)
        refuse_join(join, token)
    nodes = LocalNodes(token, cpus, arguments.gpus or 0, join, arguments.host, port)
    with noted() as interrupts:
        print(f"starting {count} node{'s' * (count > 1)} with {cpus} CPUs each", flush=True)
        try:
            if not nodes.start(count, lambda: interrupts.count > 0):
                print("interrupted; what had been started is being ended", flush=True)
                status = INTERRUPTED
            else:
                print(_usable(nodes, join), flush=True)
                status = _tend(nodes, interrupts)
        finally:
            nodes.close()
        print("all nodes have ended", flush=True)
    return status


def _tend(nodes: LocalNodes, interrupts: Interrupts) -> int:
    """Start nodes again that end by themselves, until told to stop, or until the head has ended; the exit status."""
    from cluster.base import ClusterError

    while not interrupts.count:
        try:
            told = nodes.mend()
        except ClusterError as error:
            print(f"stockpot: {error}", file=sys.stderr)
            return 1
        for line in told:
            print(line, flush=True)
        time.sleep(0.5)
    return 0


def _jobs_port(arguments: argparse.Namespace) -> int | None:
    """Where Ray Jobs are to be served.

    Raises:
        UsageError: if Ray's job server is not installed, or the head is elsewhere.
    """
    if arguments.jobs is None:
        return None
    if arguments.join is not None:
        raise UsageError("--jobs is the head's: call stockpot cluster up --jobs there")
    if importlib.util.find_spec("aiohttp_cors") is None:
        raise UsageError("--jobs needs Ray's job server: pip install 'stockpot[cluster]'")
    return int(arguments.jobs)


def _usable(nodes: LocalNodes, join: str | None) -> str:
    if join is not None:
        return f"joined {join}; Ctrl-C takes them out again"
    lines = [
        f"cluster at {nodes.address}, for whoever has the token in {nodes.token}",
        f"  stockpot submit SWEEP.yaml --address {nodes.address}",
    ]
    if nodes.dashboard is not None:
        lines.append(f"  stockpot submit SWEEP.yaml --address http://127.0.0.1:{nodes.dashboard} --detach")
    lines.append(f"  on another machine, with the same token file: stockpot cluster up --join {nodes.address}")
    return "\n".join([*lines, "Ctrl-C ends it"])


def doctor(arguments: argparse.Namespace) -> int:
    """Say what is wrong with a cluster; exit status 1 where something is."""
    from cluster.doctor import examine

    given = arguments.storage
    remote = functools.partial(unwritten, given.rstrip("/")) if given is not None and is_remote(given) else None
    findings = examine(arguments.address, None if given is None else str(storage_folder(given)), remote)
    if remote is not None:
        findings.append(_written(given, remote()))
    wrong = any(finding.state == "wrong" for finding in findings)
    if arguments.json:
        print(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.state:<8} {finding.about:<10} {finding.text}")
    return 1 if wrong else 0


def unwritten(url: str) -> str:
    """Why this machine can't read and write remote storage; empty where it can. Ray carries it to nodes by its name."""
    from sweeps.storage import StorageError, open_storage

    try:
        open_storage(url).prove()
    except StorageError as error:
        return f"{error} ({error.kind})"
    return ""


def _written(url: str, why: str) -> Finding:
    """What it means that this machine can't use remote storage, which the driver does."""
    from cluster.doctor import Finding

    if why:
        return Finding("storage", "wrong", f"this machine: {why}")
    return Finding("storage", "ok", f"{url} is read and written by this machine")


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
    from sweeps.load import load_file

    file = sweep_file(arguments)
    return demand_for(load_file(file, arguments.sets), arguments, file, file.read_text(encoding="utf-8"))


def demand_for(loaded: LoadedSweep, arguments: argparse.Namespace, file: Path, text: str) -> Demand:
    """The sweep's wishes.

    Args:
        loaded: the sweep.
        arguments: what the command line says of machines.
        file: the sweep file; a job runs in its folder.
        text: its content; empty where a sweep goes on, which needs no file.
    """
    from importlib.metadata import version

    from cluster.demand import Demand
    from sweeps.secret_values import names_of
    from sweeps.yaml_source import read

    given = vars(arguments)
    cpus, gpus, nodes = machines_of(loaded, given.get("cpus"), given.get("gpus"), given.get("nodes"))
    written, sets = read(text.encode()).data or {}, tuple(given.get("sets") or ())
    return Demand(
        name=loaded.spec.name,
        nodes=nodes,
        cpus=cpus,
        gpus=gpus,
        file=file.name,
        text=text,
        folder=os.path.abspath(file.parent),
        memory_gb=given.get("memory_gb"),
        names_storage="storage" in written or any(one.startswith("storage=") for one in sets),
        sets=sets,
        secrets=names_of(loaded.spec.env),
        hours=None if loaded.spec.budget.hours is None else loaded.spec.budget.hours + 1.0,
        image=given.get("image"),
        ray=version("ray"),
    )


def machines_of(loaded: LoadedSweep, cpus: int | None, gpus: int | None, nodes: int | None) -> tuple[int, int, int]:
    """CPU threads and GPUs of a machine, and how many of them.

    A machine holds one trial where nothing else is said, and there are as many as trials that run at once. A trial that
    leaves its GPUs to the cluster gets one where it trains, none where it asks resident models. The workers of a trial may
    stand on several machines.

    Raises:
        UsageError: if one worker of a trial does not fit on a machine.
    """
    from pipelines.config import asks_models

    asked, light = loaded.spec.resources, asks_models(loaded.spec.pipeline)
    workers = asked.together
    its_gpus = (0.0 if light else 1.0) if asked.gpus_each == "auto" else float(asked.gpus_each)
    machine_gpus = math.ceil(its_gpus * workers) if gpus is None else gpus
    if asked.gpus == "auto" and gpus == 0:
        its_gpus = 0.0
    by_gpus = math.floor(machine_gpus / its_gpus) if its_gpus else math.inf
    beside = max(1, min(workers, by_gpus))  # workers of a trial on one machine
    share = float(CPUS if cpus is None else cpus / beside)
    its_cpus = (share if not light else 0.1) if asked.cpus == "auto" else float(asked.cpus)
    machine_cpus = max(CPUS if light else 1, math.ceil(its_cpus * beside)) if cpus is None else cpus
    if its_gpus > machine_gpus or its_cpus > machine_cpus:
        who = "a trial" if workers == 1 else "a worker of a trial"
        raise UsageError(
            f"{who} takes {its_cpus:g} CPUs and {its_gpus:g} GPUs (resources), which a machine of {machine_cpus} "
            f"CPUs and {machine_gpus} GPUs has not; raise --cpus and --gpus, or lower resources"
        )
    if nodes is None:
        a_machine = max(1, min(by_gpus, math.floor(machine_cpus / its_cpus)))
        at_once = min(loaded.spec.max_concurrent_trials or AT_ONCE, loaded.trials or AT_ONCE)
        nodes = math.ceil(at_once * workers / a_machine)
    return machine_cpus, machine_gpus, nodes


def _write(arguments: argparse.Namespace, demand: Demand) -> str:
    if arguments.backend == "kuberay":
        from cluster.demand import wanted_volume
        from cluster.kuberay import raycluster, rayjob

        return (raycluster if arguments.standing else rayjob)(demand, wanted_volume(arguments.volume))
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
    "kuberay": ("image", "volume", "standing"),
    "slurm": ("partition",),
    "ray-up": ("hosts", "user", "region", "instance", "install"),
}
"""Options that mean something to one backend alone."""


def _refuse_foreign(arguments: argparse.Namespace) -> None:
    for backend, names in _OWN.items():
        given = [name for name in names if getattr(arguments, name) not in (None, False)]
        if backend != arguments.backend and given:
            raise UsageError(
                f"--{given[0]} is of {backend}'s manifest and means nothing to {arguments.backend}; delete it"
            )
