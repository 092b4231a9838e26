"""One tracker's process: it reads the ledger beside the driver and tells the tracker, as fast as that one takes it.

It is a process of its own so that nothing of a tracker (a slow server, a crash, a leak) reaches the sweep. How far it has
come is in `<sweep>/trackers/<type>.json`; a later one, after a resume or a crash, goes on from there.

    python -m sweeps.trackers.sender FOLDER TYPE
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from sweeps.ledger import Ledger
from sweeps.lock import DriverLock, LockHeld
from sweeps.paths import SweepPaths
from sweeps.records import read_record, write_aside
from sweeps.report.redact import cut, redact
from sweeps.secret_values import Masks, values_of
from sweeps.track_spec import TrackConfig
from sweeps.trackers import build_tracker
from sweeps.trackers.base import Tracker
from sweeps.trackers.feed import Feed, Said, say

POLL_SECONDS = 1.0
LONGEST_PAUSE = 60.0
"""Seconds between two tries at a tracker that fails, at most."""
DOUBLED_AT_MOST = 6
"""So often the pause grows, which is to the longest one."""
AT_ONCE = 500
"""Events that are taken in before what they say is sent."""
LAST_SECONDS = 60
"""A sender whose driver is gone ends after so long, whatever its tracker does."""
PREDECESSOR_SECONDS = LAST_SECONDS + 5.0
"""How long a sender waits for the one of a killed driver."""


class Sender:
    """Sends what a tracker has not been told yet.

    Args:
        paths: the sweep's.
        config: the tracker's entry, with its defaults filled in.
        tracker: what to tell.
        masks: take out what no text may hold.
    """

    def __init__(self, paths: SweepPaths, config: TrackConfig, tracker: Tracker, masks: Masks | None = None) -> None:
        self._file = paths.tracker(config.type)
        self._config = config.model_dump(mode="json")
        self._tracker = tracker
        self._masks = masks or Masks()
        self._feed = Feed(str(paths.root), self._masks)
        self._waiting: deque[tuple[int, Said]] = deque()
        self._opened = False
        record = self._read()
        self.sent: int = record["sent"]
        self._owed = record.get("open") is True
        self._notes: dict[str, Any] = record["notes"]

    def send(self, ledger: Ledger) -> int:
        """Tell the tracker everything that is new, and note how far that is; the number of things told.

        Raises:
            Exception: whatever the tracker raises; the next call goes on with what that one failed at.
        """
        count = 0
        while True:
            count += self._drain()
            before = self._feed.state.seq
            for event in ledger.events(after=before):
                said = self._feed.take(event, new=event.seq > self.sent)
                self._waiting.extend((event.seq, one) for one in said)
                if len(self._waiting) >= AT_ONCE:
                    break
            if self._feed.state.seq == before:
                return count

    def describe(self, error: BaseException) -> str:
        """An error in one line without secrets."""
        return described(error, self._masks)

    def log(self) -> None:
        """Put the traceback of the error at hand into the log, without secrets."""
        print(redact(self._masks.text(traceback.format_exc())), file=sys.stderr, flush=True)

    def conclude(self) -> None:
        """Tell the tracker how the driver ended, and let go; also where a process before this one came no further."""
        if not self._opened and not self._owed:
            return
        self._open()
        state = self._feed.state
        self._tracker.concluded(state.driver_ended or "interrupted", state.updated_at)
        self._tracker.close()
        self._opened = self._owed = False
        self._save()

    def _open(self) -> None:
        if not self._opened:
            self._tracker.open(self._feed.sweep, self._notes)
            self._opened = True
            self._save()

    def _drain(self) -> int:
        """Tell what waits; it counts as sent once the tracker has let it through."""
        if not self._feed.state.seq or (self.sent >= self._feed.state.seq and not self._waiting):
            return 0
        self._open()
        count = 0
        while self._waiting:
            say(self._tracker, self._waiting[0][1])
            self._waiting.popleft()
            count += 1
        self._tracker.flush()
        self.sent = self._feed.state.seq
        self._save()
        return count

    def _read(self) -> dict[str, Any]:
        """What the process before noted; nothing where it wrote to another place, or the file is damaged."""
        fresh: dict[str, Any] = {"sent": 0, "notes": {}}
        record = read_record(self._file)
        sound = record.get("config") == self._config
        sound = sound and isinstance(record.get("sent"), int) and isinstance(record.get("notes"), dict)
        return record if sound else fresh

    def _save(self) -> None:
        self._file.parent.mkdir(exist_ok=True)
        record = {"sent": self.sent, "open": self._opened, "config": self._config, "notes": self._notes}
        write_aside(self._file, json.dumps(record))


def described(error: BaseException, masks: Masks) -> str:
    """An error in one line without secrets."""
    lines = [line.strip() for line in masks.text(str(error)).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return cut(str(redact(text)), 300)


def drives(paths: SweepPaths, driver: Mapping[str, Any] | None) -> bool:
    """Whether it is still this driver that has the sweep; None is nobody."""
    return driver is not None and DriverLock.holder(paths.lock) == driver


def follow(
    sender: Sender,
    ledger: Ledger,
    paths: SweepPaths,
    driver: Mapping[str, Any] | None,
    warn: Callable[[str], None],
) -> bool:
    """Send until the driver has ended and everything is sent; False where the last try failed.

    Args:
        sender: sends.
        ledger: read only.
        paths: the sweep's.
        driver: who has the sweep, as its lock says; another that comes has a sender of its own.
        warn: told of what goes wrong, once until it goes well again.
    """
    failures = 0
    while True:
        driven = drives(paths, driver)
        try:
            sender.send(ledger)
            if not driven:
                sender.conclude()
                return True
            failures = 0
        except Exception as error:  # the one place where a tracker may fail and the sweep goes on
            sender.log()
            failures += 1
            if failures == 1:
                warn(sender.describe(error))
            if not driven:
                return False
        until = time.monotonic() + pause_after(failures)
        while time.monotonic() < until and drives(paths, driver):
            time.sleep(POLL_SECONDS)


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(LONGEST_PAUSE, POLL_SECONDS * 2 ** min(failures, DOUBLED_AT_MOST))


@contextlib.contextmanager
def alone(paths: SweepPaths, kind: str, seconds: float) -> Any:
    """The right to tell a sweep's tracker; the sender of a killed driver is waited for.

    Raises:
        LockHeld: when another process has it for longer.
    """
    file = paths.tracker(kind).with_suffix(".lock")
    file.parent.mkdir(exist_ok=True)
    until = time.monotonic() + seconds
    while True:
        try:
            lock = DriverLock.take(file)
            break
        except LockHeld:
            if time.monotonic() > until:
                raise
            time.sleep(POLL_SECONDS / 2)
    try:
        yield
    finally:
        lock.release()


def main(folder: str, kind: str) -> int:
    """Send beside a driver; what a person should read once goes to standard output, everything else to the log.

    What a tracker's package prints is of the second kind.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)
    told = own_output(1, 2)
    paths = SweepPaths(Path(folder))
    driver = DriverLock.holder(paths.lock)
    threading.Thread(target=end_after, args=(paths, driver), daemon=True).start()

    def warn(text: str) -> None:
        print(text, file=told, flush=True)

    from sweeps.load import load_resolved

    spec = load_resolved(paths.resolved_spec).spec
    config = next(entry for entry in spec.track if entry.type == kind)
    try:
        with alone(paths, kind, PREDECESSOR_SECONDS):
            ledger = Ledger.read(paths.root)
            sender = Sender(paths, config, build_tracker(config), Masks(values_of(spec.env)))
            return 0 if follow(sender, ledger, paths, driver, warn) else 1
    except LockHeld:
        warn("another process is telling it; see `stockpot track`")
        return 1


def own_output(output: int, log: int) -> TextIO:
    """A text file for what goes to a descriptor by our will; what anything else writes there goes to the log."""
    told = os.fdopen(os.dup(output), "w", encoding="utf-8")
    os.dup2(log, output)
    return told


def end_after(paths: SweepPaths, driver: Mapping[str, Any] | None) -> None:
    """Wait until the driver is gone, and have this process end `LAST_SECONDS` later, whatever it hangs in."""
    while drives(paths, driver):
        time.sleep(POLL_SECONDS)
    signal.alarm(LAST_SECONDS)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
