"""Kinds of values and options that several commands of the command line share."""

from __future__ import annotations

import argparse

from sweeps.paths import DEFAULT_STORAGE


def count(text: str) -> int:
    """A whole number from 0 up."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 up, but got {text}")
    return value


def positive(text: str) -> int:
    """A whole number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, but got {text}")
    return value


def share(text: str) -> float:
    """A number above 0 and below 1."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie above 0 and below 1, but got {text}")
    return value


def port(text: str) -> int:
    """A port, 0 for any."""
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, but got {text}")
    return value


def seconds(text: str) -> float:
    """A finite number from 0 up."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 0 up, but got {text}")
    return value


def add_file(command: argparse.ArgumentParser) -> None:
    """The sweep file, and `--set`."""
    command.add_argument("file", nargs="?", metavar="SWEEP.yaml", help="the sweep file")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="change a key of the file"
    )


def add_name(command: argparse.ArgumentParser) -> None:
    """The sweep's name, and `--storage`."""
    command.add_argument("name", metavar="NAME", help="a sweep's name under --storage, or its folder")
    add_storage(command)


def add_storage(command: argparse.ArgumentParser) -> None:
    """`--storage`."""
    command.add_argument(
        "--storage", default=DEFAULT_STORAGE, metavar="FOLDER", help=f"where sweeps are (default {DEFAULT_STORAGE})"
    )


def add_address(
    command: argparse.ArgumentParser, text: str = "a Ray cluster's address; default: Ray started here"
) -> None:
    """`--address` and `--insecure`."""
    command.add_argument("--address", metavar="A", help=text)
    add_insecure(command)


def add_detach(command: argparse.ArgumentParser) -> None:
    """`--detach`."""
    command.add_argument(
        "--detach", action="store_true", help="return once the sweep runs, or waits in a queue; it goes on without us"
    )


def add_insecure(command: argparse.ArgumentParser) -> None:
    """`--insecure`."""
    command.add_argument("--insecure", action="store_true", help="also where the cluster lets in whoever has no token")


def add_machines(command: argparse.ArgumentParser) -> None:
    """What machines are asked for, where a cluster is raised for the sweep."""
    for name, unit in (("nodes", "machines"), ("cpus", "CPU threads of each"), ("gpus", "GPUs of each")):
        command.add_argument(
            f"--{name}", type=positive if name != "gpus" else count, metavar="N", help=f"{unit} (default: fitting)"
        )
    command.add_argument("--memory-gb", type=positive, metavar="N", help="memory of each")
    command.add_argument("--image", metavar="IMAGE", help="kuberay: container image with Stockpot in it")
    command.add_argument("--volume", metavar="CLAIM", help="kuberay: volume claim with data and storage")


def add_json(command: argparse.ArgumentParser, text: str = "print JSON") -> None:
    """`--json`."""
    command.add_argument("--json", action="store_true", help=text)
