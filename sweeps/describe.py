"""What a sweep would run, told before it runs: for `stockpot check`, the time left, and the report."""

from __future__ import annotations

from typing import Any

from sweeps.load import LoadedSweep
from sweeps.searchers.cover import division
from sweeps.soup_spec import SoupConfig, SparseSoupConfig
from sweeps.spec import ASHAConfig


def describe(loaded: LoadedSweep) -> dict[str, Any]:
    """What a sweep would run, for `stockpot check` (JSON).

    `rungs` says for each milestone how many runs are expected to reach it: one in eta goes on, and at least the
    finalists. `resource` sums what they train.
    """
    seeds = len(loaded.spec.seeds.tune)
    rungs: list[dict[str, Any]] | None = None
    resource: int | None = None
    if loaded.trials is not None:
        rungs, resource, before = [], 0, 0
        runs = loaded.trials * seeds
        rule = loaded.spec.early_terminate
        for index, milestone in enumerate(loaded.milestones):
            if index and isinstance(rule, ASHAConfig):
                runs = min(runs, max(1, runs // rule.eta, loaded.finalists))
            rungs.append({"resource": milestone, "runs": runs})
            resource += runs * (milestone - before)
            before = milestone
    return {
        "name": loaded.spec.name,
        "folder": str(loaded.paths.root),
        "pipeline": loaded.spec.pipeline.type,
        "method": loaded.spec.method.type,
        "covers": division(loaded.spec.method.type, loaded.space),
        "metric": loaded.metric,
        "direction": loaded.direction,
        "metrics": [{"name": metric.name, "direction": metric.direction} for metric in loaded.metrics],
        "trials": loaded.trials,
        "hours": loaded.spec.budget.hours,
        "seeds": seeds,
        "parameters": len(loaded.space.paths),
        "configurations": loaded.space.size,
        "total": loaded.total,
        "finalists": loaded.finalists,
        "rungs": rungs,
        "resource": resource,
        "soup": None if loaded.spec.soup is None else _soup(loaded.spec.soup),
        "warnings": list(loaded.warnings),
    }


def _soup(soup: SoupConfig) -> dict[str, Any]:
    """The recipe, how many runs it considers and, of a sparse one, what it trains in phases."""
    told: dict[str, Any] = {"method": soup.method, "top": soup.top}
    if isinstance(soup, SparseSoupConfig):
        told |= {"sparsity": soup.sparsity, "phases": soup.phases, "retrainings": soup.retrain.count}
    return told
