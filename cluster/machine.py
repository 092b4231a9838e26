"""What one machine has: CPUs, memory, GPUs. Only the standard library; what can't be read is None or empty."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SMI_SECONDS = 5.0
"""How long nvidia-smi may take."""


@dataclass(frozen=True)
class Machine:
    """A machine as trials see it.

    Attributes:
        cpus: CPU threads.
        memory: bytes in all, a container's limit counted; None where it can't be read.
        free: bytes that can be had now without swapping; None where it can't be read.
        gpus: bytes of each GPU.
    """

    cpus: float
    memory: int | None
    free: int | None
    gpus: tuple[int, ...] = ()


def unset(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the environment variables that this process has not; no value is looked at."""
    return tuple(name for name in names if name not in os.environ)


def this_machine(
    proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup"), *, hidden_gpus: bool = False
) -> Machine:
    """The machine that this process runs on, within the limits of its control group.

    Args:
        proc: where the kernel tells about memory and groups.
        groups: where the control groups are mounted.
        hidden_gpus: count GPUs that CUDA_VISIBLE_DEVICES hides too: Ray hides them from tasks that ask for none.
    """
    cpus = float(os.cpu_count() or 1)
    memory, free = _meminfo(proc)
    for folder in _groups(proc, groups):
        quota = _words(folder / "cpu.max")
        if len(quota) == 2 and quota[0].isdigit():
            cpus = min(cpus, max(1.0, int(quota[0]) // int(quota[1])))
        limit, used = _limit(folder)
        if limit is not None and (memory is None or limit < memory):
            memory = limit
            free = max(0, limit - used) if free is None else min(free, max(0, limit - used))
    return Machine(cpus, memory, free, _gpus(None if hidden_gpus else os.environ.get("CUDA_VISIBLE_DEVICES")))


def _meminfo(proc: Path) -> tuple[int | None, int | None]:
    """MemTotal and MemAvailable in bytes."""
    found: dict[str, int] = {}
    try:
        for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return found.get("MemTotal"), found.get("MemAvailable")


def _groups(proc: Path, groups: Path) -> Iterator[Path]:
    """This process's control groups from the innermost out, of version 2 and of version 1's memory controller."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            top = groups
        elif "memory" in controllers.split(","):
            top = groups / "memory"
        else:
            continue
        inner = top / path.lstrip("/")
        yield inner
        yield from (parent for parent in inner.parents if parent.is_relative_to(top))


def _limit(folder: Path) -> tuple[int | None, int]:
    """A group's limit and what counts against it and can't be dropped, in bytes."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        words = _words(folder / limit)
        if words and words[0].isdigit():
            stat = _words(folder / "memory.stat")
            droppable = dict(zip(stat[::2], stat[1::2], strict=False)).get(cache, "0")
            taken = (_words(folder / used) or ["0"])[0]
            return int(words[0]), max(0, int(taken) - int(droppable))
    return None, 0


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []


def _gpus(shown: str | None) -> tuple[int, ...]:
    """Bytes of each GPU that CUDA_VISIBLE_DEVICES (None: not set) leaves, as nvidia-smi tells."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        done = subprocess.run(
            [tool, "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=SMI_SECONDS,
            check=False,
        )
        rows = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
        sizes = {(row[0], row[1]): int(row[2]) * 1024**2 for row in rows}
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return ()
    if shown is None:
        return tuple(sizes.values())
    wanted = [word.strip() for word in shown.split(",") if word.strip()]
    return tuple(size for names, size in sizes.items() if any(word in names for word in wanted))
