"""Sweeps on a small cluster where something is killed every few seconds, against the same sweep in peace.

A cluster of `--nodes` nodes of one CPU each is raised on this machine with `stockpot cluster up`, and a sweep of `--trials`
short trials is submitted to it. Seeded faults hit it every `--every` seconds, each of them once at first, in an order of the
seed's, and then as they are drawn: a worker or a whole node is killed (`worker`, `node`), a worker stops for a moment, for
much longer than the others take, or for good (`straggler`, `slow`, `hang`), an object store is full, so that what comes next is
spilled, or nothing can be (`store`, `disk`), the driver or the head is killed. With `--hosts` every node is in a network namespace of its own,
and nodes are cut off from all others for a while, too (`cut`). A driver that has ended is followed by `stockpot resume`, a
cluster that has lost its head is raised again. When `--seconds` are over, counted from the first event of the first sweep, and each
fault was there, the last sweep runs to its end in peace. Then everything is checked: every trial finished, each result there once
and equal to the calm run's to the last bit, nothing that a killed driver had written changed, the stores were full, others went on
beside a trial that was slow, and nothing but a hang was taken for a stall, no process or actor left, the driver's memory flat.

    python benchmarks/chaos.py [--seconds 3600] [--every 5] [--seed 0] [--trials 200] [--nodes 3]
        [--faults worker node ...] [--hosts] [--cut 10 60] [--folder DIR]

It needs Linux and about 3 GB of memory, and root for `disk` and `--hosts` alone. Exit status 0 where every check holds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from chaos_checks import examined, false_stalls, peak
from chaos_cluster import Driver, Town, await_none, digest, events_of, title
from chaos_faults import DISK_BYTES, WEIGHTS, Chaos
from namespaces import Hosts

STEPS = 5
"""Reports of a trial."""
STALL_SECONDS = 20.0
ITEMS = 12000
"""Of a report, which then goes through the object store: a store that is full is nothing to smaller ones."""
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
env: {{CHAOS_STEP: "{step}", CHAOS_ITEMS: "{items}"}}
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run, check, print; 0 where every check holds."""
    arguments = parsed(words)
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with Hosts(arguments.nodes) if arguments.hosts else contextlib.nullcontext() as hosts:
        disk = DISK_BYTES if "disk" in arguments.faults else None
        draw = random.Random(arguments.seed)
        chaos = Chaos(Town(folder, arguments.nodes, hosts, disk=disk), draw, cut_seconds=arguments.cut)
        try:
            chaos.town.up()
            calm, _ = sweep(chaos, folder, "calm", arguments, calm=True)
            chaos.first = draw.sample(arguments.faults, len(arguments.faults))
            rounds = []
            while not chaos.over():
                rounds.append(sweep(chaos, folder, f"chaos-{len(rounds)}", arguments))
            problems = [problem for driver, seen in rounds for problem in examined(driver, seen, calm)]
            problems += chaos.problems() + orphans(chaos)
            if not arguments.hosts:
                problems += false_stalls([driver for driver, _ in rounds], chaos.injected["hang"])
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
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="faults go on for so long, and until each was there"
    )
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
    if os.geteuid() != 0:
        arguments.faults = [fault for fault in arguments.faults if fault != "disk"]
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
                       stall=STALL_SECONDS, step=step, items=ITEMS)  # fmt: skip
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
            if status not in (-signal.SIGKILL, 130, 2):
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
                chaos.told += there - length
                length, moved = there, now
                if chaos.until is None and not calm:
                    chaos.until = now + arguments.seconds
            if now - moved > STUCK_SECONDS:
                raise RuntimeError(f"{name} is stuck: {file.with_suffix('.out').read_text()[-3000:]}")
    return driver, chaos.seen


def orphans(chaos: Chaos) -> list[str]:
    """Workers, actors and placement groups that are there though no sweep is, with all hosts in sight again."""
    chaos.heal()
    workers = await_none(lambda: [title(process) for process in chaos.town.workers()])
    return [f"left after the sweep's end: {left}" for left in (*workers, *await_none(chaos.town.held))]


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
        full = f", {chaos.filled[fault]} seen to be full" if fault in ("store", "disk") else ""
        print(f"  {fault:<10} {chaos.injected[fault]:>4} times{full}")
    refused = sum("OutOfDisk" in event.body["message"] for event in events if event.kind == "failed")
    print(f"reports refused by a full store: {refused}; events while a trial was slow: {chaos.meanwhile or 'none'}")
    print(f"failures told: {dict(failed) or 'none'}; {sum(driver.starts for driver in drivers)} drivers")
    print(f"leases that went again: {retried}, {resumed} of them from a checkpoint; {reported} reports, 0 lost or doubled"
          if not problems else f"{len(problems)} problems:")  # fmt: skip
    print(f"a driver's memory: {max(map(peak, drivers)) >> 20} MB at most, {peak(calm) >> 20} in peace")
    for problem in problems:
        print(f"  {problem}")


if __name__ == "__main__":
    sys.exit(main())
