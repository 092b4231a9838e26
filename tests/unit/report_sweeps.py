"""Sweeps for the report's tests: simulated trials with item scores, failures, a soup and a final step, in seconds."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.base import ItemSet, Report, Score, Split, summarise
from sweeps.events import Event, Items
from sweeps.failures import Failure
from sweeps.fold import fold
from sweeps.ledger import Ledger
from sweeps.load import LoadedSweep, load_text
from sweeps.paths import SweepPaths
from sweeps.simulate import Curve, SimulatedBackend, VirtualClock, drive
from sweeps.state import SweepState
from sweeps.trial import Lease
from sweeps.verdicts import Side, verdict, with_holm

FILE = """
name: {name}
storage: .
pipeline:
  type: custom
  import_path: "toy:Toy"
  total: {total}
  metrics: {{loss: minimize}}
  kwargs: {{learning_rate: 0.001, rank: 8, dropout: 0.0, optimizer: {{type: adamw}}}}
parameters:
  kwargs.learning_rate: {{distribution: log_uniform_values, min: 1.0e-5, max: 1.0e-2}}
  kwargs.rank: [4, 8, 16, 32]
  kwargs.dropout: {{min: 0.0, max: 0.5}}
  kwargs.optimizer:
    choose:
      adamw: {{beta2: [0.95, 0.98, 0.999]}}
      lion: {{weight_decay: {{min: 0.0, max: 0.3}}}}
