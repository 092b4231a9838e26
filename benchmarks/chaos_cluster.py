"""What `chaos.py` breaks: a cluster of several nodes on this machine and a driver, all of them through the command line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from namespaces import Hosts

from cluster.processes import Process, below, end
from sweeps.events import Event
from sweeps.ledger import Ledger, LedgerBegun

STOCKPOT = str(Path(sys.executable).with_name("stockpot"))
START_SECONDS = 180.0
TRIAL = "ray::LeaseTrainable"
"""How the title of a process that runs trials begins; a call's has no `stall_after`."""
WORKERS = (TRIAL, "ray::CallWorker")
"""Titles of processes that work for a sweep begin so."""


class Town:
    """A head and nodes that join it, each raised by a `stockpot cluster up` of its own, with a token of their own.

    Args:
        folder: HOME of everything, which is also how its processes are known.
        nodes: in all.
        hosts: one for each node, in order; None has them share this machine's own network.
        cpus: of each node.
        disk: size of a file system of its own that the nodes spill objects to, in bytes, which takes root; None for their folders.
    """

    def __init__(
        self, folder: Path, nodes: int, hosts: Hosts | None = None, cpus: int = 1, disk: int | None = None
    ) -> None:
        self.folder = folder
        self.count = nodes
        self.cpus = cpus
        self.hosts = hosts
        self.address = ""
        self.raised: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
        }
        self.disk: Path | None = None
        """Where nodes spill to, where that is a file system of its own."""
        if disk is not None:
            self.disk = folder / "disk"
            spill = {"type": "filesystem", "params": {"directory_path": str(self.disk)}}
            self.environment["RAY_object_spilling_config"] = json.dumps(spill)
            self._size = disk

    def up(self) -> None:
        """Raise the head, then the others.

        Raises:
            RuntimeError: if one does not come up.
        """
        if self.disk is not None:
            self.disk.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", str(self.disk)], check=True)
        self._raise(0)
        self.address = re.findall(r"--address (\S+)", self._await(0, "Ctrl-C ends it"))[0]
        for number in range(1, self.count):
            self._raise(number, "--join", self.address)
        for number in range(1, self.count):
            self._await(number, "Ctrl-C takes them out")

    def mend(self) -> bool:
        """Raise all of it again where the head has ended; whether that was so."""
        if self.raised[0].poll() is None:
            return False
        self.down()
        self.up()
        return True

    def down(self) -> None:
        """End it all; hosts that are cut off are healed first."""
        if self.hosts is not None:
            for number in range(self.count):
                self.hosts.heal(number)
        for one in self.raised:
            if one.poll() is None:
                one.send_signal(signal.SIGINT)
        for one in self.raised:
            try:
                one.wait(60)
            except subprocess.TimeoutExpired:
                end([one.pid], 0.0)
                one.wait()
        self.raised.clear()
        if self.disk is not None and self.disk.is_mount():
            subprocess.run(["umount", "--lazy", str(self.disk)], check=True)

    def head(self) -> list[Process]:
        """The process that knows the cluster."""
        return named(below(self.raised[0].pid), "gcs_server")

    def nodes(self) -> list[Process]:
        """One process of each node but the head's that takes the node with it."""
        return [found for one in self.raised[1:] for found in named(below(one.pid), "raylet/raylet")]

    def workers(self) -> list[Process]:
        """Processes of trials and of calls, at work or warm."""
        found = [process for one in self.raised for process in below(one.pid)]
        return [process for process in found if title(process).startswith(WORKERS)]

    def left(self) -> list[str]:
        """Titles of processes that belong here, wherever they hang."""
        mark = f"HOME={self.folder}\0".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes() and (words := (entry / "cmdline").read_bytes()):
                    found.append(words.replace(b"\0", b" ").decode(errors="replace")[:80])
        return found

    def held(self) -> list[str]:
        """Actors and placement groups that the cluster has, asked on the head's host."""
        words = self.command(0, [sys.executable, str(Path(__file__).with_name("chaos_held.py")), self.address])
        asked = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=START_SECONDS, check=False
        )
        return (
            asked.stdout.splitlines() if not asked.returncode else [f"the cluster does not say: {asked.stderr[-500:]}"]
        )

    def fill(self, node: str, seconds: float, refuse: bool, out: Path) -> subprocess.Popen[bytes]:
        """Have a node's object store full for a while; with `refuse`, so that nothing can be spilled. See `chaos_filler.py`."""
        words = [sys.executable, str(Path(__file__).with_name("chaos_filler.py")), self.address, node, str(seconds)]
        words += [str(self.disk)] if refuse else []
        with out.open("ab") as told:
            return subprocess.Popen(self.command(0, words), env=self.environment, stdout=told, stderr=told)

    def command(self, number: int, words: Sequence[str]) -> list[str]:
        """A command as it is run on a node's host."""
        return list(words) if self.hosts is None else self.hosts.command(number, words)

    def _raise(self, number: int, *more: str) -> None:
        words = [STOCKPOT, "cluster", "up", "--nodes", "1", "--cpus", str(self.cpus), *more]
        words += [] if self.hosts is None else ["--host", self.hosts.address(number)]
        with self._log(number).open("wb") as out:
            one = subprocess.Popen(
                self.command(number, words), env=self.environment, cwd=self.folder, stdout=out, stderr=out
            )
        self.raised.append(one)

    def _await(self, number: int, words: str) -> str:
        until = time.monotonic() + START_SECONDS
        while words not in (told := self._log(number).read_text(errors="replace")):
            if self.raised[number].poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"node {number} did not come up: {told[-1000:]}")
            time.sleep(0.1)
        return told

    def _log(self, number: int) -> Path:
        return self.folder / f"node-{number}.log"


