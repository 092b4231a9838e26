"""What a sweep would run, told before it runs: for `stockpot check`, the time left, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.finetune.recipes import KEYS as RECIPE_KEYS
from sweeps.load import LoadedSweep
from sweeps.searchers.cover import division
from sweeps.soup_spec import SoupConfig, SparseSoupConfig
from sweeps.spec import ASHAConfig
from sweeps.track_rules import told


def describe(loaded: LoadedSweep) -> dict[str, Any]:
    """What a sweep would run, for `stockpot check` (JSON).

    `rungs` says for each milestone how many runs are expected to reach it: one in eta goes on, and at least the
    finalists, with all their seeds; of the others the first seed alone. `resource` sums what they train.
    """
    seeds = len(loaded.spec.seeds.tune)
    rungs: list[dict[str, Any]] | None = None
    resource: int | None = None
    if loaded.trials is not None:
        trials, rule = [loaded.trials], loaded.spec.early_terminate
        for _ in loaded.milestones[1:]:
            here = trials[-1]
            trials.append(
                min(here, max(1, here // rule.eta, loaded.finalists)) if isinstance(rule, ASHAConfig) else here
            )
        counts = zip(loaded.milestones, runs_at(trials, seeds), strict=True)
        own = seeds if loaded.spec.named_baseline else 0
        rungs = [{"resource": milestone, "runs": runs + own} for milestone, runs in counts]
        steps = zip([0, *loaded.milestones], rungs, strict=False)
        resource = sum(rung["runs"] * (rung["resource"] - before) for before, rung in steps)
    return {
        "name": loaded.spec.name,
        "folder": loaded.paths.place,
        "pipeline": loaded.spec.pipeline.type,
        "method": loaded.spec.method.type,
        "covers": division(loaded.spec.method.type, loaded.space),
        "metric": loaded.metric,
        "direction": loaded.direction,
        "metrics": [{"name": metric.name, "direction": metric.direction} for metric in loaded.metrics],
        "trials": loaded.trials,
        "baseline": loaded.spec.named_baseline,
        "recipe": _recipe(loaded),
        "hours": loaded.spec.budget.hours,
        "seeds": seeds,
        "parameters": len(loaded.space.paths),
        "configurations": loaded.space.size,
        "total": loaded.total,
        "finalists": loaded.finalists,
        "rungs": rungs,
        "resource": resource,
        "soup": None if loaded.spec.soup is None else _soup(loaded.spec.soup),
        "track": told(loaded.spec, loaded.paths),
        "warnings": list(loaded.warnings),
    }


def runs_at(trials: Sequence[int], seeds: int) -> list[int]:
    """Runs that reach each milestone when so many trials do: one a trial, and all seeds of those that go on or are at the total."""
    beyond = [*trials[1:], trials[-1]] if trials else []
    return [here + (seeds - 1) * on for here, on in zip(trials, beyond, strict=True)]


def _recipe(loaded: LoadedSweep) -> dict[str, Any] | None:
    """What a recipe filled in; None without one, or where it differs from trial to trial."""
    name = loaded.pipeline.get("recipe")
    if not isinstance(name, str) or "recipe" in loaded.space.paths:
        return None
    said = loaded.pipeline.keys() | set(loaded.space.paths)
    config = loaded.spec.pipeline.model_dump(mode="json")
    return {"name": name, "filled": {key: config[key] for key in sorted(RECIPE_KEYS - said)}}


def _soup(soup: SoupConfig) -> dict[str, Any]:
    """The recipe, how many runs it considers and, of a sparse one, what it trains in phases."""
    told: dict[str, Any] = {"method": soup.method, "top": soup.top}
    if isinstance(soup, SparseSoupConfig):
        told |= {"sparsity": soup.sparsity, "phases": soup.phases, "retrainings": soup.retrain.count}
    return told
