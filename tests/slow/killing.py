"""Kills drivers with -9 at seeded moments, resumes them as a user would, and tells what the ledger then says.

Moments are counted in ledger events, so that kills fall everywhere in a sweep: between a suggestion and its lease, a
report and the next step, in the final step. Only the driver's own process is killed; what Ray started must go by itself.

Example:
    >>> kills = kill_along(file, gaps=[3, 9, 2], delays=[0.0, 0.01, 0.02])
    >>> story(paths) == story(uninterrupted)
    True
"""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.events import Event
from sweeps.ledger import Ledger
from sweeps.load import load_file
from sweeps.paths import SweepPaths

STOCKPOT = str(Path(sys.executable).with_name("stockpot"))


@dataclass(frozen=True)
class Kill:
    """One kill -9 of a driver.

    Attributes:
        events: what the ledger held right after it.
        pids: the processes that the driver had started, and those had, at that moment.
        fell: kind of the last event before it.
    """

    events: tuple[Event, ...]
    pids: tuple[int, ...]
    fell: str


def moments(seed: int, kills: int, longest: int) -> tuple[list[int], list[float]]:
    """Seeded gaps (events of the driver before it is killed) and delays (seconds after the last of these)."""
    draw = random.Random(seed)
    return [draw.randint(1, longest) for _ in range(kills)], [draw.random() * 0.05 for _ in range(kills)]


def start(file: Path) -> subprocess.Popen[bytes]:
    """The driver as a user starts it: `submit` at first, `resume` after that. Its output goes beside the file."""
    paths = load_file(file).paths
    words = ["resume", str(paths.root)] if last_seq(paths) else ["submit", str(file)]
    with file.with_suffix(".out").open("ab") as out:
        return subprocess.Popen([STOCKPOT, *words], stdout=out, stderr=out, cwd=file.parent)


def run_to_the_end(file: Path, seconds: float = 400) -> int:
    """Submit or resume, and wait; the exit status."""
    driver = start(file)
    try:
        return driver.wait(seconds)
    finally:
        driver.kill()
        driver.wait()


def kill_along(file: Path, gaps: Sequence[int], delays: Sequence[float], seconds: float = 400) -> list[Kill]:
    """Start, kill and start again; then run to the end. A driver that ends before its moment ends the kills.

    Raises:
        AssertionError: when a driver writes nothing for `seconds`, or the last one does not end with 0.
    """
    paths, kills = load_file(file).paths, []
    for gap, delay in zip(gaps, delays, strict=True):
        before = last_seq(paths)
        driver = start(file)
        try:
            await_seq(paths, before + 1 + gap, driver, seconds)
            time.sleep(delay)
        finally:
            pids = tuple(below(driver.pid))
            driver.send_signal(signal.SIGKILL)
            status = driver.wait()
        if status != -signal.SIGKILL:
            break
        events = tuple(read(paths))
        kills.append(Kill(events, pids, events[-1].kind if events else "nothing"))
    status = run_to_the_end(file, seconds)
    assert status == 0, f"the last driver ended with {status}:\n{file.with_suffix('.out').read_text()[-2000:]}"
    return kills


def last_seq(paths: SweepPaths) -> int:
    """The newest event's number; 0 without a ledger."""
    if not paths.ledger.is_file():
        return 0
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"{paths.ledger.as_uri()}?mode=ro", uri=True, timeout=5)) as database,
    ):
        return int(database.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])
    return 0


def await_seq(paths: SweepPaths, seq: int, driver: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until the ledger holds that many events, or the driver has ended."""
    until = time.monotonic() + seconds
    while last_seq(paths) < seq and driver.poll() is None:
        assert time.monotonic() < until, f"event {seq} did not come within {seconds:g} s; there are {last_seq(paths)}"
        time.sleep(0.002)


def read(paths: SweepPaths) -> list[Event]:
    """All events."""
    if not last_seq(paths):
        return []
    ledger = Ledger.read(paths.root)
    try:
        return list(ledger.events())
    finally:
        ledger.close()


def story(paths: SweepPaths) -> list[tuple[Any, ...]]:
    """What must not depend on kills, in order: suggestions, reports with their scores, decisions at rungs."""
    told: list[tuple[Any, ...]] = []
    for event in read(paths):
        body = event.body
        if event.kind == "suggested":
            told.append((event.kind, body["trial"], body["order"], tuple(sorted(body["parameters"].items()))))
        elif event.kind == "reported":
            values = tuple((score["split"], score["name"], score["value"]) for score in body["scores"])
            told.append((event.kind, body["run"], body["resource"], values))
        elif event.kind == "decided" and "checkpoint" not in body:
            told.append((event.kind, body["run"], body["resource"], body["action"], body["reason"]))
        elif event.kind == "run_ended":
            told.append((event.kind, body["run"], body["state"], body["reason"]))
    return told


def below(root: int) -> list[int]:
    """Descendants of a process."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, waiting = [], [root]
    while waiting:
        inside = children.get(waiting.pop(), [])
        found += inside
        waiting += inside
    return found


def alive(pids: Sequence[int]) -> list[int]:
    """Those that still run (a zombie does not)."""
    left = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                left.append(pid)
    return left


def await_gone(pids: Sequence[int], seconds: float = 90) -> list[int]:
    """Wait until none of the processes runs; those that still do."""
    until = time.monotonic() + seconds
    while (left := alive(pids)) and time.monotonic() < until:
        time.sleep(0.2)
    return left
