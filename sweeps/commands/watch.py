"""`status --watch`: follows a sweep's ledger, from any process, reading only what is new."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from sweeps.commands.look import describe, seen, spent_seconds
from sweeps.paths import SweepPaths

if TYPE_CHECKING:
    from sweeps.events import Event
    from sweeps.ledger import Ledger
    from sweeps.load import LoadedSweep

INTERRUPTED = 130
ENDED = {"finished", "stopped", "interrupted"}
"""States in which there is nothing more to wait for."""
MOVING = {"at", "eta"}
"""Keys of a snapshot that change with the clock alone."""


class Follower:
    """A sweep's state, kept up with by its newest events alone. The ledger stays open for reading.

    Args:
        paths: where the sweep lies.

    Attributes:
        state: the fold.
        loaded: the sweep; read again when its file changed.
        driver: who held the lock just before the newest event was read, or None.
    """

    def __init__(self, paths: SweepPaths) -> None:
        self._paths = paths
        self._ledger: Ledger | None = None
        self._token: object = None
        self._spec: object = None
        self.loaded: LoadedSweep
        self.catch_up()

    def catch_up(self) -> None:
        """Take in what is new; all of it again where the ledger is another file than before.

        Raises:
            LedgerError: when the ledger is gone or can't be read.
            SpecError: when the resolved spec can't be read.
        """
        from sweeps.driving import holder_of
        from sweeps.fold import apply_event
        from sweeps.ledger import Ledger
        from sweeps.load import load_resolved
        from sweeps.state import SweepState

        self.driver = holder_of(self._paths, ask=True)
        token = self._identity()
        if self._ledger is None or token != self._token:
            self.close()
            self._ledger, self._token, self.state = Ledger.read(self._paths.root), token, SweepState()
        for event in self._ledger.events(after=self.state.seq):
            apply_event(self.state, event)
        with contextlib.suppress(FileNotFoundError):
            changed = self._paths.resolved_spec.stat().st_mtime_ns
            if changed != self._spec:
                self.loaded, self._spec = load_resolved(self._paths.resolved_spec), changed

    def events(self, after: int) -> Iterable[Event]:
        """The ledger's events with a `seq` above `after`."""
        assert self._ledger is not None
        return self._ledger.events(after)

    def shot(self) -> dict[str, Any]:
        """The snapshot as a reader sees it."""
        return seen(self.state, self.loaded, self._paths, self.driver)

    def close(self) -> None:
        """Let go of the ledger."""
        if self._ledger is not None:
            self._ledger.drop()
            self._ledger = None

    def _identity(self) -> object:
        """What tells one ledger file from another; the segments' number where only they are there."""
        try:
            return self._paths.ledger.stat().st_ino
        except FileNotFoundError:
            return len(list(self._paths.segments.glob("*")))


def watch(paths: SweepPaths, interval: float, as_json: bool) -> int:
    """Show a sweep until it has ended; Ctrl-C leaves, the sweep goes on.

    Args:
        paths: where it lies.
        interval: seconds between looks at the ledger.
        as_json: a line of JSON at every change instead.

    Returns:
        0, or 130 after Ctrl-C.
    """
    pause = max(0.1, interval)
    follower = Follower(paths)
    try:
        if as_json:
            return _lines(follower, pause)
        with leaving():
            left = _screen(follower, pause)
        print(describe(follower.shot(), paths))
        return INTERRUPTED if left else 0
    finally:
        follower.close()


def _lines(follower: Follower, pause: float) -> int:
    before: dict[str, Any] = {}
    while True:
        shot = follower.shot()
        still = {key: value for key, value in shot.items() if key not in MOVING}
        if still != before:
            print(json.dumps(shot, allow_nan=False), flush=True)
            before = still
        if shot["state"] in ENDED:
            return 0
        time.sleep(pause)
        follower.catch_up()


def _screen(follower: Follower, pause: float) -> bool:
    """Show it; whether the person left before the end."""
    from sweeps.progress import ProgressView

    shot = follower.shot()
    hint = "Ctrl-C leaves; the sweep goes on"
    with ProgressView(sys.stdout, before=spent_seconds(shot), alternate=True, hint=hint) as view:
        try:
            view.on_read(follower.state, follower.loaded, shot, follower.events)
            while shot["state"] not in ENDED and not view.gone:
                time.sleep(pause)
                follower.catch_up()
                shot = follower.shot()
                view.on_read(follower.state, follower.loaded, shot, follower.events)
        except KeyboardInterrupt:
            return True
    return False


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """SIGTERM and a terminal that hangs up are a Ctrl-C, so that what was put up is put away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {sign: signal.signal(sign, _leave) for sign in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
