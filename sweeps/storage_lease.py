"""One driver at a time in remote storage: a lease with a fencing number.

`lease/000007.json` is written once, by whoever is the seventh driver of the sweep, and says who that is. Its holder rewrites
`lease/000007.alive` every few seconds, and writes `lease/000007.ended` when it goes. Who finds the newest lease ended, or its
sign of life older than `DEAD_SECONDS` by the storage's own clock, may write the next number; of two who try, the storage lets one
through. A holder that sees a higher number than its own has lost the sweep: it stops, and sends nothing more.

A working folder has a nonce, which its drivers write into their leases, so that a driver killed on this machine is followed at once
by the next one here (the lock of the folder proves that it is dead), and so that a folder that another machine has overtaken is known.
It is noted in the folder before a lease is taken with it: no kill makes a lease of one's own a stranger's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sweeps.paths import SweepPaths
from sweeps.records import parsed, read_record, write_aside
from sweeps.stopping import stop_text
from sweeps.storage import Storage, StorageError

FOLDER = "lease"
ALIVE_SECONDS, DEAD_SECONDS = 10.0, 60.0
STOP = "stop.request"


@dataclass(frozen=True)
class Held:
    """A lease as the storage shows it.

    Attributes:
        number: counts drivers from 1; 0 where there was none.
        holder: what it wrote: pid, host, started, nonce.
        silent: seconds since its last sign of life, by the storage's clock; None where it gave back the lease.
    """

    number: int
    holder: Mapping[str, Any]
    silent: float | None

    @property
    def alive(self) -> bool:
        """Whether its holder may still be at work."""
        return self.silent is not None and self.silent < DEAD_SECONDS


def look(storage: Storage, *, writing: bool = True) -> Held:
    """The newest lease.

    Args:
        storage: the sweep's.
        writing: False for readers, who may not be allowed to write: they hold its age against their own clock.

    Raises:
        StorageError: when the storage does not say.
    """
    names = set(storage.files(FOLDER))
    number = max((int(name[len(FOLDER) + 1 :][:-5]) for name in names if _is_lease(name)), default=0)
    if not number:
        return Held(0, {}, None)
    holder = parsed(storage.get(_name(number, "json")))
    if _name(number, "ended") in names:
        return Held(number, holder, None)
    sign = _name(number, "alive") if _name(number, "alive") in names else _name(number, "json")
    written, now = storage.written(sign), _now(storage) if writing else time.time()
    return Held(number, holder, 0.0 if written is None or now is None else max(0.0, now - written))


def _now(storage: Storage) -> float | None:
    """The storage's own clock."""
    clock = f"{FOLDER}/.clock-{uuid.uuid4().hex[:8]}"
    storage.put(clock, b"")
    try:
        return storage.written(clock)
    finally:
        storage.delete([clock])


def own_nonce(paths: SweepPaths) -> str:
    """What the drivers of a working folder write into their leases; empty where it was never driven."""
    return str(read_record(paths.lease).get("nonce", ""))


def is_ours(found: Held, paths: SweepPaths) -> bool:
    """Whether a lease was taken by a driver of this working folder."""
    nonce = own_nonce(paths)
    return bool(nonce) and found.holder.get("nonce") == nonce


class StorageLease:
    """The right to drive a sweep in remote storage, kept by a thread until `close`.

    Attributes:
        number: the fencing number.
        lost: why the sweep is another driver's now; empty while it is ours.
    """

    def __init__(self, storage: Storage, number: int, record: bytes, on_stop: Callable[[bytes], None]) -> None:
        """Not for callers: use `take`."""
        self._storage = storage
        self._record = record
        self._on_stop = on_stop
        self._over = threading.Event()
        self._unsaid = False
        self._thread = threading.Thread(target=self._keep, name="stockpot-lease", daemon=True)
        self.number = number
        self.lost = ""
        self._thread.start()

    @classmethod
    def take(cls, storage: Storage, paths: SweepPaths, found: Held, on_stop: Callable[[bytes], None]) -> StorageLease:
        """Take the lease that follows the newest; the working folder's own lock is held.

        Args:
            storage: the sweep's.
            paths: its working folder.
            found: the newest lease, as it was when the caller made up its mind; one that came since is not followed.
            on_stop: called with the request when somebody asked for a stop through the storage, or took the sweep over; again where it raises OSError.

        Raises:
            StorageError: `taken` when another driver may be at work.
            OSError: if the working folder can't be written; nothing was taken.
        """
        if found.alive and not is_ours(found, paths):
            raise StorageError("taken", _refusal(paths, found))
        before = own_nonce(paths)
        nonce = before or uuid.uuid4().hex
        write_aside(paths.lease, json.dumps({"number": found.number + 1, "nonce": nonce}))
        holder = {
            "number": found.number + 1,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "nonce": nonce,
        }
        name = _name(found.number + 1, "json")
        record = json.dumps(holder).encode()
        storage.put_new(name, record)
        if (
            parsed(storage.get(name)).get("nonce") != nonce
        ):  # also of two that a storage lets through; the later one stays
            if not before:  # nothing was driven here: leave nothing
                paths.lease.unlink(missing_ok=True)
            raise StorageError("taken", _refusal(paths, look(storage)))
        storage.delete([STOP])
        return cls(storage, found.number + 1, record, on_stop)

    def mine(self) -> bool:
        """Ask whether the sweep is still ours.

        Raises:
            StorageError: when the storage does not say.
        """
        if not self.lost and (said := self._storage.get(_name(self.number + 1, "json"))) is not None:
            other = parsed(said)
            self.lost = f"pid {other.get('pid')} on {other.get('host')} has taken it over since {other.get('started')}"
            self._unsaid = True
            self._say_lost()
        return not self.lost

    def _say_lost(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: it is said again
            self._on_stop(stop_text())
            self._unsaid = False

    def close(self) -> None:
        """Stop keeping it, and give it back where the storage answers; who still sends is stopped before that."""
        self._over.set()
        self._thread.join(timeout=ALIVE_SECONDS)
        lost, self.lost = self.lost, self.lost or "its driver has ended"
        if not lost:
            with contextlib.suppress(StorageError):  # it runs out by itself
                self._storage.put(_name(self.number, "ended"), b"")

    def _keep(self) -> None:
        while not self.lost or self._unsaid:
            if self._unsaid:
                self._say_lost()
            with contextlib.suppress(StorageError, OSError):  # the rider says what is wrong; it is tried again
                if not self.lost:
                    self._storage.put(_name(self.number, "alive"), str(time.time()).encode())
                    if self._storage.get(_name(self.number, "json")) is None:  # the bucket was emptied, or made anew
                        self._storage.put_new(_name(self.number, "json"), self._record)
                if self.mine() and (asked := self._storage.get(STOP)) is not None:
                    self._on_stop(asked)
                    self._storage.delete([STOP])
            if self._over.wait(ALIVE_SECONDS):
                return


def _refusal(paths: SweepPaths, found: Held) -> str:
    holder = found.holder
    who = f"pid {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"
    wait = "" if found.silent is None else f"; its last sign of life is {found.silent:.0f} s old"
    return (
        f"sweep {paths.name} in {paths.url} is driven by {who}{wait}: wait for it, or `stockpot stop {paths.url}`; one that died "
        f"is followed {DEAD_SECONDS:g} s after its last sign of life"
    )


def _name(number: int, suffix: str) -> str:
    return f"{FOLDER}/{number:06d}.{suffix}"


def _is_lease(name: str) -> bool:
    stem, _, suffix = name.removeprefix(f"{FOLDER}/").partition(".")
    return suffix == "json" and stem.isdigit()
