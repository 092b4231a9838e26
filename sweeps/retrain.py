"""Training one configuration from beginning to end outside the search, for the final step. Runs on a worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluators.base import Report
from pipelines.finetune.checkpoint import content_hash, newest_whole
from pipelines.stage import Task

TRAIN = "sweeps.retrain:train"
"""What `Backend.call` calls."""


def reached(folder: Path) -> int:
    """Resource of the newest whole checkpoint of an attempt's folder, 0 without one."""
    newest = newest_whole(folder)
    return 0 if newest is None else int(newest.name.rpartition("-")[2])


def train(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Train to the total, from the newest whole checkpoint where an earlier call was cut off.

    Args:
        payload: `config` (resolved), `trial`, `seed`, `folder` (the attempt's), `milestones` (the last is the total),
            `checkpoint_seconds`.

    Returns:
        `{checkpoint, hash}`: folder and content hash of the checkpoint at the total.

    Raises:
        RuntimeError: if the pipeline returned without that checkpoint.
    """
    from sweeps.worker import current_setup, progress, run_together, services

    setup = current_setup()
    folder, total = Path(payload["folder"]), int(payload["milestones"][-1])
    start = reached(folder)
    if start < total:
        task = Task(
            config=payload["config"],
            trial=payload["trial"],
            seed=int(payload["seed"]),
            attempt=0,
            folder=str(folder),
            milestones=tuple(int(m) for m in payload["milestones"] if m > start),
            total=total,
            start=str(newest_whole(folder)) if start else None,
            start_resource=start,
            checkpoint_seconds=payload["checkpoint_seconds"],
            devices=setup.devices,
            services=services(setup),
        )

        def report(report: Report) -> None:
            progress(f"{payload['trial']} with seed {payload['seed']}: {report.resource} of {total}")

        run_together(task, report)
    newest = newest_whole(folder)
    if newest is None or reached(folder) != total:
        raise RuntimeError(f"the pipeline ended without a checkpoint at {total} in {folder}")
    return {"checkpoint": str(newest), "hash": content_hash(newest)}
