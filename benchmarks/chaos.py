"""Sweeps on a small cluster where something is killed every few seconds, against the same sweep in peace.

A cluster of `--nodes` nodes of one CPU each is raised on this machine with `stockpot cluster up`, and a sweep of `--trials`
short trials is submitted to it. Seeded faults hit it every `--every` seconds: a worker or a whole node is killed, a worker
stops for a while or for good, the object store is filled, the driver or the head is killed. With `--hosts` every node is in a
network namespace of its own, and nodes are cut off from all others for a while, too. A driver that has ended is followed by
`stockpot resume`, a cluster that has lost its head is raised again. When `--seconds` are over, counted from the first event of
the first sweep, or with `--once` when each fault was there once, the last sweep runs to its end in peace. Then everything is checked: every trial finished, each result there once and equal to the calm run's to the last
bit, nothing that a killed driver had written changed, no process or actor left, the driver's memory flat.

    python benchmarks/chaos.py [--seconds 3600 | --once] [--every 5] [--seed 0] [--trials 200] [--nodes 3]
        [--faults worker node ...] [--hosts] [--cut 10 60] [--folder DIR]

It needs Linux and about 2.5 GB of memory, and root for `--hosts` alone. Exit status 0 where every check holds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_cluster import TRIAL, Driver, Town, await_none, digest, events_of, title
from namespaces import Hosts

from sweeps.events import Event

STEPS = 5
"""Reports of a trial."""
STALL_SECONDS = 20.0
GROWTH_BYTES = 40 * 2**20
"""What a driver may hold beyond the calm run's, after all those faults."""
STUCK_SECONDS = 300.0
"""A sweep without a new event for so long is stuck."""
FILE = """\
name: {name}
storage: ./runs
pipeline: {{type: custom, import_path: "chaos_trial:Curve", total: {steps}, metrics: {{loss: minimize}}, kwargs: {{x: 0.5}}}}
parameters: {{kwargs.x: [{values}]}}
method: grid
metric: loss
report_every: 1
resources: {{cpus: 1, gpus: 0}}
max_concurrent_trials: {nodes}
stall_after: {stall}
on_failure: {{max_restarts: 100000}}
env: {{CHAOS_STEP: "{step}"}}
"""
FILLER = """\
import os, sys, time
from cluster.local import connect
cluster = connect(sys.argv[1])
import ray
held = [ray.put(os.urandom(2**24)) for _ in range(20)]
time.sleep(3)
cluster.close()
"""
"""Puts 320 MB into an object store of 256, and holds them for a while."""


@dataclass
class Chaos:
    """A town, a driver, and what was done to them.

    Attributes:
        town: the cluster.
        driver: of the present sweep; None before the first.
        draw: seeded.
        injected: how often each fault was.
        stopped: processes that stand still, with the time at which they go on.
        cut: hosts that are cut off, with the time at which they are healed.
        cut_seconds: how long, at least and at most, one is cut off.
        helpers: processes of ours that end by themselves.
        seen: length and hash of the ledger at the death of each driver.
        until: when faults end (`time.monotonic`); None before they began.
        once: faults that are still to come, each once; None where they come as drawn until then.
    """

    town: Town
    draw: random.Random
    driver: Driver | None = None
    injected: Counter[str] = field(default_factory=Counter)
    stopped: list[tuple[float, int]] = field(default_factory=list)
    cut: list[tuple[float, int]] = field(default_factory=list)
    cut_seconds: tuple[float, float] = (10.0, 60.0)
    helpers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    seen: list[tuple[int, str]] = field(default_factory=list)
    until: float | None = None
    once: list[str] | None = None

    def over(self) -> bool:
        """Whether there were all the faults that were to be."""
        if self.once is not None:
            return not self.once
        return self.until is not None and time.monotonic() >= self.until

    def strike(self, faults: Sequence[str]) -> str | None:
        """Cause the next fault; its name, or None where there was nothing that it could hit."""
        if self.once is None:
            fault = self.draw.choices(faults, [WEIGHTS[one] for one in faults])[0]
            return fault if self.inject(fault) else None
        fault = next((one for one in self.once if self.inject(one)), None)
        if fault is not None:
            self.once.remove(fault)
        return fault

    def inject(self, fault: str) -> bool:
        """Cause a fault; False where there is nothing that it could hit now."""
        cause: Callable[[], bool] = getattr(self, f"_{fault}")
        done = cause()
        self.injected[fault] += done
        return done

    def go_on(self, everything: bool = False) -> None:
        """Let stragglers go on, and heal hosts, whose time has come."""
        now = time.monotonic()
        for until, number in list(self.cut):
            if self.town.hosts is not None and (everything or now >= until):
                self.cut.remove((until, number))
                self.town.hosts.heal(number)
        for until, pid in list(self.stopped):
            if everything or now >= until:
                self.stopped.remove((until, pid))
                _signal(pid, signal.SIGCONT)

    def _worker(self) -> bool:
        return self._hit(self.town.workers(), signal.SIGKILL)

    def _straggler(self) -> bool:
        return self._hit(self.town.workers(), signal.SIGSTOP, self.draw.uniform(1.0, 4.0))

    def _hang(self) -> bool:
        trials = [process for process in self.town.workers() if title(process).startswith(TRIAL)]
        return self._hit(trials, signal.SIGSTOP)

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
        if any(helper.poll() is None for helper in self.helpers):
            return False
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        words = self.town.command(0, [sys.executable, "-c", FILLER, self.town.address])
        self.helpers.append(subprocess.Popen(words, env=self.town.environment, **quiet))
        return True

    def _hit(self, processes: Sequence[Any], number: int, seconds: float | None = None) -> bool:
        if not processes:
            return False
        pid = self.draw.choice(sorted(processes, key=lambda process: process.began)).pid
        if seconds is not None:
            self.stopped.append((time.monotonic() + seconds, pid))
        _signal(pid, number)
        return True


