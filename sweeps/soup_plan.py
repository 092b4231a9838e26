"""A soup to be made: which runs, in which order, and what scores their mixtures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.soups.base import Ingredient
from sweeps.engine import Backend
from sweeps.ledger import number
from sweeps.metrics import ingredient_metric, soup_metric, timetable
from sweeps.paths import SweepPaths
from sweeps.scoring import Placed, Say, has_split, ranked, relative, whole_checkpoint
from sweeps.soup_spec import SoupConfig
from sweeps.state import SweepState

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep


class NoSoup(Exception):
    """There is no soup to be had; the message says why."""


@dataclass(frozen=True)
class Plan:
    """A soup to be made.

    Attributes:
        config: the recipe and its settings.
        metric: full name, `select/loss`.
        ranked_by: full name of the sweep's metric that ranks the runs (`sweeps.metrics.ingredient_metric`).
        placed: the runs, best first.
        ingredients: the same as recipes see them.
        evaluators: the entry that reports the metric.
        configs: the runs' configurations.
    """

    config: SoupConfig
    metric: str
    ranked_by: str
    placed: tuple[Placed, ...]
    ingredients: tuple[Ingredient, ...]
    evaluators: tuple[Mapping[str, Any], ...]
    configs: tuple[Mapping[str, Any], ...]

    @property
    def method(self) -> str:
        """Name of the recipe."""
        return str(self.config.method)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two soups of the same runs and metric different."""
        told = self.config.model_dump(mode="json")
        return {key: value for key, value in told.items() if key not in ("top", "metric")}

    def record(self, soup: str, paths: SweepPaths, state: SweepState) -> dict[str, Any]:
        """The body of `soup_started`; the score that ranks it stands with each ingredient."""
        listed = []
        for placed, ingredient in zip(self.placed, self.ingredients, strict=True):
            score = placed.report.scores.get(self.ranked_by)
            listed.append(
                {
                    "run": ingredient.run,
                    "checkpoint": relative(paths, Path(ingredient.folder)),
                    "resource": placed.report.resource,
                    "hash": ingredient.hash,
                    "parameters": dict(state.trials[placed.run.trial].suggestion.parameters),
                    "score": score.record() if score is not None else number(placed.value),
                }
            )
        head = {"soup": soup, "method": self.method, "settings": self.settings, "metric": self.metric}
        return {**head, "ingredients": listed}

    def begun_as(self, body: Mapping[str, Any]) -> bool:
        """Whether a `soup_started` is this soup's. Those of older ledgers have `tie` in place of `settings`."""
        runs = [(ingredient["run"], ingredient["hash"]) for ingredient in body["ingredients"]]
        if runs != [(i.run, i.hash) for i in self.ingredients] or body["metric"] != self.metric:
            return False
        if "settings" in body:
            return bool(body["method"] == self.method and body["settings"] == self.settings)
        return bool(body["method"] == self.method and body["tie"] == getattr(self.config, "tie", body["tie"]))


def make_plan(
    loaded: LoadedSweep, state: SweepState, paths: SweepPaths, backend: Backend, config: SoupConfig, say: Say
) -> Plan:
    """The best-K runs whose checkpoints are whole, and what scores their mixtures.

    Raises:
        NoSoup: if there are fewer than two, nothing scores them, or their base models differ.
    """
    spec = loaded.spec.model_copy(update={"soup": config})
    bare, by = soup_metric(spec, loaded.metrics), ingredient_metric(spec, loaded.metrics)
    if config.metric is None and not any(metric.scored for metric in loaded.metrics):
        names = " and ".join(metric.name for metric in loaded.metrics)
        raise NoSoup(f"{names}: telemetry can't choose a soup; give soup.metric")
    found: list[tuple[Placed, Ingredient]] = []
    for placed in ranked(loaded, state, by):
        checkpoint = whole_checkpoint(paths, placed)
        if checkpoint is None:
            say(f"soup: {placed.run.id} has no whole checkpoint at {placed.report.resource}; passed over")
            continue
        folder, content = checkpoint
        found.append((placed, Ingredient(placed.run.id, str(folder), content, placed.run.order)))
        if len(found) == config.top:
            break
    if len(found) < 2:
        raise NoSoup(f"it needs 2 runs at the highest rung, but there is {len(found) or 'none'}")
    configs = [state.trials[placed.run.trial].config for placed, _ in found]
    bases = {(config.get("base_model"), config.get("base_model_hash")) for config in configs}
    if len(bases) > 1:
        raise NoSoup(f"the best runs have different base models: {', '.join(sorted(str(base) for base, _ in bases))}")
    if not has_split(loaded, backend, configs[0], "select"):
        raise NoSoup("there is nothing to choose it on: pipeline.datasets.select is not given (or evaluate is missing)")
    return Plan(
        config,
        f"select/{bare}",
        by.name,
        tuple(placed for placed, _ in found),
        tuple(ingredient for _, ingredient in found),
        timetable(spec, loaded.metrics).soup,
        tuple(configs),
    )
