"""The faults of `chaos.py`: what is broken, how often, and when it is whole again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos_cluster import TRIAL, Driver, Town, events_of, title

FULL_SECONDS = 4.0
"""How long an object store stays full."""
DISK_BYTES = 400 * 2**20
"""Of the file system that nodes spill objects to: room for what does not fit into a store, which Ray writes 100 MB at a time."""
SLOW_SECONDS = (8.0, 14.0)
"""How long a trial that is slow for long stands still: several times as long as the others take, and not long enough for a stall."""
FILL_SECONDS = 120.0
"""How long a store may take to be full, and empty again."""
TRIES = 4
"""So often a store is filled anew where that went wrong, for its node was just lost."""
WEIGHTS = {
    "worker": 40, "node": 14, "driver": 14, "straggler": 10, "slow": 6, "hang": 8, "store": 5, "disk": 5, "head": 4, "cut": 14,
}  # fmt: skip
"""How often each fault is drawn; `cut` with `--hosts` alone, `disk` as root alone."""


@dataclass(frozen=True)
class Stopped:
    """A process that stands still.

    Attributes:
        until: when it goes on (`time.monotonic`).
        pid: its own.
        told: events of the sweep when it was stopped; None where nobody asks what the others did meanwhile.
    """

    until: float
    pid: int
    told: int | None = None


@dataclass
class Chaos:
    """A town, a driver, and what was done to them.

    Attributes:
        town: the cluster.
        draw: seeded.
        first: faults that come before any is drawn, each once.
        driver: of the present sweep; None before the first.
        injected: how often each fault was.
        stopped: processes that stand still for a while.
        hung: those that were stopped for good.
        cut: hosts that are cut off, with the time at which they are healed.
        cut_seconds: how long, at least and at most, one is cut off.
        filler: what keeps a store full, with its fault and when it began; nothing else is broken until it has ended.
        filled: how often a store was seen to be full, by fault.
        told: events that the sweeps have written.
        meanwhile: how many they wrote while a trial was slow, each time.
        seen: length and hash of the ledger at the death of each driver.
        until: when faults end (`time.monotonic`); None before they began.
    """

    town: Town
    draw: random.Random
    first: list[str] = field(default_factory=list)
    driver: Driver | None = None
    injected: Counter[str] = field(default_factory=Counter)
    stopped: list[Stopped] = field(default_factory=list)
    hung: set[int] = field(default_factory=set)
    cut: list[tuple[float, int]] = field(default_factory=list)
    cut_seconds: tuple[float, float] = (10.0, 60.0)
    filler: tuple[str, float, subprocess.Popen[bytes]] | None = None
    filled: Counter[str] = field(default_factory=Counter)
    told: int = 0
    meanwhile: list[int] = field(default_factory=list)
    seen: list[tuple[int, str]] = field(default_factory=list)
    until: float | None = None

    def over(self) -> bool:
        """Whether there were all the faults that were to be."""
        return not self.first and self.filler is None and self.until is not None and time.monotonic() >= self.until

    def strike(self, faults: Sequence[str]) -> str | None:
        """Cause the next fault; its name, or None where there was nothing that it could hit."""
        if self.filler is not None:
            return None
        if not self.first:
            fault = self.draw.choices(faults, [WEIGHTS[one] for one in faults])[0]
            return fault if self.inject(fault) else None
        found = next((one for one in self.first if self.inject(one)), None)
        if found is not None:
            self.first.remove(found)
        return found

    def inject(self, fault: str) -> bool:
        """Cause a fault; False where there is nothing that it could hit now."""
        cause: Callable[[], bool] = getattr(self, f"_{fault}")
        done = cause()
        self.injected[fault] += done
        return done

    def go_on(self, everything: bool = False) -> None:
        """Let stragglers go on, and heal hosts, whose time has come; look whether a store was full."""
        now = time.monotonic()
        self.heal(None if everything else now)
        for one in list(self.stopped):
            if everything or now >= one.until:
                self.stopped.remove(one)
                _signal(one.pid, signal.SIGCONT)
                if one.told is not None and not everything:
                    self.meanwhile.append(self.told - one.told)
        if self.filler is not None:
            self._look_at_filler(everything)

    def heal(self, now: float | None = None) -> None:
        """Let hosts that were cut off be reached again, all or those whose time has come."""
        for until, number in list(self.cut):
            if self.town.hosts is not None and (now is None or now >= until):
                self.cut.remove((until, number))
                self.town.hosts.heal(number)

    def _look_at_filler(self, end: bool) -> None:
        assert self.filler is not None, "there must be a filler to look at"
        fault, began, process = self.filler
        if end or time.monotonic() - began > FILL_SECONDS:
            process.kill()
            process.wait()
        if (status := process.poll()) is None:
            return
        self.filler = None
        self.filled[fault] += status == 0
        if not self.filled[fault] and self.injected[fault] < TRIES and not end:
            self.first.append(fault)

    def problems(self) -> list[str]:
        """Faults that were none."""
        found = [
            f"{fault}: no store was full, see filler.out"
            for fault in ("store", "disk")
            if self.injected[fault] and not self.filled[fault]
        ]
        if self.injected["slow"] and not any(self.meanwhile):
            found.append("nothing went on while a trial was slow")
        return found

    def _worker(self) -> bool:
        return self._hit(self.town.workers(), signal.SIGKILL)

    def _straggler(self) -> bool:
        return self._hit(self.town.workers(), signal.SIGSTOP, self.draw.uniform(1.0, 4.0))

    def _slow(self) -> bool:
        return self._hit(self._trials(), signal.SIGSTOP, self.draw.uniform(*SLOW_SECONDS), self.told)

    def _hang(self) -> bool:
        return self._hit(self._trials(), signal.SIGSTOP)

    def _node(self) -> bool:
        return self._hit(self.town.nodes(), signal.SIGKILL)

    def _cut(self) -> bool:
        there = set(range(1, self.town.count)) - {number for _, number in self.cut}
        if self.town.hosts is None or not there:
            return False
        number = self.draw.choice(sorted(there))
        self.cut.append((time.monotonic() + self.draw.uniform(*self.cut_seconds), number))
        self.town.hosts.cut(number)
        return True

    def _head(self) -> bool:
        return self._hit(self.town.head(), signal.SIGKILL)

    def _driver(self) -> bool:
        if self.driver is None or self.driver.poll() is not None or not events_of(self.driver.root):
            return False
        self.driver.kill()
        return True

    def _store(self) -> bool:
        return self._fill("store")

    def _disk(self) -> bool:
        return self.town.disk is not None and self._fill("disk")

    def _fill(self, fault: str) -> bool:
        if not self._trials():
            return False
        number, out = self.draw.randrange(self.town.count), self.town.folder / "filler.out"
        process = self.town.fill(str(number), FULL_SECONDS, fault == "disk", out)
        self.filler = (fault, time.monotonic(), process)
        return True

    def _trials(self) -> list[Any]:
        """Workers at a trial, not those that begin one or wait: a silence at the start is long before it is a stall."""
        return [process for process in self.town.workers() if title(process).startswith(f"{TRIAL}.train")]

    def _hit(
        self, processes: Sequence[Any], number: int, seconds: float | None = None, told: int | None = None
    ) -> bool:
        still = {one.pid for one in self.stopped} | self.hung
        there = [process for process in processes if number != signal.SIGSTOP or process.pid not in still]
        if not there:
            return False
        pid = self.draw.choice(sorted(there, key=lambda process: process.began)).pid
        if seconds is not None:
            self.stopped.append(Stopped(time.monotonic() + seconds, pid, told))
        elif number == signal.SIGSTOP:
            self.hung.add(pid)
        _signal(pid, number)
        return True


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
