"""What a race saves and what it risks, on the item scores of a finished sweep.

    python benchmarks/racing.py SWEEP_FOLDER [--metric tune/span_recall ...] [--sweeps 1000] [--stop-when-tied]

The sweep must have run every configuration on every question (`early_terminate: none`), as that of
`benchmarks/rag_spans.yaml` has. Questions are drawn with replacement, and means are planted by scaling each configuration's
scores: (a) as measured, (b) gaps to the best doubled, (c) all equal. Printed are the share of sweeps in which the true best
stayed in, the calls as a share of the full grid, the share of sweeps that put out anybody who is best, and how many were
left. Beside the calls stands what a gambler would need who knows all means and all scores, looks after every question, and
must reach the evidence that puts out the first one; who can't be shown to be worse costs him all questions, as here.

Bars: the true best stays in at least 95 % everywhere; at most a third of the calls in (b); at most 5 % put out somebody in
(c).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluators.racing import CAP, Race
from sweeps.fold import fold
from sweeps.ledger import Ledger

Floats = NDArray[np.float64]
SCENARIOS = {"a": "as measured", "b": "gaps doubled", "c": "all equal"}


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


def race(scores: Floats, block: int, alpha: float, stop_when_tied: bool) -> tuple[NDArray[np.bool_], int]:
    """(who is left, calls) of one race over the questions in their order; stopped when tied, one goes on to the end."""
    state = Race(len(scores), alpha)
    questions, calls = scores.shape[1], 0
    for start in range(0, questions, block):
        part = scores[:, start : start + block]
        calls += int(state.alive.sum()) * part.shape[1]
        state.ask(part)
        if start + block < questions:
            state.eliminate()
            if stop_when_tied and state.settled(questions - start - block):
                calls += questions - start - block
                break
    return state.alive, calls


def measure(
    scores: Floats, scenario: str, sweeps: int, block: int, alpha: float, seed: int, stop_when_tied: bool
) -> dict[str, float]:
    """Shares over many resampled sweeps."""
    made = planted(scores, scenario)
    means = np.nanmean(made, axis=1)
    best = np.isclose(means, means.max(), atol=1e-9)
    generator = np.random.default_rng(seed)
    kept = wrong = left = calls = 0
    for _ in range(sweeps):
        drawn = made[:, generator.integers(0, made.shape[1], made.shape[1])]
        alive, asked = race(drawn, block, alpha, stop_when_tied)
        kept += bool(alive[best].all())
        wrong += bool((~alive[best]).any())
        left += int(alive.sum())
        calls += asked
    return {
        "clairvoyant_share": clairvoyant_share(made, alpha),
        "best_kept": kept / sweeps,
        "best_put_out": wrong / sweeps,
        "calls_share": calls / sweeps / made.size,
        "left": left / sweeps,
    }


def clairvoyant_share(scores: Floats, alpha: float) -> float:
    """Calls as a share of the grid of bets that grow fastest on these very scores, against the mean of the best 1 to 6."""
    count, questions = scores.shape
    order = np.argsort(-scores.mean(axis=1), kind="stable")
    rivals = [scores[order[:n]].mean(axis=0) for n in range(1, 7)]
    shares = np.linspace(0.0, CAP, 46)[:, None]
    asked = [questions]
    for place in order[1:]:
        growth = max(float(np.log1p(shares * (rival - scores[place])).mean(axis=1).max()) for rival in rivals)
        asked.append(min(questions, math.log(count / alpha) / max(growth, 1e-12)))
    return sum(asked) / scores.size


def main() -> int:
    """Print one line a scenario; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--metric", nargs="+", default=["tune/span_recall"])
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--block", type=int, default=20)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-when-tied", action="store_true", help="as the sweep file's key of this name")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    with ProcessPoolExecutor(arguments.processes) as pool:
        for metric in arguments.metric:
            scores = matrix(arguments.folder.resolve(), metric)
            one = partial(
                measure,
                scores,
                sweeps=arguments.sweeps,
                block=arguments.block,
                alpha=arguments.alpha,
                seed=arguments.seed,
                stop_when_tied=arguments.stop_when_tied,
            )
            found[metric] = dict(zip(SCENARIOS, pool.map(one, SCENARIOS), strict=True))
            if not arguments.json:
                print(f"{len(scores)} configurations, {scores.shape[1]} questions, {arguments.sweeps} sweeps, {metric}")
                show(found[metric])
    if arguments.json:
        print(json.dumps({"configurations": len(scores), "questions": scores.shape[1], "scenarios": found}))
    return 0 if all(met for rows in found.values() for _, met in bars(rows)) else 1


def show(rows: dict[str, dict[str, float]]) -> None:
    """Print one metric's scenarios and bars."""
    for scenario, row in rows.items():
        print(
            f"({scenario}) {SCENARIOS[scenario]:<13} best kept {row['best_kept']:.3f}  calls {row['calls_share']:.3f} of the "
            f"grid (clairvoyant {row['clairvoyant_share']:.3f})  a best one put out {row['best_put_out']:.3f}  "
            f"left {row['left']:.1f}"
        )
    for name, met in bars(rows):
        print(f"bar: {name}: {'met' if met else 'MISSED'}", flush=True)


def bars(rows: dict[str, dict[str, float]]) -> list[tuple[str, bool]]:
    """What is asked of one metric's scenarios, and whether they hold it."""
    return [
        ("true best kept in at least 95 % everywhere", min(row["best_kept"] for row in rows.values()) >= 0.95),
        ("at most a third of the calls in (b)", rows["b"]["calls_share"] <= 1 / 3),
        ("at most 5 % put out somebody in (c)", rows["c"]["best_put_out"] <= 0.05),
    ]


if __name__ == "__main__":
    sys.exit(main())
