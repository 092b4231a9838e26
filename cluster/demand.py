"""What a sweep asks of a cluster that is not there yet, in words of no backend; each backend has one mapping of them.

Example:
    >>> demand = Demand("gsm8k-lora", nodes=2, cpus=8, gpus=1, file="gsm8k.yaml", text=yaml)
    >>> rayjob(demand)
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass

from cluster.base import ClusterError


@dataclass(frozen=True)
class Demand:
    """Machines, and the command that runs on one of them.

    Attributes:
        name: the sweep's.
        nodes: machines that trials run on.
        cpus: CPU threads of each.
        gpus: GPUs of each.
        memory_gb: gigabytes of each; None leaves it to the backend.
        file: name of the sweep file, without a folder.
        text: its content.
        folder: absolute folder of the sweep file here, which nodes of a shared file system see as well.
        names_storage: whether the file, or a `--set`, says where the sweep is kept.
        sets: `--set` arguments of the command.
        secrets: environment variables that the file names, without values.
        hours: wall time at most, for backends that want to know; None where nobody said.
        image: container image with Stockpot in it.
        ray: version of Ray that is wanted.
        job: name of what the backend makes; the sweep's label where empty.
    """

    name: str
    nodes: int
    cpus: int
    gpus: int
    file: str
    text: str
    folder: str
    memory_gb: int | None = None
    names_storage: bool = True
    sets: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    hours: float | None = None
    image: str | None = None
    ray: str = ""
    job: str = ""

    @property
    def label(self) -> str:
        """The name as DNS labels allow it: lower case letters, digits and `-`, at most 40 of them."""
        label = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:40].rstrip("-")
        return label if label[:1].isalpha() else f"sweep-{label}".rstrip("-")

    def command(self, file: str, address: str) -> list[str]:
        """The command that runs the sweep, or goes on with it after a restart."""
        sets = [word for text in self.sets for word in ("--set", text)]
        file = f"./{file}" if file.startswith("-") else file  # no option of the command's
        return ["stockpot", "submit", file, "--or-resume", "--address", address, *sets]


def wanted_image(demand: Demand) -> str:
    """The image of the containers.

    Raises:
        ClusterError: if none was named; there is no public one.
    """
    if demand.image is None:
        raise ClusterError(
            "--image: name a container image of yours with Stockpot, and so Ray, in it; there is no public one"
        )
    return demand.image


def wanted_volume(volume: str | None) -> str:
    """The volume claim of a cluster of containers.

    Raises:
        ClusterError: if none was named.
    """
    if volume is None:
        raise ClusterError(
            "--volume: name the volume claim that holds data and storage; many nodes must be able to write it"
        )
    return volume


def on_one_line(text: str) -> str:
    """A text for a comment of a manifest, which it must not end: what is no letter, digit, sign or space becomes `?`."""
    return "".join(one if one.isprintable() else "?" for one in text)


def bash_word(text: str) -> str:
    """A word of a bash command, on one line whatever is in it, so that it can't end a comment or a here-document either."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(_bash_letter(one) for one in text) + "'"


def _bash_letter(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    return letter if letter.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter))