method: {{type: random, seed: 1}}
metric: loss
budget: {{trials: {trials}}}
early_terminate: {stop}
soup: {{method: greedy, top: {top}}}
"""
ONE_AXIS = FILE[: FILE.index("  kwargs.rank:")] + FILE[FILE.index("method:") :]
ASHA = "{{type: asha, min: {first}, eta: {eta}, finalists: {finalists}}}"
ROWS = ItemSet(tuple(f"row-{i}" for i in range(80)), None, tuple(f"g{i // 2}" for i in range(80)))
EASE = np.random.default_rng(7).normal(0.0, 0.25, len(ROWS.ids))


def loss(config: Mapping[str, Any], resource: int, seed: int) -> float:
    """Best near a learning rate of 1e-3 and little dropout; diverges at high ones."""
    kwargs = config["kwargs"]
    off = math.log10(kwargs["learning_rate"]) + 3.0
    if off > 0.8 and kwargs["dropout"] < 0.2 and resource > 8:
        return math.nan
    floor = 0.55 + 0.28 * off**2 + 0.5 * kwargs["dropout"] ** 2 + (0.06 if kwargs["optimizer"]["type"] == "lion" else 0)
    noise = 0.02 * math.sin(1e4 * kwargs["learning_rate"] + 7 * resource)
    return floor + 1.9 * math.exp(-resource * 10 ** (0.35 * off) / 14) - 0.01 * math.log2(kwargs["rank"]) + noise


def items_of(value: float, key: int, split: Split = "tune") -> Score:
    """A score with stored items around `value`."""
    noise = np.random.default_rng(key).normal(0.0, 0.08, len(ROWS.ids))
    values = value + EASE + noise - (EASE + noise).mean()
    return summarise("loss", split, "minimize", ROWS, values)


class WithItems(SimulatedBackend):
    """Reports that carry items and the telemetry of a fine-tune."""

    def _report(self, lease: Lease, resource: int, replayed: bool) -> Report:
        plain = super()._report(lease, resource, replayed)
        told = {
            "cost/seconds": 9.0 * resource,
            "cost/evaluation_seconds": 2.5 * resource,
            "cost/tokens": 512.0 * resource,
        }
        if not plain.scores:
            return Report(resource, (), {"train/loss": 2.0 / resource}, None)
        value = plain.scores[0].value
        score = (
            items_of(value, zlib.crc32(f"{lease.attempt.run.trial} {resource}".encode()))
            if math.isfinite(value)
            else plain.scores[0]
        )
        return Report(
            resource, (score,), {**told, "train/loss": value * 0.9 if math.isfinite(value) else value}, plain.checkpoint
        )


def faults(lease: Lease, resource: int) -> Failure | None:
    """One trial in nine is out of memory once, one in seventeen always breaks, with a hostile message."""
    order = lease.attempt.run.trial[:4]
    number = int(order)
    if number % 17 == 5:
        return Failure(
            "user", f"ValueError: rank {number} is <b>not</b> \u2028 divisible </script><script>alert(1)</script>", "tb"
        )
    if number % 9 == 4 and lease.attempt.n == 0:
        return Failure("oom", "CUDA out of memory. Tried to allocate 2.50 GiB", "tb")
    return None


def simulated(
    here: Path,
    trials: int = 64,
    total: int = 256,
    first: int = 2,
    eta: int = 2,
    name: str = "big",
    slots: int = 4,
    finish: bool = True,
    curve: Curve = loss,
    stop: str | None = None,
    broken: Any = faults,
    text: str = FILE,
) -> SweepPaths:
    """A sweep of simulated trials; with `finish`, a soup, a final step and the last event."""
    (here / "toy.py").write_text("class Toy:\n    pass\n", encoding="utf-8")
    rule = stop or ASHA.format(first=first, eta=eta, finalists=max(2, min(6, trials // 2)))
    loaded = load_text(
        text.format(name=name, total=total, trials=trials, stop=rule, top=max(2, min(5, trials // 2))).encode(), here
    )
    backend = WithItems(slots, curve, clock=VirtualClock(1.7e9), faults=broken, seconds=lambda config: 9.0)
    drive(loaded, loaded.paths.root, backend)
    loaded.paths.resolved_spec.write_text(json.dumps(loaded.record()), encoding="utf-8")
    if finish:
        conclude(loaded)
    return loaded.paths


def conclude(loaded: LoadedSweep) -> None:
    """A greedy soup over the best runs, and a final step with a baseline, as the driver writes them."""
    ledger = Ledger.open(loaded.paths.root, durable=False)
    state = fold(ledger.events())
    now = state.updated_at + 5
    ledger.clock = lambda: now
    best = best_runs(state, loaded)
    bodies = [
        {
            "run": run,
            "checkpoint": f"trials/{run}",
            "resource": loaded.total,
            "hash": f"{i:064x}",
            "parameters": {},
            "score": None,
        }
        for i, (run, _) in enumerate(best)
    ]
    ledger.append(
        [
            Event(
                "soup_started",
                {
                    "soup": "greedy-1",
                    "method": "greedy",
                    "tie": "accept",
                    "metric": "select/loss",
                    "ingredients": bodies,
                },
            )
        ]
    )
    inside, lowest = soup_steps(ledger, best)
    said = {"soup": "greedy-1", "ingredients": [[run, 1 / len(inside)] for run in inside], "folder": "soups/greedy-1"}
    score = items_of(lowest, 99, "select")
    ledger.append([Event("soup_finished", {**said, "score": score.record(), "hash": "ab" * 32, "reason": ""})])
    judge(ledger, best, lowest)
    trials = len(state.trials)
    now += 60
    ledger.append([Event("sweep_finished", {"trials": trials, "failed": 0, "best": None, "seconds": 1})])
    ledger.append([Event("driver_ended", {"reason": "finished"})])
    ledger.close()


def best_runs(state: SweepState, loaded: LoadedSweep) -> list[tuple[str, float]]:
    """The finished runs, best first, five at most."""
    done = [
        (run.id, run.reports[loaded.total].scores["tune/loss"].value)
        for run in state.runs.values()
        if loaded.total in run.reports
    ]
    return sorted(((run, value) for run, value in done if math.isfinite(value)), key=lambda pair: pair[1])[:5]


def soup_steps(ledger: Ledger, best: Sequence[tuple[str, float]]) -> tuple[list[str], float]:
    """Every single scored, then one added at a time."""
    for step, (run, value) in enumerate(best):
        score = items_of(value + 0.01, step + 1, "select")
        ledger.append(
            [
                Event(
                    "soup_scored", {"soup": "greedy-1", "step": step, "mixture": [[run, 1.0]], "score": score.record()}
                )
            ],
            [Items(f"soup/greedy-1/{step}", 0, score)],
        )
    inside, lowest = [best[0][0]], best[0][1] + 0.01
    start = {
        "soup": "greedy-1",
        "run": best[0][0],
        "decision": "start",
        "score": lowest,
        "best": lowest,
        "reason": "best single",
    }
    ledger.append([Event("soup_decided", start)])
    for step, (run, _) in enumerate(best[1:], len(best)):
        value = lowest + (-0.02 if step % 2 else 0.015)
        mixture = [[one, 1 / (len(inside) + 1)] for one in [*inside, run]]
        score = items_of(value, step + 50, "select")
        ledger.append(
            [Event("soup_scored", {"soup": "greedy-1", "step": step, "mixture": mixture, "score": score.record()})],
            [Items(f"soup/greedy-1/{step}", 0, score)],
        )
        taken = value < lowest
        if taken:
            inside, lowest = [*inside, run], value
        body = {
            "soup": "greedy-1",
            "run": run,
            "decision": "accept" if taken else "reject",
            "score": score.value,
            "best": lowest,
        }
        ledger.append([Event("soup_decided", {**body, "reason": f"the score is {'better' if taken else 'worse'}"})])
    return inside, lowest


def judge(ledger: Ledger, best: Sequence[tuple[str, float]], lowest: float) -> None:
    """Baseline, winner and soup on test, and the verdicts."""
    run, value = best[0]
    candidates = [
        {"role": "baseline", "model": "package://model/weights.gguf"},
        {"role": "winner", "run": run, "resource": 256, "checkpoint": "c", "hash": "cd" * 32},
        {"role": "soup", "soup": "greedy-1", "folder": "soups/greedy-1", "hash": "ab" * 32},
    ]
    ledger.append([Event("final_frozen", {"candidates": candidates})])
    ledger.append(
        [Event("test_opened", {"by": "final", "candidates": ["baseline", "winner", "soup"], "metrics": ["test/loss"]})]
    )
    sides = {}
    for key, (candidate, mean) in enumerate(zip(candidates, (value + 0.7, value + 0.03, lowest + 0.035), strict=True)):
        score = items_of(mean, 200 + key, "test")
        role = candidate["role"]
        ledger.append(
            [Event("final_scored", {"role": role, "candidate": candidate, "scores": [score.record()], "seed": None})],
            [Items(f"final/{role}", 0, score)],
        )
        sides[role] = Side(role, (score,), (ledger.items(f"final/{role}", 0, "loss", "test"),))
    pairs = [("soup", "winner"), ("winner", "baseline"), ("soup", "baseline")]
    bodies = [verdict(sides[left], sides[right], "test/loss", "minimize") for left, right in pairs]
    ledger.append([Event("verdict", body) for body in with_holm([], bodies)])
