"""What a race saves and what it risks, on the item scores of a finished sweep.

    python benchmarks/racing.py SWEEP_FOLDER [--metric tune/span_recall] [--sweeps 1000]

The sweep must have run every configuration on every question (`early_terminate: none`). Questions are drawn with
replacement, and means are planted by scaling each configuration's scores: (a) as measured, (b) gaps to the best doubled,
(c) all equal. Printed are the share of sweeps in which the true best stayed in, the calls as a share of the full grid,
the share of sweeps that put out anybody who is best, and how many were left.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluators.racing import Race
from sweeps.fold import fold
from sweeps.ledger import Ledger

Floats = NDArray[np.float64]


def matrix(folder: Path, metric: str) -> Floats:
    """(configurations, questions) item scores at the end of every finished run."""
    split, _, name = metric.partition("/")
    ledger = Ledger.read(folder)
    try:
        state = fold(ledger.events())
        rows = []
        for run in state.runs.values():
            if run.reports:
                found = ledger.items(run.id, max(run.reports), name, split)
                if found is not None:
                    rows.append(found.values)
    finally:
        ledger.close()
    longest = max(map(len, rows))
    return np.array([row for row in rows if len(row) == longest], dtype=np.float64)


def planted(scores: Floats, scenario: str) -> Floats:
    """The scores scaled so that their means are as measured, twice as far from the best, or all equal."""
    means = np.nanmean(scores, axis=1)
    wanted = {"a": means, "b": np.maximum(2 * means - means.max(), 0.0), "c": np.full(len(means), means.min())}[
        scenario
    ]
    return scores * (wanted / means)[:, None]


def race(scores: Floats, block: int, alpha: float) -> tuple[NDArray[np.bool_], int]:
    """(who is left, calls) of one race over the questions in their order."""
    state = Race(len(scores), alpha)
    questions, calls = scores.shape[1], 0
    for start in range(0, questions, block):
        part = scores[:, start : start + block]
        calls += int(state.alive.sum()) * part.shape[1]
        state.ask(part)
        if start + block < questions:
            state.eliminate()
    return state.alive, calls


def measure(scores: Floats, scenario: str, sweeps: int, block: int, alpha: float, seed: int) -> dict[str, float]:
    """Shares over many resampled sweeps."""
    made = planted(scores, scenario)
    means = np.nanmean(made, axis=1)
    best = np.isclose(means, means.max(), atol=1e-9)
    generator = np.random.default_rng(seed)
    kept = wrong = left = calls = 0
    for _ in range(sweeps):
        drawn = made[:, generator.integers(0, made.shape[1], made.shape[1])]
        alive, asked = race(drawn, block, alpha)
        kept += bool(alive[best].all())
        wrong += bool((~alive[best]).any())
        left += int(alive.sum())
        calls += asked
    return {
        "best_kept": kept / sweeps,
        "best_put_out": wrong / sweeps,
        "calls_share": calls / sweeps / made.size,
        "left": left / sweeps,
    }


def main() -> int:
    """Print one line a scenario."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--metric", default="tune/span_recall")
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--block", type=int, default=20)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    scores = matrix(arguments.folder, arguments.metric)
    found = {
        scenario: measure(scores, scenario, arguments.sweeps, arguments.block, arguments.alpha, arguments.seed)
        for scenario in "abc"
    }
    if arguments.json:
        print(json.dumps({"configurations": len(scores), "questions": scores.shape[1], "scenarios": found}))
        return 0
    print(f"{len(scores)} configurations, {scores.shape[1]} questions, {arguments.sweeps} sweeps, {arguments.metric}")
    names = {"a": "as measured", "b": "gaps doubled", "c": "all equal"}
    for scenario, row in found.items():
        print(
            f"({scenario}) {names[scenario]:<13} best kept {row['best_kept']:.3f}  calls {row['calls_share']:.3f} of the grid"
            f"  a best one put out {row['best_put_out']:.3f}  left {row['left']:.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
