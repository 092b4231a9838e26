"""What a trial costs beside its work: no-op trials under Stockpot and under raw Ray Tune.

Each run is a fresh process with its own embedded Ray (not timed), 2 slots of one CPU, 100 trials with one report each.
Timed is from the start of the loop (`Tuner.fit`) to the last trial's last event. Stockpot's runs include its ledger: every
suggestion, report and decision is on the disk before it takes effect.

    python benchmarks/orchestration.py [--pairs 7] [--trials 100] [--defaults 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SLOTS = 2
ALLOWED_MS = 6.0
FILE = """
name: noop
storage: {storage}
pipeline: {{type: custom, import_path: "orchestration:Noop", total: 1, metrics: {{loss: minimize}}}}
parameters: {{kwargs.x: {{min: 0.0, max: 1.0}}}}
metric: loss
budget: {{trials: {trials}}}
max_concurrent_trials: 2
resources: {{cpus: 1, gpus: 0}}
"""


class Noop:
    """A pipeline that reports its parameter once."""

    resource = "steps"

    def __init__(self, x: float) -> None:
        self.x = x

    def run(self, task: Any, report: Any) -> None:
        """One report, at once."""
        from evaluators.base import Report, Score

        report(Report(1, (Score("loss", "tune", self.x, 0.1, 4, 0, "minimize"),)))


def stockpot(trials: int) -> dict[str, float]:
    """Seconds from the loop's start to the last event, and those spent in the ledger."""
    from sweeps.backend import RayBackend
    from sweeps.engine import Engine
    from sweeps.events import Event
    from sweeps.ledger import Ledger
    from sweeps.load import load_text

    with tempfile.TemporaryDirectory() as storage:
        text = FILE.format(storage=storage, trials=trials)
        loaded = load_text(text.encode(), Path(__file__).resolve().parent)
        backend = RayBackend(loaded, loaded.paths)
        ledger = Ledger.create(loaded.paths.root)
        spent = time_appends(ledger)
        ledger.append([Event("sweep_created", {"name": "noop", "spec": loaded.record(), "versions": {}, "space": {}})])
        ledger.append([Event("driver_started", {"pid": os.getpid(), "host": "here", "version": ""})])
        spent.clear()
        began = time.time()
        engine = Engine(loaded, ledger, loaded.paths, backend.slots)
        backend.run(engine)
        events = list(ledger.events())
        finished = sum(event.kind == "run_ended" and event.body["state"] == "finished" for event in events)
        assert (finished, backend.slots) == (trials, SLOTS), (finished, backend.slots)
        backend.close()
        ledger.close()
        return {"seconds": events[-1].time - began, "ledger": sum(spent), "appends": float(len(spent))}


def time_appends(ledger: Any) -> list[float]:
    """Record what every append takes."""
    spent: list[float] = []
    plain = ledger.append

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - began)

    ledger.append = timed
    return spent


def tune(trials: int, best: bool) -> dict[str, float]:
    """Seconds from `Tuner.fit` to the last trial's completion."""
    if best:
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    from ray import tune

    from cluster.local import connect

    ended: list[float] = []

    class Clock(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ended.append(time.time())

    def noop(config: dict[str, Any]) -> None:
        tune.report({"loss": config["x"]})

    cluster = connect(cpus=SLOTS)
    with tempfile.TemporaryDirectory() as storage:
        tuner = tune.Tuner(
            tune.with_resources(noop, {"cpu": 1}),
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=trials, reuse_actors=best),
            run_config=tune.RunConfig(name="noop", storage_path=storage, verbose=0, callbacks=[Clock()]),
        )
        began = time.time()
        tuner.fit()
        assert len(ended) == trials, len(ended)
    cluster.close()
    return {"seconds": ended[-1] - began}


def measure(kind: str, trials: int) -> dict[str, float]:
    """One run in a fresh process."""
    command = [sys.executable, __file__, "--one", kind, "--trials", str(trials)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    if done.returncode:
        sys.exit(f"{kind} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def describe(name: str, values: list[float], unit: str) -> str:
    """Median and range."""
    return f"{name:<44} {statistics.median(values):8.2f} {unit}  (range {min(values):.2f} to {max(values):.2f})"


def main() -> int:
    """Measure in turns and print; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="Stockpot and Tune at its best, in turns (default 7)")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--defaults", type=int, default=1, help="runs of Tune at its defaults, over 2 minutes each")
    parser.add_argument("--one", choices=["stockpot", "best", "defaults"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run = (
            stockpot(arguments.trials)
            if arguments.one == "stockpot"
            else tune(arguments.trials, arguments.one == "best")
        )
        print(json.dumps(run))
        return 0
    ours, best = [], []
    for pair in range(arguments.pairs):
        for kind in ("stockpot", "best") if pair % 2 == 0 else ("best", "stockpot"):
            (ours if kind == "stockpot" else best).append(measure(kind, arguments.trials))
        print(
            f"pair {pair + 1}: stockpot {ours[-1]['seconds']:.2f} s, Tune at its best {best[-1]['seconds']:.2f} s",
            flush=True,
        )
    defaults = [measure("defaults", arguments.trials) for _ in range(arguments.defaults)]
    return report(arguments.trials, ours, best, defaults)


def report(
    trials: int, ours: list[dict[str, float]], best: list[dict[str, float]], defaults: list[dict[str, float]]
) -> int:
    """Print the figures; 1 where the bar is missed."""
    mine = [1000 * run["seconds"] / trials for run in ours]
    theirs = [1000 * run["seconds"] / trials for run in best]
    over = [left - right for left, right in zip(mine, theirs, strict=True)]
    print(f"{trials} no-op trials, one report each, {SLOTS} slots, {len(ours)} pairs in fresh processes")
    print(describe("Stockpot, ledger included", mine, "ms/trial"))
    print(describe("Ray Tune at its best (reuse, loggers off)", theirs, "ms/trial"))
    if defaults:
        print(describe("Ray Tune at its defaults", [1000 * run["seconds"] / trials for run in defaults], "ms/trial"))
    print(describe("Stockpot minus Tune at its best", over, "ms/trial"))
    print(describe("Stockpot / Tune at its best", [a / b for a, b in zip(mine, theirs, strict=True)], "times   "))
    print(
        describe(
            "of Stockpot's: the ledger, fsync included", [1000 * run["ledger"] / trials for run in ours], "ms/trial"
        )
    )
    each = [1000 * run["ledger"] / run["appends"] for run in ours]
    print(describe("one append (a transaction, durable)", each, "ms      "))
    met = statistics.median(over) <= ALLOWED_MS
    print(f"bar: at most {ALLOWED_MS:g} ms a trial more than Tune at its best: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