WEIGHTS = {"worker": 40, "node": 14, "driver": 14, "straggler": 14, "hang": 8, "store": 6, "head": 4, "cut": 14}
"""How often each fault is drawn; `cut` with `--hosts` alone."""


def main(words: Sequence[str] | None = None) -> int:
    """Run, check, print; 0 where every check holds."""
    arguments = parsed(words)
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with Hosts(arguments.nodes) if arguments.hosts else contextlib.nullcontext() as hosts:
        chaos = Chaos(Town(folder, arguments.nodes, hosts), random.Random(arguments.seed), cut_seconds=arguments.cut)
        try:
            chaos.town.up()
            calm, _ = sweep(chaos, folder, "calm", arguments, calm=True)
            if arguments.once:
                chaos.once = chaos.draw.sample(arguments.faults, len(arguments.faults))
            rounds = []
            while not chaos.over():
                rounds.append(sweep(chaos, folder, f"chaos-{len(rounds)}", arguments))
            problems = [problem for driver, seen in rounds for problem in examined(driver, seen, calm)]
            problems += orphans(chaos)
        finally:
            chaos.go_on(everything=True)
            if chaos.driver is not None:
                chaos.driver.kill()
            chaos.town.down()
        problems += [f"left after the cluster's end: {left}" for left in await_none(chaos.town.left)]
    report(chaos, [driver for driver, _ in rounds], calm, problems, arguments, time.monotonic() - began)
    if not problems and arguments.folder is None:
        shutil.rmtree(folder)
    return 1 if problems else 0


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long faults go on")
    parser.add_argument("--once", action="store_true", help="each of the faults once, in the seed's order, and no more")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two faults, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--step", type=float, default=0.3, help="seconds of a trial's step; a trial has 5")
    parser.add_argument("--faults", nargs="+", choices=list(WEIGHTS), default=list(WEIGHTS))
    parser.add_argument("--hosts", action="store_true", help="each node in a network namespace, for `cut`; needs root")
    parser.add_argument(
        "--cut", nargs=2, type=float, default=(10.0, 60.0), metavar=("LEAST", "MOST"), help="its seconds"
    )
    parser.add_argument("--folder", help="kept; default: a temporary one, removed where every check holds")
    arguments = parser.parse_args(words)
    if not arguments.hosts:
        arguments.faults = [fault for fault in arguments.faults if fault != "cut"]
    return arguments


def sweep(
    chaos: Chaos, folder: Path, name: str, arguments: argparse.Namespace, calm: bool = False
) -> tuple[Driver, list[tuple[int, str]]]:
    """One sweep to its end, in peace, or under faults from its first event on.

    Returns:
        Its driver, and the ledger's length and hash at the death of each killed one.

    Raises:
        RuntimeError: when it is stuck, or its driver ended with a status that nobody explains.
    """
    values = [round(0.1 + 0.8 * i / max(1, arguments.trials - 1), 6) for i in range(arguments.trials)]
    step = 0.0 if calm else arguments.step
    shutil.copy(Path(__file__).with_name("chaos_trial.py"), folder)
    file = folder / f"{name}.yaml"
    text = FILE.format(name=name, steps=STEPS, values=", ".join(map(str, values)), nodes=arguments.nodes,
                       stall=STALL_SECONDS, step=step)  # fmt: skip
    file.write_text(text)
    driver = chaos.driver = Driver(chaos.town, file, folder / "runs" / name)
    chaos.seen = []
    driver.start()
    due = time.monotonic() + chaos.draw.uniform(0.0, 2 * arguments.every)
    moved = weighed = time.monotonic()
    length = 0
    while driver.poll() != 0:
        time.sleep(0.05)
        now = time.monotonic()
        chaos.go_on()
        if chaos.town.mend():
            moved = time.monotonic()
        if (status := driver.poll()) is not None and status != 0:
            if status not in (-signal.SIGKILL, 1, 130, 2):
                raise RuntimeError(f"the driver ended with {status}: {file.with_suffix('.out').read_text()[-3000:]}")
            chaos.seen.append(digest(events_of(driver.root)))
            driver.start()
        if now >= due and length and not calm and not chaos.over():
            if (fault := chaos.strike(arguments.faults)) is not None:
                print(f"{time.strftime('%H:%M:%S')} {name} {fault}", flush=True)
            due = now + chaos.draw.uniform(0.0, 2 * arguments.every)
        if now - weighed >= 1.0:
            weighed = now
            driver.weigh()
            if (there := len(events_of(driver.root))) != length:
                length, moved = there, now
                if chaos.until is None and not calm:
                    chaos.until = now + arguments.seconds
            if now - moved > STUCK_SECONDS:
                raise RuntimeError(f"{name} is stuck: {file.with_suffix('.out').read_text()[-3000:]}")
    return driver, chaos.seen


