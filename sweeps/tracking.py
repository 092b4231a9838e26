"""The driver's side of its trackers: it starts a process for each, repeats what they complain of once, and waits for nobody.

A tracker that fails, hangs or is slow holds nothing up: its process reads the ledger by itself (`sweeps.trackers.sender`).
At the end of a driver a tracker has `GOODBYE_SECONDS` for what it was not told yet; `stockpot track` sends the rest later.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeps.paths import SweepPaths
from sweeps.track_rules import destination, missing
from sweeps.track_spec import TrackConfig

GOODBYE_SECONDS = 20.0
SAY_SECONDS = 2.0
"""After so long the wait at the end is spoken of."""
POLL_SECONDS = 0.1
SETTINGS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""The trackers' packages report nothing about themselves, and print no addresses."""
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""What is tried again is tried again here, and only warnings are printed; the shell may say otherwise."""


def environment() -> dict[str, str]:
    """This process's, as it is when a tracker is told."""
    return {**DEFAULTS, **os.environ, **SETTINGS}


@dataclass
class _Child:
    config: TrackConfig
    process: subprocess.Popen[bytes]
    heard: bytes = b""
    warned: bool = False
    told: list[str] = field(default_factory=list)


class Tracking:
    """The trackers of one driver.

    Args:
        paths: the sweep's; its ledger is there and locked.
        trackers: the file's `track`, defaults filled in.
        say: tells a person.
        sender: module that is run for each; with the sweep's folder and the tracker's type.
    """

    def __init__(
        self,
        paths: SweepPaths,
        trackers: Sequence[TrackConfig],
        say: Callable[[str], None],
        sender: str = "sweeps.trackers.sender",
    ) -> None:
        self._paths = paths
        self._trackers = trackers
        self._say = say
        self._sender = sender
        self._children: list[_Child] = []

    def start(self) -> None:
        """Start a process for each tracker whose package is here."""
        for config in self._trackers:
            if (message := missing(config.type)) is not None:
                self._say(f"warning: track: {message}; nothing is sent there")
                continue
            try:
                self._children.append(_Child(config, self._launch(config)))
            except OSError as error:
                self._say(f"warning: track: {config.type} could not be started: {error.strerror}")
                continue
            self._say(f"tracked by {config.type}: {destination(config, self._paths)}")

    def poll(self) -> None:
        """Repeat what a tracker complains of, once; never waits."""
        for child in self._children:
            _listen(child)
            ended = child.process.poll()
            if (child.told or ended) and not child.warned:
                child.warned = True
                why = child.told[0] if child.told else f"its process ended with status {ended}"
                log = self._paths.log(f"track-{child.config.type}")
                self._say(
                    f"warning: track: {child.config.type} could not be told ({why}); the sweep goes on without it, see {log}"
                )

    def finish(self) -> None:
        """Wait a little for what is still on its way; called once the driver has let go of the ledger."""
        began, spoken = time.monotonic(), False
        try:
            while (busy := self._busy()) and time.monotonic() - began < GOODBYE_SECONDS:
                if not spoken and time.monotonic() - began > SAY_SECONDS:
                    spoken = True
                    self._say(f"sending the rest to {', '.join(child.config.type for child in busy)}")
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            pass
        self.poll()
        late = [child for child in self._children if child.process.poll() != 0]
        for child in late:
            child.process.kill()
            child.process.wait()
        if late:
            kinds = ", ".join(child.config.type for child in late)
            self._say(
                f"warning: track: {kinds} has not been told everything; `stockpot track {self._paths.root}` sends the rest"
            )
        for child in self._children:
            if child.process.stdout is not None:
                child.process.stdout.close()
        self._children = []

    def _busy(self) -> list[_Child]:
        return [child for child in self._children if child.process.poll() is None]

    def _launch(self, config: TrackConfig) -> subprocess.Popen[bytes]:
        self._paths.logs.mkdir(exist_ok=True)
        command = [sys.executable, "-m", self._sender, str(self._paths.root), config.type]
        shared: dict[str, Any] = {"stdin": subprocess.DEVNULL, "start_new_session": True, "env": environment()}
        with self._paths.log(f"track-{config.type}").open("ab") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, **shared)
        assert process.stdout is not None, "it was asked for"
        os.set_blocking(process.stdout.fileno(), False)
        return process


def _listen(child: _Child) -> None:
    """Take in the lines that a process has written so far."""
    if child.process.stdout is None or child.process.stdout.closed:
        return
    try:
        child.heard += os.read(child.process.stdout.fileno(), 1 << 16)
    except BlockingIOError:
        return
    *lines, child.heard = child.heard.split(b"\n")
    child.told += [line.decode("utf-8", "replace") for line in lines if line.strip()]