class Driver:
    """`stockpot submit`, then `resume` as often as it takes.

    Args:
        town: where it runs.
        file: the sweep's.
        root: the sweep's folder, once it has one.
    """

    def __init__(self, town: Town, file: Path, root: Path) -> None:
        self.town, self.file, self.root = town, file, root
        self.starts = 0
        self.memory: list[list[int]] = []
        """Bytes that each driver held, second by second (resident, without what it shares)."""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Submit, or go on."""
        begun = bool(events_of(self.root))
        words = ["resume", str(self.root)] if begun else ["submit", self.file.name]
        with self.file.with_suffix(".out").open("ab") as out:
            self.process = subprocess.Popen(
                self.town.command(0, [STOCKPOT, *words, "--address", self.town.address]),
                env=self.town.environment, cwd=self.file.parent, stdout=out, stderr=out,
            )  # fmt: skip
        self.starts += 1
        self.memory.append([])

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return None if self.process is None else self.process.poll()

    def kill(self) -> None:
        """Kill it with -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def weigh(self) -> None:
        """Note what it holds."""
        if self.process is None or self.process.poll() is not None:
            return
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
            self.memory[-1].append((int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE"))


def events_of(root: Path) -> list[Event]:
    """All events of a sweep's ledger; none before there is one."""
    if not (root / "ledger.sqlite").exists():
        return []
    ledger = Ledger.read(root)
    try:
        return list(ledger.events())
    except LedgerBegun:
        return []
    finally:
        ledger.close()


def digest(events: Sequence[Event]) -> tuple[int, str]:
    """How many events, and the hash of them all."""
    text = json.dumps([(event.kind, event.body, event.time) for event in events], sort_keys=True, default=list)
    return len(events), hashlib.sha256(text.encode()).hexdigest()


def title(process: Process) -> str:
    """A process's command line; nothing where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def named(processes: list[Process], part: str) -> list[Process]:
    """Those whose program has this in its path."""
    return [process for process in processes if part in title(process).partition(" ")[0]]


def await_none(look: Callable[[], list[str]], seconds: float = 60.0) -> list[str]:
    """What is still there after a while."""
    until = time.monotonic() + seconds
    while (left := look()) and time.monotonic() < until:
        time.sleep(0.5)
    return left
