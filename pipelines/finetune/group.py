"""The processes that train one trial together: what they sum, what one of them does for all, and how they end together.

Numbers meet in a process group (gloo on CPUs, NCCL on GPUs); turns and texts go through its store, which waits without a time
limit and notices within a second when the first process is gone. One process alone is a group too, for which all of this does
nothing.

Example:
    >>> with joined(task.rank, "cpu") as group:
    ...     (tokens,) = group.sum([local_tokens])
    ...     group.lead(lambda: report(done))  # on the first process; a SystemExit in it ends them all
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipelines.stage import Rank, WorkerLost

COLLECTIVE_SECONDS = 1800.0
"""How long a process waits for the others in one sum; a lost connection ends the wait at once."""
_LOOK_SECONDS = 0.05
_SIOCGIFADDR = 0x8915
"""Linux's request for an interface's address (netdevice(7))."""
_GO, _END, _LOST = b"go", b"end", b"lost"
_Made = TypeVar("_Made")
_ABORTED = threading.Event()
"""Whether the present lease of this process was broken off: the store waits without a limit and would not notice."""


class Group:
    """Processes that train together; without arguments one alone.

    Args:
        rank: this one's place.
        store: what all of them reach.
        device: `cpu` or `cuda`: where sums are computed.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None, device: str = "cpu") -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._device = device
        self._turns = 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes, in float64; the same bits everywhere."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(numbers)
        return [float(number) for number in numbers.tolist()]

    def gather(self, text: str) -> list[str]:
        """Every process's text by rank on the first one; nothing on the others."""
        if self.size == 1:
            return [text]
        self._turns += 1
        if self.rank:
            self._store.set(f"text/{self._turns}/{self.rank}", text)
            return []
        others = [self._await(f"text/{self._turns}/{rank}").decode() for rank in range(1, self.size)]
        return [text, *others]

    def lead(self, act: Callable[[], _Made]) -> _Made | None:
        """Have the first process act while the others wait; what it made is given to the first one alone.

        Raises:
            SystemExit: everywhere, where the act raised it.
            WorkerLost: on the others, when the act failed or its process is gone.
        """
        if self.size == 1:
            return act()
        self._turns += 1
        turn = f"turn/{self._turns}"
        if self.rank:
            said = self._await(turn)
            if said == _END:
                raise SystemExit
            if said == _LOST:
                raise WorkerLost("the trial's first worker failed")
            return None
        end = _LOST
        try:
            made = act()
            end = _GO
            return made
        except SystemExit:
            end = _END
            raise
        finally:
            self._store.set(turn, end)

    def meet(self) -> None:
        """Wait until all processes have come; what waits for them after that would wait for one that died before."""
        self._store.set(f"here/{self.rank}", "")
        for rank in range(self.size):
            self._await(f"here/{rank}")

    def _await(self, key: str) -> bytes:
        try:
            while not self._store.check([key]):
                if _ABORTED.wait(_LOOK_SECONDS):
                    raise WorkerLost("another worker of the trial failed")
            found: bytes = self._store.get(key)
            return found
        except dist.DistError as error:
            raise WorkerLost("the trial's first worker is gone") from error


ALONE = Group()
"""A process that trains by itself."""


@contextlib.contextmanager
def joined(rank: Rank, device: str) -> Iterator[Group]:
    """The group of a trial's processes, which all enter it; made anew for every lease.

    Args:
        rank: this process's place, and where the first one's store listens.
        device: `cpu` or `cuda`.

    Raises:
        WorkerLost: when the connection to another process breaks, in place of the library's error.
    """
    if rank.size == 1:
        yield ALONE
        return
    settings = _environment(rank)
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    whole = False
    try:
        store = dist.TCPStore(rank.host, rank.port, is_master=False, timeout=timedelta(seconds=COLLECTIVE_SECONDS))
        group = Group(rank.index, rank.size, store, device)
        group.meet()
        dist.init_process_group(
            "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
            store=dist.PrefixStore("group", store),
            rank=rank.index,
            world_size=rank.size,
            timeout=timedelta(seconds=COLLECTIVE_SECONDS),
        )
        yield group
        whole = True
    except SystemExit:
        whole = True
        raise
    except (RuntimeError, dist.DistError) as error:
        if connection_lost(error):
            raise WorkerLost("lost the connection to another worker of the trial") from error
        raise
    finally:
        _leave(whole)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def begin_anew() -> None:
    """What was broken off is over: another lease begins in this process."""
    _ABORTED.clear()


def abort() -> None:
    """Break off what this process waits for, from another thread, up to `begin_anew`: sums, turns and texts."""
    _ABORTED.set()
    _abort_sums()


def _abort_sums() -> None:
    from torch.distributed import distributed_c10d

    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            distributed_c10d._abort_process_group()


def connection_lost(error: BaseException) -> bool:
    """Whether a library's error says that another process is gone."""
    if isinstance(error, dist.DistNetworkError):
        return True
    text = str(error).lower()
    broken = (
        "connection closed by peer",
        "connection reset",
        "broken pipe",
        "connection refused",
        "remote process exited",
    )
    return any(words in text for words in broken)


def _leave(whole: bool) -> None:
    """End the process group; a broken one without waiting for anybody."""
    from accelerate.state import AcceleratorState, GradientState

    if not whole:
        _abort_sums()
    if dist.is_initialized():
        dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _environment(rank: Rank) -> dict[str, str]:
    """What Accelerate reads. Ray shows a worker its own GPU alone, so each is the first of its machine."""
    found = {
        "RANK": str(rank.index),
        "WORLD_SIZE": str(rank.size),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": rank.host,
        "MASTER_PORT": str(rank.port),
    }
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := _interface(rank)) is not None:
        found["GLOO_SOCKET_IFNAME"] = name
    return found


def _interface(rank: Rank) -> str | None:
    """The network interface through which the first process is reached, on Linux; None leaves the choice to gloo."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((rank.host, rank.port))
        except OSError:
            return None
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if answer[20:24] == own:
                    return name
    return None
