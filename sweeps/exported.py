"""What a cluster's monitoring sees of a sweep while its driver runs: a handful of numbers, told apart by the sweep's name."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from cluster.meters import Number
from sweeps.progress import best

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep
    from sweeps.state import SweepState

PHASES = ("waiting", "running", "unplaced", "finished", "stopped", "failed", "interrupted")


def numbers(state: SweepState, loaded: LoadedSweep) -> list[Number]:
    """The numbers now.

    Args:
        state: the fold of the ledger.
        loaded: the sweep.
    """
    sweep = {"sweep": state.name}
    runs = list(state.runs.values())
    phases = Counter(state.phase_of(run) for run in runs)
    failures = Counter(failure.kind for run in runs for failure in run.failures)
    found = [
        *(Number("stockpot_runs", float(phases[p]), "runs, by phase", {**sweep, "phase": p}) for p in PHASES),
        Number("stockpot_slots", float(state.driver.get("slots") or 0), "runs at once at most", sweep),
        Number("stockpot_trials", float(len(state.searched)), "trials begun", sweep),
        Number(
            "stockpot_reports", float(sum(len(run.reports) for run in runs)), "reports taken in", sweep, counter=True
        ),
        *(
            Number("stockpot_failures", float(count), "failures, by kind", {**sweep, "kind": kind}, counter=True)
            for kind, count in sorted(failures.items())
        ),
    ]
    top = best(state, loaded)
    if top is not None and math.isfinite(float(top["value"])):
        tags = {**sweep, "metric": loaded.metric}
        found.append(Number("stockpot_best", float(top["value"]), "the metric's best value so far", tags))
    return found
