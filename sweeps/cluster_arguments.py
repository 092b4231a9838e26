"""What the verbs of `stockpot cluster` take."""

from __future__ import annotations

import argparse

from sweeps.options import add_file, add_json, add_machines, count, port, positive

MANIFESTS = ("kuberay", "slurm", "ray-up")
"""What `cluster manifest` writes for."""


def add_cluster(cluster: argparse.ArgumentParser, made_of: type[argparse.ArgumentParser]) -> None:
    """The verbs of `cluster`.

    Args:
        cluster: the command.
        made_of: class of the verbs' parsers.
    """
    verbs = cluster.add_subparsers(dest="verb", metavar="VERB", parser_class=made_of, required=True)
    raised = verbs.add_parser(
        "up", help="nodes on this machine, until Ctrl-C", description="Nodes on this machine, until Ctrl-C."
    )
    raised.add_argument("--nodes", type=positive, default=1, metavar="N", help="how many (default 1)")
    raised.add_argument(
        "--cpus", type=positive, metavar="N", help="CPU threads of each (default: the machine's, shared)"
    )
    raised.add_argument("--gpus", type=count, metavar="N", help="GPUs of each (default 0)")
    raised.add_argument("--join", metavar="HOST:PORT", help="join the head there instead of raising one here")
    raised.add_argument("--host", metavar="IP", help="address that other machines know this one by")
    raised.add_argument("--jobs", type=port, metavar="PORT", help="serve Ray Jobs on loopback here (usually 8265)")
    doctor = verbs.add_parser(
        "doctor", help="what is wrong with a cluster", description="What is wrong with a cluster."
    )
    doctor.add_argument(
        "--address", default="auto", metavar="A", help="host:port of its head (default auto: this node's)"
    )
    doctor.add_argument("--storage", metavar="FOLDER", help="folder that every node must read and write")
    add_json(doctor)
    about = "print what KubeRay, Slurm or Ray's launcher takes to run a sweep on machines that it raises"
    manifest = verbs.add_parser("manifest", help=about, description=about[0].upper() + about[1:] + ".")
    manifest.add_argument("backend", metavar="|".join(MANIFESTS), help="whose manifest")
    add_file(manifest)
    add_machines(manifest)
    manifest.add_argument(
        "--standing", action="store_true", help="kuberay: a RayCluster that stays, for sweeps by --address http://..."
    )
    manifest.add_argument("--partition", metavar="P", help="slurm: partition (default: the cluster's)")
    manifest.add_argument("--hosts", metavar="A,B,...", help="ray-up: your own machines, the head first")
    manifest.add_argument("--user", metavar="U", help="ray-up: who logs in (default: you, or ubuntu on AWS)")
    manifest.add_argument("--region", metavar="R", help="ray-up: AWS region")
    manifest.add_argument("--instance", metavar="T", help="ray-up: AWS instance type")
    manifest.add_argument("--install", metavar="COMMAND", help="ray-up: what puts Stockpot on a node")
    manifest.add_argument("-o", "--output", metavar="FILE", help="write it there; default: print it")
