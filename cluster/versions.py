"""What must be the same on the machines of a sweep, and what is said where it is not: one comparison for attached drivers and the doctor.

Our own code travels (`cluster.packages`), what it stands on does not. Python and Ray must be the driver's. Trials are compared with
each other, so what their numbers depend on must be the same wherever trials run; that the driver, which trains nothing, has another
one is noted. A build of the same release (`2.13.0+cpu`, `+cu128`) is no other version, nor is a patch level of Python.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.packages import code_hash

MUST = ("python", "ray")
RESULTS = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "trl",
    "accelerate",
    "bitsandbytes",
    "sentence-transformers",
    "faiss-cpu",
)
"""Packages that scores depend on."""
CODE = "Stockpot's code"
NAMED = 3
"""So many nodes are named; the others are counted."""
MEND = "install the same versions everywhere (constraints.txt)"


@dataclass(frozen=True)
class Told:
    """What one node says.

    Attributes:
        where: its address.
        versions: as `own_versions` there.
        trials: whether trials run on it.
    """

    where: str
    versions: Mapping[str, str]
    trials: bool = True


@dataclass(frozen=True)
class Comparison:
    """What differs.

    Attributes:
        wrong: what no sweep may begin with.
        notes: what a person should know, and the ledger keeps.
    """

    wrong: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def own_versions() -> dict[str, str]:
    """Of this process: Python, Ray, Stockpot and the hash of its code, and what scores depend on where it is installed."""
    found = {"python": platform.python_version(), CODE: code_hash()}
    for package in ("stockpot", "ray", *RESULTS):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def compare(own: Mapping[str, str], nodes: Sequence[Told]) -> Comparison:
    """What differs between a driver and the nodes, and among the nodes that hold trials.

    Args:
        own: the driver's.
        nodes: what each of them says.
    """
    wrong, notes = [], []
    for name in (*MUST, CODE):
        others = [node for node in nodes if _release(name, node.versions) != _release(name, own)]
        if others:
            why = ": something there puts another copy first on Python's path" if name == CODE else ""
            wrong.append(f"{name} is {_listed(name, others)}, and {own.get(name, 'missing')} here{why}")
    holding = [node for node in nodes if node.trials]
    for name in RESULTS:
        having = [node for node in holding if name in node.versions]
        lacking = [node for node in holding if name not in node.versions]
        if len({_release(name, node.versions) for node in having}) > 1:
            wrong.append(f"{name} is {_listed(name, having)}: trials there could not be compared")
        elif having and name in own and _release(name, having[0].versions) != _release(name, own):
            notes.append(
                f"{name} is {having[0].versions[name]} where trials run, and {own[name]} where this driver does"
            )
        if lacking and (having or name in own):
            notes.append(f"{name} is missing on {_places(lacking)}")
    return Comparison(tuple(wrong), tuple(notes))


def minor(python: str) -> str:
    """A Python's version without its patch level."""
    return ".".join(python.split(".")[:2])


def _release(name: str, versions: Mapping[str, str]) -> str:
    version = versions.get(name, "missing")
    return minor(version) if name == "python" else version.partition("+")[0]


def _listed(name: str, nodes: Sequence[Told]) -> str:
    """`2.12.1 on C and 2.13.0 on A, B`."""
    by_version: dict[str, list[Told]] = {}
    for node in nodes:
        by_version.setdefault(node.versions.get(name, "missing"), []).append(node)
    return " and ".join(f"{version} on {_places(some)}" for version, some in sorted(by_version.items()))


def _places(nodes: Sequence[Told]) -> str:
    named = list(dict.fromkeys(node.where for node in nodes))
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return ", ".join(named[:NAMED]) + more