def examined(driver: Driver, seen: Sequence[tuple[int, str]], calm: Driver) -> list[str]:
    """What is wrong with a sweep that has ended; nothing where all is well."""
    events, name = events_of(driver.root), driver.root.name
    problems = [f"{name}: {problem}" for problem in untrue(events, results(events_of(calm.root)))]
    for length, told in seen:
        if digest(events[:length]) != (length, told):
            problems.append(f"{name}: the first {length} events are not those that a killed driver had written")
    most, allowed = peak(driver), peak(calm) + GROWTH_BYTES
    if most > allowed:
        problems.append(f"{name}: a driver held {most >> 20} MB; the calm run's held {peak(calm) >> 20}")
    return problems


def untrue(events: Sequence[Event], wanted: dict[tuple[float, int], tuple[Any, ...]]) -> list[str]:
    """What a ledger has that it should not, or lacks.

    Args:
        events: all of them.
        wanted: what `results` gives for a run in peace.
    """
    problems = []
    ends = Counter(event.body["run"] for event in events if event.kind == "run_ended")
    states = Counter(event.body["state"] for event in events if event.kind == "run_ended")
    started = {event.body["run"] for event in events if event.kind == "lease_started"}
    if set(ends) != started or set(ends.values()) != {1} or set(states) != {"finished"}:
        problems.append(f"runs ended {dict(states)}, {len(started)} were started, {len(ends)} have ended")
    twice = Counter((event.body["run"], event.body["resource"]) for event in events if event.kind == "reported")
    problems += [f"{key} was reported {count} times" for key, count in twice.items() if count > 1]
    if (mine := results(events)) != wanted:
        wrong = [key for key in mine.keys() | wanted.keys() if mine.get(key) != wanted.get(key)]
        problems.append(f"{len(wrong)} results are not the calm run's, as {sorted(wrong)[:3]}")
    if [event.kind for event in events].count("sweep_finished") != 1:
        problems.append("it did not finish once")
    return problems


def results(events: Sequence[Event]) -> dict[tuple[float, int], tuple[Any, ...]]:
    """What each configuration reported at each step: the loss, and the state behind it."""
    values = {
        event.body["trial"]: event.body["parameters"]["kwargs.x"] for event in events if event.kind == "suggested"
    }
    found = {}
    for event in events:
        if event.kind == "reported":
            body = event.body
            key = (values[body["run"].partition("/")[0]], body["resource"])
            found[key] = (body["scores"][0]["value"], body["telemetry"]["train/state"])
    return found


def peak(driver: Driver) -> int:
    """The most that a driver of a sweep held, in bytes."""
    return max((max(life) for life in driver.memory if life), default=0)


def orphans(chaos: Chaos) -> list[str]:
    """Workers that are there though no sweep is."""
    return [
        f"left after the sweep's end: {left}" for left in await_none(lambda: [title(p) for p in chaos.town.workers()])
    ]


def report(
    chaos: Chaos,
    drivers: Sequence[Driver],
    calm: Driver,
    problems: Sequence[str],
    arguments: argparse.Namespace,
    seconds: float,
) -> None:
    """Print what was done and what came of it."""
    events = [event for driver in drivers for event in events_of(driver.root)]
    failed = Counter(event.body["kind"] for event in events if event.kind == "failed")
    reported = sum(event.kind == "reported" for event in events)
    retried = sum(event.kind == "lease_started" and event.body["why"] == "again" for event in events)
    resumed = sum(event.kind == "lease_started" and event.body["why"] == "again" and event.body["from_resource"] > 0
                  for event in events)  # fmt: skip
    print(
        f"seed {arguments.seed}: {len(drivers)} sweeps of {arguments.trials} trials on {arguments.nodes} nodes, {seconds:.0f} s"
    )
    for fault in arguments.faults:
        print(f"  {fault:<10} {chaos.injected[fault]:>4} times")
    print(f"failures told: {dict(failed) or 'none'}; {sum(driver.starts for driver in drivers)} drivers")
    print(f"leases that went again: {retried}, {resumed} of them from a checkpoint; {reported} reports, 0 lost or doubled"
          if not problems else f"{len(problems)} problems:")  # fmt: skip
    print(f"a driver's memory: {max(map(peak, drivers)) >> 20} MB at most, {peak(calm) >> 20} in peace")
    for problem in problems:
        print(f"  {problem}")


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
