"""Making a soup from a sweep: ingredients chosen, mixtures merged and scored on `select`, every step an event.

The recipe (`pipelines/soups/recipes.py`) decides and sees no weights; here its mixtures are made on a worker, scored, and
written to the ledger. After a kill the recipe runs again from the beginning and is answered from the ledger, so that it
comes to the same decisions without scoring anything twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.base import Score
from pipelines.soups.base import Ingredient, Mixture, SoupEvent
from pipelines.soups.recipes import NothingScored, build_recipe
from sweeps.engine import Backend, CallFailed
from sweeps.ledger import Event, Items, Ledger, number
from sweeps.metrics import ingredient_metric, soup_metric, timetable
from sweeps.paths import SweepPaths, cache_dir
from sweeps.provenance import model_card, shown, soup_record, write_text
from sweeps.scoring import (
    Placed,
    Say,
    call,
    evaluate,
    has_split,
    model_source,
    ranked,
    relative,
    silent,
    whole_checkpoint,
)
from sweeps.spec import SoupConfig
from sweeps.state import SoupState, SweepState, fold

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

MERGE = "pipelines.soups:merge"
RESOURCE = 0
"""Item scores of soups are stored at this resource: a soup has no steps."""


class NoSoup(Exception):
    """There is no soup to be had; the message says why."""


@dataclass(frozen=True)
class Plan:
    """A soup to be made.

    Attributes:
        method: name of the recipe.
        tie: whether an equal score lets an ingredient in.
        metric: full name, `select/loss`.
        ranked_by: full name of the sweep's metric that ranks the runs (`sweeps.metrics.ingredient_metric`).
        placed: the runs, best first.
        ingredients: the same as recipes see them.
        evaluators: the entry that reports the metric.
    """

    method: str
    tie: str
    metric: str
    ranked_by: str
    placed: tuple[Placed, ...]
    ingredients: tuple[Ingredient, ...]
    evaluators: tuple[Mapping[str, Any], ...]

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
        return {"soup": soup, "method": self.method, "tie": self.tie, "metric": self.metric, "ingredients": listed}


def make_soup(
    loaded: LoadedSweep,
    ledger: Ledger,
    paths: SweepPaths,
    backend: Backend,
    config: SoupConfig,
    progress: Say | None = None,
) -> SoupState | None:
    """Make a soup from the best runs at the highest rung, or go on with one that was cut off.

    A soup of the same method and ingredients that is finished already is returned as it is.

    Args:
        loaded: the sweep.
        ledger: open for writing.
        paths: the sweep's paths.
        backend: merges and evaluates.
        config: method, how many runs, ties, metric.
        progress: takes lines for people.

    Returns:
        The finished soup; None when there is none to be had, with the reason told to `progress`.

    Raises:
        CallFailed: when a worker failed for a reason that is not the ingredients'.
    """
    say = progress or silent
    state = fold(ledger.events())
    try:
        plan = make_plan(loaded, state, paths, backend, config, say)
    except NoSoup as why:
        say(f"no soup: {why}")
        return None
    soup = _same_soup(ledger, plan)
    if soup is None:
        soup = _new_id(state, plan.method)
        ledger.append([Event("soup_started", plan.record(soup, paths, state))])
    elif (finished := state.soups[soup].finished) is not None:
        if finished["folder"]:
            return state.soups[soup]
        say(f"no soup: {finished['reason']}")
        return None
    kitchen = _Kitchen(loaded, ledger, paths, backend, plan, soup, say)
    try:
        kitchen.make()
    except NoSoup as why:
        body: dict[str, Any] = {
            "soup": soup,
            "ingredients": [],
            "folder": "",
            "score": None,
            "hash": None,
            "reason": str(why),
        }
        ledger.append([Event("soup_finished", body)])
        say(f"no soup: {why}")
        return None
    finally:
        shutil.rmtree(kitchen.work, ignore_errors=True)
    return fold(ledger.events()).soups[soup]


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
        config.method,
        config.tie,
        f"select/{bare}",
        by.name,
        tuple(placed for placed, _ in found),
        tuple(ingredient for _, ingredient in found),
        timetable(spec, loaded.metrics).soup,
    )


class _Kitchen:
    """One soup in the making: answers the recipe's questions and writes what comes of them."""

    def __init__(
        self,
        loaded: LoadedSweep,
        ledger: Ledger,
        paths: SweepPaths,
        backend: Backend,
        plan: Plan,
        soup: str,
        say: Say,
    ) -> None:
        self.loaded, self.ledger, self.paths, self.backend = loaded, ledger, paths, backend
        self.plan, self.soup, self.say = plan, soup, say
        self.state = fold(ledger.events())
        self.folder = paths.soup(soup)
        self.work = self.folder / ".work"
        self.config = self.state.trials[plan.placed[0].run.trial].config
        self.folders = {ingredient.run: ingredient.folder for ingredient in plan.ingredients}
        recorded = self.state.soups[soup]
        self.known = {_key(body["mixture"]): Score.from_record(body["score"]) for body in recorded.scored}
        self.decided = len(recorded.decisions)
        self.heard = 0

    def make(self) -> None:
        """Let the recipe decide, then make its mixture.

        Raises:
            NoSoup: if the ingredients can't be scored or merged.
        """
        recipe = build_recipe(SoupConfig.model_validate({"method": self.plan.method, "tie": self.plan.tie}))
        try:
            mixture = recipe.mix(self.plan.ingredients, self.score, self.hear)
            made = self.merge(mixture, self.folder)
        except NothingScored as error:
            raise NoSoup(str(error)) from error
        except CallFailed as error:
            if error.failure.kind != "user":
                raise
            raise NoSoup(error.failure.message.removeprefix("no soup: ")) from error
        score = self.score(mixture)
        self.write(mixture, score, made)
        body = {
            "soup": self.soup,
            "ingredients": [list(part) for part in mixture],
            "folder": relative(self.paths, self.folder),
            "score": score.record(),
            "hash": made["hash"],
            "reason": "",
        }
        self.ledger.append([Event("soup_finished", body)])
        self.say(f"soup {self.soup}: {len(mixture)} of {len(self.plan.ingredients)} runs, {_shown(score)}")

    def score(self, mixture: Mixture) -> Score:
        """A mixture's score on `select`, from the ledger where it is there."""
        key = _key(mixture)
        if key in self.known:
            return self.known[key]
        step = len(self.known)
        if len(mixture) == 1 and mixture[0][1] == 1.0:
            folder = Path(self.folders[mixture[0][0]])
        else:
            folder = self.work / str(step)
            self.merge(mixture, folder)
        source = model_source(self.config, folder)
        scores = evaluate(self.loaded, self.backend, self.config, source, "select", self.plan.evaluators, self.say)
        if folder.parent == self.work:
            shutil.rmtree(folder, ignore_errors=True)
        score = next((score for score in scores if score.key == self.plan.metric), None)
        if score is None:
            raise NoSoup(f"the pipeline does not report {self.plan.metric}")
        body = {"soup": self.soup, "step": step, "mixture": [list(part) for part in mixture], "score": score.record()}
        owner = f"soup/{self.soup}/{step}"
        self.ledger.append([Event("soup_scored", body)], [Items(owner, RESOURCE, each) for each in scores])
        self.ledger.ship()
        self.known[key] = Score.from_record(score.record())
        self.say(f"soup {self.soup}: {' + '.join(run for run, _ in mixture)}: {_shown(score)}")
        return self.known[key]

    def hear(self, event: SoupEvent) -> None:
        """Write a decision, unless an earlier driver did."""
        body = {
            "soup": self.soup,
            "run": event.run,
            "decision": event.decision,
            "score": number(event.score),
            "best": number(event.best),
            "reason": event.reason,
        }
        if self.heard < self.decided:
            before = dict(self.state.soups[self.soup].decisions[self.heard])
            assert before == body, f"a resumed soup must decide as before, but got {body} for {before}"
        else:
            self.ledger.append([Event("soup_decided", body)])
        self.heard += 1

    def merge(self, mixture: Mixture, out: Path) -> dict[str, Any]:
        """Make a mixture's weights in a folder."""
        weights = [[self.folders[run], weight] for run, weight in mixture]
        payload = {"ingredients": weights, "out": str(out), "cache": str(cache_dir())}
        made: dict[str, Any] = call(self.loaded, self.backend, MERGE, payload, self.say)
        return made

    def write(self, mixture: Mixture, score: Score, made: Mapping[str, Any]) -> None:
        """`README.md` and, last, `soup.json`."""
        soup = fold(self.ledger.events()).soups[self.soup]
        record = soup_record(self.paths.name, self.config, soup, mixture, score, made, self.plan.tie)
        write_text(self.folder / "README.md", model_card(record))
        write_text(self.folder / "soup.json", json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def _same_soup(ledger: Ledger, plan: Plan) -> str | None:
    """A soup that was begun with the same recipe and ingredients."""
    wanted = (plan.method, plan.tie, plan.metric, [(i.run, i.hash) for i in plan.ingredients])
    for event in ledger.events():
        if event.kind == "soup_started":
            body = event.body
            runs = [(ingredient["run"], ingredient["hash"]) for ingredient in body["ingredients"]]
            if (body["method"], body["tie"], body["metric"], runs) == wanted:
                return str(body["soup"])
    return None


def _new_id(state: SweepState, method: str) -> str:
    taken = [int(soup.rpartition("-")[2]) for soup in state.soups if soup.rpartition("-")[0] == method]
    return f"{method}-{max(taken, default=0) + 1}"


def _key(mixture: Sequence[Sequence[Any]]) -> Mixture:
    return tuple((str(run), float(weight)) for run, weight in mixture)


def _shown(score: Score) -> str:
    return f"{score.key} {shown(number(score.value))} ± {shown(number(score.se))} (n={score.n})"
