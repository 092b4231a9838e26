"""Processes below one of this machine's: who they are, and the end of all of them. `python -m cluster.processes PID` ends them.

Ray's own end of a node leaves two agents behind where the node was slow: they notice up to a minute later. A process is
known by its id and the time that it began at, so that an id which Linux gave to another one since is left alone.

Source: proc(5), `/proc/PID/stat`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

END_SECONDS = 15.0
"""How long a process may take to end what it started."""
REST_SECONDS = 3.0
"""How long what it left behind may take to notice."""
_STATE, _PARENT, _SESSION, _BEGAN = 0, 1, 3, 19
"""Places in `/proc/PID/stat` after the name."""


@dataclass(frozen=True)
class Process:
    """A process of this machine.

    Attributes:
        pid: its id.
        began: clock ticks between the machine's start and its own.
    """

    pid: int
    began: int

    @property
    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        fields = _stat(self.pid)
        return bool(fields) and fields[_STATE] != "Z" and int(fields[_BEGAN]) == self.began


def process(pid: int) -> Process:
    """The process that has an id now; one that has ended never was alive."""
    fields = _stat(pid)
    return Process(pid, int(fields[_BEGAN]) if fields else 0)


def below(root: int) -> list[Process]:
    """Every process that `root` started, and those that they did."""
    children = _grouped(_PARENT)
    found: list[Process] = []
    waiting = [root]
    while waiting:
        inside = children.get(waiting.pop(), [])
        found += inside
        waiting += [process.pid for process in inside]
    return found


def _grouped(place: int) -> dict[int, list[Process]]:
    """All processes of this machine, by the number that `/proc/PID/stat` has at a place."""
    found: dict[int, list[Process]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        if fields := _stat(pid):
            found.setdefault(int(fields[place]), []).append(Process(pid, int(fields[_BEGAN])))
    return found


def await_end(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Wait until none of them runs; those that still do after so many seconds."""
    until = time.monotonic() + seconds
    while (left := [process for process in processes if process.alive]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def end(roots: Sequence[int], seconds: float = END_SECONDS, rest: float = REST_SECONDS) -> None:
    """Ask processes to end, and see that nothing below them is left.

    What one that leads a session starts in its last moment, and nobody has seen below it, is known by that session.

    Args:
        roots: their ids; those that have ended already are passed over.
        seconds: given to them before they are killed.
        rest: given to what they started, after they have ended, before it is killed.
    """
    own = [Process(root, int(fields[_BEGAN])) for root in roots if (fields := _stat(root))]
    led = [root.pid for root in own if _leads(root)]
    started = {process for root in own for process in below(root.pid)}
    for root in own:
        _signal(root, signal.SIGTERM)
    until = time.monotonic() + seconds
    while any(root.alive for root in own) and time.monotonic() < until:
        started.update(process for root in own for process in below(root.pid))
        time.sleep(0.05)
    for root in own:
        _signal(root, signal.SIGKILL)
    await_end(own, rest)
    sessions = _grouped(_SESSION) if led else {}
    started.update(process for leader in led for process in sessions.get(leader, []))
    for process in await_end(started, rest):
        _signal(process, signal.SIGKILL)
    await_end([*own, *started], rest)


def main(words: Sequence[str] | None = None) -> int:
    """End the process with this id and all below it."""
    end([int(word) for word in (sys.argv[1:] if words is None else words)])
    return 0


def _leads(process: Process) -> bool:
    fields = _stat(process.pid)
    return bool(fields) and int(fields[_SESSION]) == process.pid


def _signal(process: Process, number: int) -> None:
    if process.alive:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def _stat(pid: int) -> list[str]:
    """What `/proc/PID/stat` has after the name; nothing where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main())
