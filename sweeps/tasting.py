"""One trial soup on a worker: its weights made, scored, and gone again. `sweeps/bench.py` asks for it.

Where the pipeline can (`ModelSource.blend`), an average is made in memory, on the model that the worker keeps; any other
blend is written to a folder, scored from there, and removed. With `early` the rows come in blocks, in a seeded order, and a
candidate that is hopeless against the one it must beat is not scored to the end (`sweeps/early.py`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.base import ItemSet, Score, summarise
from pipelines.stage import EvaluationJob, ModelSource
from sweeps.early import hopeless, shuffled
from sweeps.scoring import model_source
from sweeps.worker import WARM, current_setup, services


def taste(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Score a blend: the function `sweeps.tasting:taste` of `Backend.call`.

    Args:
        payload: `config` (a trial's resolved configuration), `merge` (what `pipelines.soups:merge` takes), `averaged`
            (whether it is a plain average), `split`, `evaluators`, and `early` or None: `metric`, `block`, `alpha`, `seed`
            and the `items` of the blend to beat.

    Returns:
        `scores`, and with an early stop `seen`, the rows that were scored.
    """
    setup = current_setup()
    config, merge = payload["config"], payload["merge"]
    pipeline = WARM.get(config, setup.devices)
    out = Path(merge["out"])
    if payload["averaged"] and getattr(pipeline, "blends", False):
        parts = tuple((str(folder), float(weight)) for folder, weight in merge["ingredients"])
        source = ModelSource(str(config.get("base_model")), blend=parts)
    else:
        from pipelines.soups import merge as make

        make(merge)
        source = model_source(config, out)
    job = EvaluationJob(config, source, payload["split"], tuple(payload["evaluators"]), setup.devices, services(setup))
    try:
        early = payload.get("early")
        if early is None:
            return {"scores": pipeline.evaluate(job)}
        return _in_blocks(pipeline, job, early)
    finally:
        shutil.rmtree(out, ignore_errors=True)
        with contextlib.suppress(OSError):
            out.parent.rmdir()


def _in_blocks(pipeline: Any, job: EvaluationJob, early: Mapping[str, Any]) -> dict[str, Any]:
    """Score block after block until there are no more rows, or no hope."""
    from evaluators import first_rows
    from pipelines.config import FineTuneConfig, parse_pipeline
    from pipelines.splits import load_splits

    config = parse_pipeline(job.config)
    if not isinstance(config, FineTuneConfig):
        return {"scores": pipeline.evaluate(job)}
    limit = job.evaluators[0].get("limit")
    rows = first_rows(load_splits(config.datasets, config.seed_data).rows(job.split), limit)
    beat = np.array([np.nan if value is None else value for value in early["items"]], dtype=np.float64)
    if len(beat) != len(rows):
        return {"scores": pipeline.evaluate(job)}
    order = shuffled([row.group for row in rows], early["seed"])
    looks = max(1, -(-len(rows) // early["block"]) - 1)
    parts: list[Score] = []
    for start in range(0, len(rows), early["block"]):
        block = order[start : start + early["block"]]
        scores = pipeline.evaluate(replace(job, rows=tuple(rows[i] for i in block)))
        parts.append(next(score for score in scores if score.key == early["metric"]))
        seen = order[: start + len(block)]
        if len(seen) == len(rows):
            break
        score = _joined(parts, seen)
        assert score.items is not None, "scores of blocks must have items"
        assert score.item_set is not None, "scores of blocks must have items"
        verdict = hopeless(
            score.items, beat[np.sort(seen)], score.item_set, len(rows), early["alpha"] / looks, score.direction
        )
        if verdict is not None:
            return {"scores": (score,), "seen": len(seen), "worse_by": verdict}
    return {"scores": (_joined(parts, order),)}


def _joined(parts: Sequence[Score], seen: Sequence[int]) -> Score:
    """One score of several blocks, its items in the split's order."""
    place = np.argsort(np.asarray(seen), kind="stable")
    sets = [part.item_set for part in parts if part.item_set is not None]
    ids = [name for one in sets for name in one.ids]
    weights = [w for one in sets for w in (one.weights or [1.0] * len(one.ids))]
    groups = [g for one in sets for g in (one.groups or one.ids)]
    values = np.concatenate([part.items for part in parts if part.items is not None])
    first = parts[0]
    item_set = ItemSet(
        tuple(ids[i] for i in place),
        tuple(float(weights[i]) for i in place) if sets[0].weights is not None else None,
        tuple(groups[i] for i in place) if sets[0].groups is not None else None,
    )
    return summarise(first.name, first.split, first.direction, item_set, values[place])
