"""Latency of a RAG sweep's best configurations and its baseline, measured when its trials have ended and nothing else runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.config import RagConfig
from sweeps.engine import Backend, CallFailed
from sweeps.events import Event
from sweeps.fold import fold
from sweeps.ledger import Ledger
from sweeps.scoring import Say, call, ranked

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep
    from sweeps.state import RunState

PROBE = "sweeps.worker:probe"
MOST = 5
"""Configurations probed at most, the best ones, and the baseline."""
BASELINE = "baseline"


def probe_latency(loaded: LoadedSweep, ledger: Ledger, backend: Backend, say: Say) -> None:
    """Probe the best configurations and the baseline where they were not probed yet, and write each result.

    Args:
        loaded: the sweep; only a RAG sweep is probed.
        ledger: open for writing.
        backend: has a worker.
        say: takes lines for people.
    """
    if not isinstance(loaded.spec.pipeline, RagConfig):
        return
    state = fold(ledger.events())
    best: dict[str, RunState] = {}
    for placed in ranked(loaded, state):
        best.setdefault(placed.run.trial, placed.run)
    known = [(run.id, run.trial, dict(state.trials[run.trial].config)) for run in list(best.values())[:MOST]]
    baseline = loaded.resolve_baseline()
    if baseline is not None:
        known.append((BASELINE, "the baseline", baseline))
    waiting = [one for one in known if one[0] not in state.probes]
    if waiting:
        say(f"latency: {len(waiting)} configurations are asked anew, one question at a time, without the memo")
    for run, name, config in waiting:
        try:
            found: dict[str, Any] = call(loaded, backend, PROBE, {"config": config})
        except CallFailed as error:
            say(f"latency of {name} could not be measured: {error.failure.message}")
            continue
        ledger.append([Event("probed", {"run": run, **found})])
        if found["p50"] is not None:
            say(
                f"latency of {name}: {found['p50']:.3g} s a question (95 % within {found['p95']:.3g} s, n={found['n']})"
            )
