"""Making a soup from a sweep: ingredients chosen, mixtures merged and scored on `select`, every step an event.

The recipe (`pipelines/soups/recipes.py`) decides and sees no weights; here its mixtures are made on a worker, scored, and
written to the ledger. After a kill the recipe runs again from the beginning and is answered from the ledger, so that it
comes to the same decisions without scoring anything twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.soups.recipes import build_recipe
from pipelines.soups.recipes.ranking import NothingScored
from sweeps.bench import Tasting, scored
from sweeps.engine import Backend, CallFailed
from sweeps.events import Event
from sweeps.failures import full_disk
from sweeps.fold import fold
from sweeps.ledger import Ledger
from sweeps.merging import make_weights
from sweeps.paths import SweepPaths
from sweeps.provenance import model_card, soup_record
from sweeps.records import write_aside
from sweeps.scoring import Say, relative, silent
from sweeps.soup_plan import NoSoup, Plan, make_plan
from sweeps.soup_spec import SoupConfig, SparseSoupConfig
from sweeps.sparse import begin_with, drive_phases
from sweeps.state import SoupState, SweepState

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep


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
    phased = isinstance(config, SparseSoupConfig)
    try:
        plan = (begin_with if phased else make_plan)(loaded, state, paths, backend, config, say)
    except NoSoup as why:
        say(f"no soup: {why}")
        return None
    soup, plan = _begun(ledger, plan)
    if soup is None:
        soup = _new_id(state, plan.method)
        ledger.append([Event("soup_started", plan.record(soup, paths, state))])
    elif (finished := state.soups[soup].finished) is not None:
        if finished["folder"]:
            return state.soups[soup]
        say(f"no soup: {finished['reason']}")
        return None
    say(f"soup {soup}: {plan.method} over {len(plan.ingredients)} runs, chosen on {plan.metric}")
    folder = paths.soup(soup)
    try:
        if phased:
            drive_phases(loaded, ledger, paths, backend, plan, soup, make_soup, say)
        else:
            _make(loaded, ledger, paths, backend, plan, soup, say)
    except NoSoup as why:
        nothing: dict[str, Any] = {"ingredients": [], "folder": "", "score": None, "hash": None, "reason": str(why)}
        ledger.append([Event("soup_finished", {"soup": soup, **nothing})])
        say(f"no soup: {why}")
        return None
    finally:
        shutil.rmtree(folder / ".work", ignore_errors=True)
    return fold(ledger.events()).soups[soup]


def _make(
    loaded: LoadedSweep, ledger: Ledger, paths: SweepPaths, backend: Backend, plan: Plan, soup: str, say: Say
) -> None:
    """Let the recipe decide, then make its blend.

    Raises:
        NoSoup: if the ingredients can't be scored or merged.
    """
    state, folder = fold(ledger.events()), paths.soup(soup)
    config = state.trials[plan.placed[0].run.trial].config
    bench = Tasting(loaded, ledger, backend, plan, state.soups[soup], folder / ".work", config, say)
    try:
        blend = build_recipe(plan.config).mix(plan.ingredients, bench)
        if Path(plan.ingredients[0].folder, "adapter_config.json").is_file():
            blend = replace(blend, rank=plan.config.rank, energy=plan.config.energy)
        bench.grams.ready([blend])
        made = make_weights(loaded, backend, bench.merge_payload(blend, folder), say)
        score = bench.made(blend, folder)
        alike = bench.cosines([ingredient.run for ingredient in plan.ingredients])
    except NothingScored as error:
        raise NoSoup(str(error)) from error
    except CallFailed as error:
        if full_disk(error.failure):
            told = f"soup {soup}: the disk is full ({error.failure.message}); soups made before are whole"
            raise CallFailed(replace(error.failure, message=told)) from error
        if error.failure.kind != "user":
            raise
        raise NoSoup(error.failure.message.removeprefix("no soup: ")) from error
    finally:
        bench.close()
    record = soup_record(paths.name, state, fold(ledger.events()).soups[soup], blend, score, made, alike, plan)
    write_aside(folder / "README.md", model_card(record))
    write_aside(folder / "soup.json", json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    parts = blend.record()
    body = {
        "soup": soup,
        "ingredients": parts.pop("mixture"),
        **parts,
        "folder": relative(paths, folder),
        "score": score.record(),
        "hash": made["hash"],
        "reason": "",
    }
    body["made"] = {key: made[key] for key in ("rank", "residual", "mask", "sparsity") if key in made}
    ledger.append([Event("soup_finished", body)])
    say(f"soup {soup}: {len(blend.mixture)} of {len(plan.ingredients)} runs, {scored(score)}{sparse(made)}")


def sparse(made: Mapping[str, Any]) -> str:
    """What a merge of pruned models says of zeros, to be put behind a line; empty for dense ones."""
    if "sparsity" not in made:
        return ""
    before, after = (f"{made['sparsity'][when]:.4f}" for when in ("before", "after"))
    return f", mask {made['mask'][:12]}, sparsity {before} before and {after} after"


def _begun(ledger: Ledger, plan: Plan) -> tuple[str | None, Plan]:
    """The soup that was begun with this plan, and the plan; a soup of an older version goes on as it was made then."""
    for event in ledger.events():
        if event.kind == "soup_started" and plan.begun_as(event.body):
            if "settings" not in event.body:
                plan = replace(plan, config=plan.config.model_copy(update={"barrier": False}))
            return str(event.body["soup"]), plan
    return None, plan


def _new_id(state: SweepState, method: str) -> str:
    taken = [int(soup.rpartition("-")[2]) for soup in state.soups if soup.rpartition("-")[0] == method]
    return f"{method}-{max(taken, default=0) + 1}"
