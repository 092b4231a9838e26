"""The second worker of fine-tunes: a process that reads a lease a line from its standard input and takes part in it.

It answers each with a line: `ended`, or what it failed of. What Ray's actors do beside that is tested with Ray.

Example:
    >>> with SecondWorker() as second:
    ...     reports = second.train(settings, folder, milestones=(4,))
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from evaluators.base import Report
from pipelines import build_pipeline
from pipelines.stage import Rank, Task
from sweeps.team import serve_store

HOST = "127.0.0.1"


class SecondWorker:
    """The process; a context manager."""

    def __enter__(self) -> SecondWorker:
        """Start it."""
        here = Path(__file__).resolve()
        path = os.pathsep.join([str(here.parents[2]), str(here.parents[1] / "unit"), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, str(here)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def train(self, settings: dict[str, Any], folder: Path, **more: Any) -> list[Report]:
        """Reports of a lease that this process and that one train together."""
        store, port = serve_store(HOST)
        told = {"settings": settings, "folder": str(folder), "port": port, "more": more}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        try:
            return train(settings, folder, Rank(0, 2, HOST, port), **more)
        finally:
            del store
            assert (answer := self._process.stdout.readline().strip()) == "ended", answer


def train(settings: dict[str, Any], folder: Path, rank: Rank, **more: Any) -> list[Report]:
    """Reports of a lease with one thread a worker; of the first one, or of one alone, as the others make none."""
    words: dict[str, Any] = {"seed": 7, "milestones": (settings["max_steps"],), "rung_evaluators": [{"type": "loss"}]}
    words = {name: tuple(value) if isinstance(value, list) else value for name, value in (words | more).items()}
    task = Task(
        settings,
        "0000-abcdef01",
        attempt=0,
        folder=str(folder),
        total=settings["max_steps"],
        report_every=1,
        rank=rank,
        **words,
    )
    reports: list[Report] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        build_pipeline(settings).run(task, reports.append)
    finally:
        torch.set_num_threads(threads)
    return reports


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        lease = json.loads(line)
        try:
            train(lease["settings"], Path(lease["folder"]), Rank(1, 2, HOST, lease["port"]), **lease["more"])
        except Exception as error:  # told to the test
            print(f"{type(error).__name__}: {error}", file=answers, flush=True)
        else:
            print("ended", file=answers, flush=True)
