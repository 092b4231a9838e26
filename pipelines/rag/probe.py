"""The latency probe: how long a question takes, one at a time, with nothing answered from the memo.

Quality is scored with the memo, so the seconds of a trial say nothing of how long a user would wait. The probe asks the
first questions of tune one by one, everything computed anew but the index, while nothing else runs, and keeps the time of
every stage. It stops after `questions` of them, or when its seconds are up. The index is built before, from vectors that the
memo has, and resident models are loaded by a question that does not count: a trial that the memo answered has neither.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.calls import make_calls
from pipelines.rag.bench import Bench
from pipelines.rag.pipeline import splits_of, typed
from pipelines.stage import Devices, Services

QUESTIONS = 20
SECONDS = 20.0
FEWEST = 3
"""Questions that are asked even if they take longer than the seconds."""


def probe(
    config: Mapping[str, Any],
    services: Services,
    devices: Devices,
    questions: int = QUESTIONS,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """Latency in seconds: `n` questions, `p50`, `p95` of the whole, and of each stage under `stages`.

    Args:
        config: resolved.
        services: of the worker.
        devices: of the worker.
        questions: asked at most.
        seconds: after which no further one is asked.
    """
    settings = typed(config)
    calls = make_calls(services, "probe", devices)
    bench = Bench(settings, calls, 0, services.cache)
    asked = splits_of(settings, bench).tune[:questions]
    rows: list[dict[str, float]] = []
    if not asked:
        return summed(rows)
    bench.prepare(asked[0])
    with calls.anew():
        bench.answered(bench.retrieved(asked[:1]))
        began = time.perf_counter()
        for question in asked:
            if len(rows) >= FEWEST and time.perf_counter() - began > seconds:
                break
            bench.seconds.clear()
            bench.answered(bench.retrieved([question]))
            rows.append(dict(bench.seconds))
    return summed(rows)


def summed(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Quantiles of the seconds of every question, by stage and in all; the median of few is between two of them."""
    whole = [sum(row.values()) for row in rows]
    stages = dict.fromkeys(stage for row in rows for stage in row)
    return {
        "n": len(rows),
        **_quantiles(whole),
        "stages": {stage: _quantiles([row.get(stage, 0.0) for row in rows]) for stage in stages},
    }


def _quantiles(seconds: Sequence[float]) -> dict[str, float | None]:
    if not seconds:
        return {"p50": None, "p95": None}
    low, high = np.quantile(np.asarray(seconds), [0.5, 0.95])
    return {"p50": round(float(low), 6), "p95": round(float(high), 6)}
