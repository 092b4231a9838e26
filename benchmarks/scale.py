"""What a driver costs at 1,000 trials on 50 nodes: time a decision, memory, ledger. On the virtual clock, with a real ledger.

The engine, the scheduler (asha) and the ledger are those of a real sweep, durable transactions included; only the trials are
curves. Each number of trials is a process of its own; a second one with twice the trials shows whether anything is quadratic.

    python benchmarks/scale.py [--trials 1000] [--nodes 50] [--method random]
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
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
MOST_MS, MOST_MB = 5.0, 20.0
"""A decision, in the median of the last quarter; growth of memory for 1,000 trials."""
FILE = """
name: scale
storage: {storage}
pipeline: {{type: custom, import_path: "scale:Nothing", total: 81, metrics: {{loss: minimize}}, kwargs: {{x: 0.1, r: 8}}}}
parameters: {{kwargs.x: {{distribution: log_uniform_values, min: 1.0e-5, max: 1.0e-3}}, kwargs.r: [8, 16, 32]}}
metric: loss
method: {method}
budget: {{trials: {trials}}}
early_terminate: {{type: asha, min: 3, eta: 3}}
report_every: 9
"""


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

    def report(self, lease: str, report: Any) -> Any:
        """Time it."""
        began = time.thread_time()
        answer = _timed(self.reports, lambda: self._loop.report(lease, report))
        self.cpu.append(time.thread_time() - began)
        return answer

    def ask(self) -> Any:
        """Time it."""
        return _timed(self.asks, self._loop.ask)

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


def one(trials: int, nodes: int, method: str) -> dict[str, float]:
    """Run a sweep to its end; its figures."""
    from sweeps.engine import Engine
    from sweeps.events import Event
    from sweeps.ledger import Ledger
    from sweeps.load import load_text
    from sweeps.simulate import MemoryCheckpoints, SimulatedBackend

    with tempfile.TemporaryDirectory() as storage:
        text = FILE.format(storage=storage, trials=trials, method=method)
        loaded = load_text(text.encode(), Path(__file__).resolve().parent)
        paths = loaded.paths
        backend = SimulatedBackend(nodes * A_NODE, curve, report_every=9, checkpoints=MemoryCheckpoints(paths))
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
        quarter = loop.reports[-len(loop.reports) // 4 :]
        return {
            "trials": trials,
            "reports": len(loop.reports),
            "report_ms": 1000 * statistics.median(quarter),
            "report_cpu_ms": 1000 * statistics.median(loop.cpu[-len(loop.cpu) // 4 :]),
            "report_p95_ms": 1000 * statistics.quantiles(loop.reports, n=20)[-1],
            "report_max_ms": 1000 * max(loop.reports),
            "ask_ms": 1000 * statistics.median(loop.asks),
            "seconds": seconds,
            "memory_mb": grown / 1e6,
            "ledger_mb": paths.ledger.stat().st_size / 1e6,
            "segments_mb": sum(path.stat().st_size for path in paths.segments.iterdir()) / 1e6,
        }


def memory() -> int:
    """Bytes that this process holds, without what is free in its heaps."""
    from sweeps.worker import resident_bytes, trim

    gc.collect()
    trim()
    return resident_bytes()


def measure(trials: int, nodes: int, method: str) -> dict[str, float]:
    """One run in a fresh process."""
    words = ["--one", "--trials", str(trials), "--nodes", str(nodes), "--method", method]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
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
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.trials, arguments.nodes, arguments.method)))
        return 0
    runs = [measure(arguments.trials * times, arguments.nodes, arguments.method) for times in (1, 2)]
    print(f"{arguments.nodes} nodes of {A_NODE} trials, {arguments.method} with asha, a durable ledger")
    for run in runs:
        print(
            "{trials:>6.0f} trials, {reports:.0f} reports in {seconds:.0f} s: a report {report_ms:.2f} ms (median of the last "
            "quarter, {report_cpu_ms:.2f} of CPU), {report_p95_ms:.2f} at p95, {report_max_ms:.0f} at most; asking {ask_ms:.2f} ms; memory +{memory_mb:.1f} MB; "
            "ledger {ledger_mb:.1f} MB, segments {segments_mb:.1f} MB".format(**run)
        )
    first, second = runs
    growth = (second["memory_mb"] - first["memory_mb"]) * 1000 / arguments.trials
    fast = first["report_ms"] <= MOST_MS
    small = growth <= MOST_MB
    print(f"bar: a report at most {MOST_MS:g} ms at {arguments.trials} trials: {'met' if fast else 'MISSED'}")
    print(f"bar: at most {MOST_MB:g} MB for 1,000 more trials: {growth:.1f} MB, {'met' if small else 'MISSED'}")
    return 0 if fast and small else 1


if __name__ == "__main__":
    sys.exit(main())
