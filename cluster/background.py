"""A command as a process of this machine that outlives the terminal, with its log and its end on disk.

A keeper, `python -m cluster.background FOLDER -- WORDS`, starts the command, waits for it and writes down how it ended: nobody
else could tell a command that failed from one that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from cluster.backend import Backend, Errand, Job
from cluster.base import ClusterError
from cluster.processes import Process, process

HOME = Path("~/.stockpot/jobs")
START_SECONDS = 20.0
_LOG, _RUNNING, _ENDED = "log", "running.json", "ended"


class Background(Backend):
    """Commands in the background of this machine.

    Args:
        inside: address of the cluster that they attach to; None where each starts a Ray of its own.
        home: folder with a folder for each job.
    """

    place = "this machine"

    def __init__(self, inside: str | None = None, home: Path = HOME) -> None:
        self.inside = inside
        self._home = home.expanduser()

    def submit(self, errand: Errand) -> Job:
        """Start a command in this process's folder; see `Backend.submit`."""
        if not re.fullmatch(r"[\w.-]+", errand.name) or errand.name.strip(".") == "":
            raise ClusterError(f"{errand.name!r} is no name of a job")
        folder = self._home / errand.name
        try:
            folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise ClusterError(f"can't keep the job in {folder}: {error.strerror}") from error
        # `-P`: a folder named cluster where the command is called must not be taken for ours.
        keeper = subprocess.Popen(
            [sys.executable, "-P", "-m", "cluster.background", str(folder), "--", *errand.words],
            env={**os.environ, **errand.environment}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, cwd=errand.folder,
        )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while not (folder / _RUNNING).exists():
            if keeper.poll() is not None or time.monotonic() > until:
                raise ClusterError(f"{errand.words[0]} could not be started: {self.logs(errand.name).strip()}")
            time.sleep(0.02)
        keeper.returncode = 0  # it goes on without us
        return self.status(errand.name)

    def status(self, job: str) -> Job:
        """See `Backend.status`."""
        alive = any(
            process.alive for process in self._processes(job)
        )  # first: the end is written before the keeper ends
        try:
            status = int((self._home / job / _ENDED).read_text())
        except (OSError, ValueError):
            return Job(job, "running") if alive else Job(job, "failed", "it was killed, or the machine went down")
        return Job.ended(job, status, f"exit status {status}" if status else "")

    def logs(self, job: str) -> str:
        """See `Backend.logs`."""
        try:
            return (self._home / job / _LOG).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def cancel(self, job: str) -> None:
        """Ctrl-C to the command; see `Backend.cancel`."""
        command, _ = self._processes(job)
        if command.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(command.pid, signal.SIGINT)

    def _processes(self, job: str) -> tuple[Process, Process]:
        """The command and its keeper."""
        try:
            command, keeper = json.loads((self._home / job / _RUNNING).read_text())
            return Process(*command), Process(*keeper)
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(f"there is no job {job} on this machine") from error


def keep(folder: Path, words: Sequence[str]) -> int:
    """Run a command to its end, and write down how it ended."""

    def pass_over(number: int, frame: FrameType | None) -> None:
        """The command hears of it too, and ends."""

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_over)  # no SIG_IGN, which the command would inherit
    with (folder / _LOG).open("ab") as log:
        try:
            command = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except OSError as error:
            log.write(f"{error.strerror}\n".encode())
            return 1
    both = [process(pid) for pid in (command.pid, os.getpid())]
    _write(folder / _RUNNING, json.dumps([[one.pid, one.began] for one in both]))
    _write(folder / _ENDED, str(command.wait()))
    return 0


def _write(path: Path, text: str) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_text(text)
    aside.replace(path)


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1]), sys.argv[3:]))
