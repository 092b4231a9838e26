"""What a driver costs at 1,000 trials on 50 nodes: time a decision, memory, ledger. On the virtual clock, with a real ledger.

The engine, the scheduler (asha) and the ledger are those of a real sweep, durable transactions included; only the trials are
curves. Each number of trials is a process of its own: half as many, as many, and twice as many show whether anything is
quadratic. Waiting for the disk and for other processes is no part of a decision's growth, so that is of CPU time. With `--real` a small
sweep runs on so many nodes of this machine after that, its decisions timed in the driver.

    python benchmarks/scale.py [--trials 1000] [--nodes 50] [--method random] [--several] [--real 4]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

A_NODE = 4
"""Trials at once on a node."""
MOST_MS, MOST_MB, MOST_GROWTH = 5.0, 20.0, 1.5
"""A decision: in the median of the last quarter, and in CPU time at the 99th percentile of the last half; growth of memory for
1,000 trials; how many times as long a decision may take with four times as many trials, in the mean CPU time of the last half."""
FILE = """
name: scale
storage: {storage}
pipeline: {{type: custom, import_path: "scale:Nothing", total: 81, metrics: {{loss: minimize, size: minimize}}, kwargs: {{x: 0.1, r: 8}}}}
parameters: {{kwargs.x: {{distribution: log_uniform_values, min: 1.0e-5, max: 1.0e-3}}, kwargs.r: [8, 16, 32]}}
metric: {metric}
method: {method}
budget: {{trials: {trials}}}
early_terminate: {{type: asha, min: 3, eta: 3}}
report_every: 9
"""
REAL = """
name: real
storage: {storage}
pipeline: {{type: custom, import_path: "chaos_trial:Curve", total: 9, metrics: {{loss: minimize}}, kwargs: {{x: 0.1}}}}
parameters: {{kwargs.x: {{distribution: uniform, min: 0.1, max: 0.9}}}}
metric: loss
budget: {{trials: {trials}}}
early_terminate: {{type: asha, min: 1, eta: 3}}
report_every: 1
resources: {{cpus: 1, gpus: 0}}
env: {{CHAOS_STEP: "0"}}
"""


REAL_TRIALS = 200
LINE = (
    "{trials:>6.0f} trials, {reports:.0f} reports in {seconds:.0f} s: a report {report_ms:.2f} ms (median of the last quarter), "
    "{report_p95_ms:.2f} at p95, {report_max_ms:.0f} at most; of CPU {cpu_ms:.2f}, {cpu_p99_ms:.2f} at p99; "
    "a lease {ask_ms:.2f} ms, of CPU {ask_cpu_ms:.2f}"
)


class Nothing:
    """Named in the sweep file; never run."""

    resource = "steps"


class Timed:
    """A loop that keeps how long reports and asking took, seconds."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self.reports: list[float] = []
        self.cpu: list[float] = []
        self.asks: list[float] = []
        self.ask_cpu: list[float] = []

    def report(self, lease: str, report: Any) -> Any:
        """Time it."""
        began = time.thread_time()
        answer = _timed(self.reports, lambda: self._loop.report(lease, report))
        self.cpu.append(time.thread_time() - began)
        return answer

    def ask(self) -> Any:
        """Time it, where it gives a lease."""
        began = time.thread_time()
        kept: list[float] = []
        lease = _timed(kept, self._loop.ask)
        if lease is not None:
            self.ask_cpu.append(time.thread_time() - began)
            self.asks += kept
        return lease

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def _timed(kept: list[float], call: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    try:
        return call()
    finally:
        kept.append(time.perf_counter() - began)


def curve(config: Mapping[str, Any], resource: int, seed: int) -> float:
    """Falls with the resource, to what belongs to the configuration."""
    told = hashlib.sha256(repr(sorted(config["kwargs"].items())).encode()).hexdigest()
    return int(told[:8], 16) / 2**32 + 1.0 / (1 + resource)


def size(config: Mapping[str, Any], resource: int, seed: int) -> float:
    """Of a model: nothing that the first metric tells of."""
    return int(hashlib.sha256(repr(config["kwargs"]["x"]).encode()).hexdigest()[:8], 16) / 2**32


def one(trials: int, nodes: int, method: str, *, several: bool) -> dict[str, float]:
    """Run a sweep to its end; its figures."""
    from sweeps.engine import Engine
    from sweeps.events import Event
    from sweeps.ledger import Ledger
    from sweeps.load import load_text
    from sweeps.simulate import Known, MemoryCheckpoints, SimulatedBackend

    metric, more = ("[loss, size]", (Known("tune/size", "minimize", size),)) if several else ("loss", ())
    with tempfile.TemporaryDirectory() as storage:
        text = FILE.format(storage=storage, trials=trials, method=method, metric=metric)
        loaded = load_text(text.encode(), Path(__file__).resolve().parent)
        paths = loaded.paths
        backend = SimulatedBackend(
            nodes * A_NODE, curve, report_every=9, checkpoints=MemoryCheckpoints(paths), more=more
        )
        ledger = Ledger.create(paths.root)
        ledger.clock = backend.clock
        ledger.append([Event("sweep_created", {"name": "scale", "spec": loaded.record(), "versions": {}, "space": {}})])
        ledger.append([Event("driver_started", {"pid": 0, "host": "here", "version": ""})])
        engine = Engine(loaded, ledger, paths, backend.slots, backend.clock, backend.checkpoints)
        before = memory()
        loop = Timed(engine)
        began = time.perf_counter()
        backend.run(loop)
        seconds = time.perf_counter() - began
        grown = memory() - before
        ended = sum(run.phase in ("finished", "stopped") for run in engine.state.runs.values())
        assert ended == trials, f"{ended} of {trials} runs came to an end"
        ledger.close()
        return {
            "trials": trials,
            **figures(loop),
            "seconds": seconds,
            "memory_mb": grown / 1e6,
            "ledger_mb": paths.ledger.stat().st_size / 1e6,
            "segments_mb": sum(path.stat().st_size for path in paths.segments.iterdir()) / 1e6,
        }


def figures(loop: Timed) -> dict[str, float]:
    """Milliseconds of reports and of asking."""
    half = loop.cpu[len(loop.cpu) // 2 :]
    return {
        "reports": len(loop.reports),
        "report_ms": 1000 * statistics.median(loop.reports[-len(loop.reports) // 4 :]),
        "report_p95_ms": 1000 * statistics.quantiles(loop.reports, n=20)[-1],
        "report_max_ms": 1000 * max(loop.reports),
        "cpu_ms": 1000 * statistics.fmean(half),
        "cpu_p99_ms": 1000 * statistics.quantiles(half, n=100)[-1],
        "ask_ms": 1000 * statistics.median(loop.asks),
        "ask_cpu_ms": 1000 * statistics.fmean(loop.ask_cpu[len(loop.ask_cpu) // 2 :]),
    }


def attached(address: str, trials: int, folder: Path) -> dict[str, float]:
    """Run a small sweep on a real cluster, driven by this process; its figures."""
    from sweeps.backend import RayBackend
    from sweeps.engine import Engine
    from sweeps.events import Event
    from sweeps.ledger import Ledger
    from sweeps.load import load_text

    loaded = load_text(REAL.format(storage=folder, trials=trials).encode(), Path(__file__).resolve().parent)
    with contextlib.closing(RayBackend(loaded, loaded.paths, address)) as backend:
        ledger = Ledger.create(loaded.paths.root)
        ledger.append([Event("sweep_created", {"name": "real", "spec": loaded.record(), "versions": {}, "space": {}})])
        ledger.append([Event("driver_started", {"pid": os.getpid(), "host": "here", "version": ""})])
        engine = Engine(loaded, ledger, loaded.paths, backend.slots)
        loop, began = Timed(engine), time.perf_counter()
        backend.run(loop)
        seconds = time.perf_counter() - began
        ended = sum(run.phase in ("finished", "stopped") for run in engine.state.runs.values())
        assert ended == trials, f"{ended} of {trials} runs came to an end"
        engine.close()
        ledger.close()
        return {"trials": trials, "slots": backend.slots, "seconds": seconds, **figures(loop)}


def on_nodes(count: int, trials: int) -> dict[str, float]:
    """The same with nodes that are raised here, and ended."""
    from chaos_cluster import Town

    with tempfile.TemporaryDirectory(prefix="scale-", dir="/tmp") as name:
        town = Town(Path(name), count)
        try:
            town.up()
            return run_words(["--attached", town.address, "--trials", str(trials), "--folder", name], town.environment)
        finally:
            town.down()


def memory() -> int:
    """Bytes that this process holds, without what is free in its heaps."""
    from sweeps.worker import resident_bytes, trim

    gc.collect()
    trim()
    return resident_bytes()


def measure(trials: int, nodes: int, method: str, *, several: bool) -> dict[str, float]:
    """One run in a fresh process."""
    words = ["--one", "--trials", str(trials), "--nodes", str(nodes), "--method", method]
    return run_words([*words, *(["--several"] if several else ())])


def run_words(words: list[str], environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """This program with other words; the figures that it prints."""
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> int:
    """Measure and print; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=50, help=f"each with {A_NODE} trials at once (default 50)")
    parser.add_argument("--method", default="random", help="random, tpe, ...")
    parser.add_argument(
        "--real", type=int, default=0, help="nodes of one CPU that are raised here for a sweep of 200 trials"
    )
    for hidden in ("--attached", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--several", action="store_true", help="two metrics, whose rungs are ranked front by front")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.trials, arguments.nodes, arguments.method, several=arguments.several)))
        return 0
    if arguments.attached:
        print(json.dumps(attached(arguments.attached, arguments.trials, Path(arguments.folder))))
        return 0
    shares = (0.5, 1, 2)
    runs = [
        measure(int(arguments.trials * share), arguments.nodes, arguments.method, several=arguments.several)
        for share in shares
    ]
    metrics = "two metrics" if arguments.several else "one metric"
    print(f"{arguments.nodes} nodes of {A_NODE} trials, {arguments.method} with asha, {metrics}, a durable ledger")
    for run in runs:
        print(LINE.format(**run))
        print(
            "        memory +{memory_mb:.1f} MB; ledger {ledger_mb:.1f} MB, segments {segments_mb:.1f} MB".format(**run)
        )
    half, first, second = runs
    bars = [
        (f"a report at {first['trials']:.0f} trials, ms", first["report_ms"], MOST_MS),
        ("its CPU time at p99, ms", first["cpu_p99_ms"], MOST_MS),
        ("CPU time of a report, times that of a fourth of the trials", second["cpu_ms"] / half["cpu_ms"], MOST_GROWTH),
        ("CPU time of a lease, the same", second["ask_cpu_ms"] / half["ask_cpu_ms"], MOST_GROWTH),
        ("ledger a trial, the same", second["ledger_mb"] / half["ledger_mb"] / 4, MOST_GROWTH),
        (
            "memory for 1,000 more trials, MB",
            (second["memory_mb"] - first["memory_mb"]) * 1000 / arguments.trials,
            MOST_MB,
        ),
    ]
    if arguments.real:
        found = on_nodes(arguments.real, REAL_TRIALS)
        print(f"{arguments.real} real nodes, {found['slots']:.0f} trials at once")
        print(LINE.format(**found))
        bars.append(("its CPU time at p99, ms", found["cpu_p99_ms"], MOST_MS))
    for about, value, most in bars:
        print(f"bar: {about}: {value:.2f}, at most {most:g}: {'met' if value <= most else 'MISSED'}")
    return 0 if all(value <= most for _, value, most in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
