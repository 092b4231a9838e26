"""Sparse model soups: the best run pruned, retrained several times under one mask, averaged, and pruned again.

Source: Zimmer et al., "Sparse Model Soups" (ICLR 2024, arXiv 2306.16788). After phase k of K the share of zeros is
1 - (1 - s)^(k/K). The m retrainings of a phase are trials of a sweep inside the sweep (`sweeps.inner`): the same engine leases,
retries and resumes them, and an ordinary soup averages them, gates included. Left out: batch norm, which language models don't
have, and schedules made for retraining alone (SLR, LLR); any of the pipeline's can be given.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.soups.base import Ingredient
from sweeps.checkpoints import DiskCheckpoints
from sweeps.engine import Backend, Engine
from sweeps.events import Event
from sweeps.fold import fold
from sweeps.inner import InnerLedger
from sweeps.ledger import Ledger
from sweeps.load import LoadedSweep, from_record
from sweeps.metrics import ingredient_metric, soup_metric, timetable
from sweeps.paths import SweepPaths, cache_dir
from sweeps.provenance import model_card
from sweeps.records import write_aside
from sweeps.scoring import Say, call, has_split, ranked, relative, whole_checkpoint
from sweeps.soup_plan import NoSoup, Plan
from sweeps.soup_spec import SoupConfig, SparseSoupConfig
from sweeps.state import SoupState, SweepState
from sweeps.trial import Run

if TYPE_CHECKING:
    MakeSoup = Callable[[LoadedSweep, Ledger, SweepPaths, Backend, SoupConfig, Say], SoupState | None]

PRUNE = "pipelines.finetune.prune:prune"


def begin_with(
    loaded: LoadedSweep, state: SweepState, paths: SweepPaths, backend: Backend, config: SoupConfig, say: Say
) -> Plan:
    """The best run at the highest rung whose checkpoint is whole: what is pruned first.

    Raises:
        NoSoup: if there is none, or nothing scores its retrainings.
    """
    spec = loaded.spec.model_copy(update={"soup": config})
    by = ingredient_metric(spec, loaded.metrics)
    for placed in ranked(loaded, state, by):
        own = state.trials[placed.run.trial].config
        if own["type"] not in ("sft", "retrain_pruned"):
            raise NoSoup(f"sparse prunes and retrains fine-tunes, and {own['type']} is none")
        if not has_split(loaded, backend, own, "select"):
            raise NoSoup("there is nothing to choose it on: pipeline.datasets.select is not given")
        checkpoint = whole_checkpoint(paths, placed)
        if checkpoint is not None:
            folder, content = checkpoint
            one = Ingredient(placed.run.id, str(folder), content, placed.run.order)
            metric = f"select/{soup_metric(spec, loaded.metrics)}"
            return Plan(config, metric, by.name, (placed,), (one,), timetable(spec, loaded.metrics).soup, (own,))
        say(f"soup: {placed.run.id} has no whole checkpoint at {placed.report.resource}; passed over")
    raise NoSoup("it begins with a run at the highest rung, but none has a whole checkpoint")


def drive_phases(
    loaded: LoadedSweep,
    ledger: Ledger,
    paths: SweepPaths,
    backend: Backend,
    plan: Plan,
    soup: str,
    make_soup: MakeSoup,
    say: Say,
) -> None:
    """Prune, retrain and average, phase by phase; phases that the ledger has are not done again.

    Args:
        loaded: the sweep.
        ledger: the sweep's, open for writing.
        paths: the sweep's paths.
        backend: prunes, trains, merges and scores.
        plan: what it begins with, from `begin_with`.
        soup: the soup's id.
        make_soup: averages a phase (`sweeps.soup.make_soup`).
        say: takes lines for people.

    Raises:
        NoSoup: if a phase can't be pruned, retrained or averaged.
        KeyboardInterrupt: if the sweep was asked to stop meanwhile; a resume goes on.
    """
    config = plan.config
    assert isinstance(config, SparseSoupConfig), f"a sparse soup's settings are needed, but got {config.method}"
    state = fold(ledger.events())
    run = plan.placed[0].run
    pipeline = {**state.trials[run.trial].config, **run.changes}
    if not state.soups[soup].decisions:
        body = {"run": run.id, "decision": "start", "score": None, "best": None, "reason": "pruned first"}
        ledger.append([Event("soup_decided", {"soup": soup, **body})])
    done = {note["phase"]: note for note in state.soups[soup].notes if note["what"] == "phase"}
    source = plan.ingredients[0].folder
    for number in range(1, config.phases + 1):
        if number not in done:
            phase = _Phase(loaded, ledger, paths, backend, config, soup, number, say)
            done[number] = phase.go(source, pipeline, make_soup)
        source = str(paths.root / done[number]["folder"])
    _finish(ledger, paths, plan, soup, pipeline, [done[number] for number in sorted(done)], say)


class _Phase:
    """One phase: a pruned model, its retrainings, their average."""

    def __init__(
        self,
        loaded: LoadedSweep,
        ledger: Ledger,
        paths: SweepPaths,
        backend: Backend,
        config: SparseSoupConfig,
        soup: str,
        number: int,
        say: Say,
    ) -> None:
        self.loaded, self.ledger, self.backend, self.config, self.say = loaded, ledger, backend, config, say
        self.soup, self.number = soup, number
        self.name = f"{soup}/phase-{number}"
        self.inner = InnerLedger(ledger, self.name)
        self.paths = SweepPaths(paths.root, self.name)
        self.pruned = self.paths.soup("pruned")

    def go(self, source: str, pipeline: Mapping[str, Any], make_soup: MakeSoup) -> dict[str, Any]:
        """The phase's note, once its average is made."""
        mask = self._prune(source, pipeline)
        sweep = phase_sweep(self.loaded, self.config, pipeline, str(self.pruned), mask["hash"])
        self._retrain(sweep)
        made = make_soup(sweep, self.inner, self.paths, self.backend, self.config.mixing, self.say)
        if made is None or made.finished is None:
            raise NoSoup(f"phase {self.number}: its retrainings could not be averaged")
        done = made.finished
        note = {
            "phase": self.number,
            **{key: done["made"][key] for key in ("mask", "sparsity")},
            "retrained": len(made.ingredients),
            "ingredients": done["ingredients"],
            "score": done["score"],
            "folder": done["folder"],
            "hash": done["hash"],
        }
        noted = Event("soup_noted", {"soup": self.soup, "what": "phase", **note})
        self.ledger.append([noted, Event("soup_decided", self._told(note))])
        self._tidy()
        return note

    def _told(self, note: Mapping[str, Any]) -> dict[str, Any]:
        """The phase as a step of the soup's story."""
        before, after = (f"{note['sparsity'][when]:.4f}" for when in ("before", "after"))
        value = note["score"]["value"]
        reason = (
            f"{len(note['ingredients'])} of {note['retrained']} retrainings, sparsity {before} before and {after} after "
            f"averaging, mask {note['mask'][:12]}"
        )
        run = f"phase {self.number}"
        return {"soup": self.soup, "run": run, "decision": "accept", "score": value, "best": value, "reason": reason}

    def _prune(self, source: str, pipeline: Mapping[str, Any]) -> dict[str, Any]:
        """What pruning gave; again where its folder is not there any more."""
        about = {"phase": self.number}
        answers = fold(self.ledger.events()).soups[self.soup].answers
        known = next((one["answer"] for one in answers if one["question"] == "prune" and one["about"] == about), None)
        if known is not None and (self.pruned / "mask.json").is_file():
            return dict(known)
        payload = {
            "model": source,
            "out": str(self.pruned),
            "settings": self.config.prune.model_dump(mode="json"),
            "sparsity": self.config.share(self.number),
            "cache": str(cache_dir()),
            "data": pipeline["datasets"]["train"] if self.config.prune.method == "wanda" else None,
        }
        made: dict[str, Any] = call(self.loaded, self.backend, PRUNE, payload, self.say)
        if known is None:
            body = {"soup": self.soup, "question": "prune", "about": about, "answer": made}
            self.ledger.append([Event("soup_answered", body)])
        self.say(
            f"soup {self.soup}: phase {self.number} of {self.config.phases}: {made['sparsity']:.4f} of the weights are zero "
            f"(before: {made['before']:.4f}), mask {made['hash'][:12]}; {self.config.retrain.count} retrainings"
        )
        return made

    def _retrain(self, sweep: LoadedSweep) -> None:
        self.inner.append([Event("driver_started", {"pid": os.getpid(), "host": socket.gethostname()})])
        engine = Engine(sweep, self.inner, self.paths, self.backend.slots)
        engine.drive(self.backend)
        if engine.abort is not None:
            raise NoSoup(f"phase {self.number}: its retrainings all failed alike: {engine.abort.message}")
        if engine.interrupted:
            raise KeyboardInterrupt

    def _tidy(self) -> None:
        """The pruned model and the retrainings' checkpoints have done their work."""
        checkpoints = DiskCheckpoints(self.paths)
        try:
            for run in fold(self.inner.events()).runs.values():
                for found in checkpoints.listed(Run(run.trial, run.seed)):
                    body = {"run": found.run, "attempt": found.attempt, "resource": found.resource}
                    self.inner.append([Event("checkpoint_deleted", {**body, "bytes": checkpoints.size(found)})])
                    checkpoints.delete(found)
        finally:
            checkpoints.close()
        shutil.rmtree(self.pruned, ignore_errors=True)


def phase_sweep(
    loaded: LoadedSweep, config: SparseSoupConfig, pipeline: Mapping[str, Any], pruned: str, mask_hash: str
) -> LoadedSweep:
    """The sweep inside the sweep: every combination of what retrainings differ in, on the pruned model, to the end.

    Args:
        loaded: the sweep.
        config: the soup's settings.
        pipeline: resolved configuration of the run that the soup began with.
        pruned: the pruned model's folder.
        mask_hash: its mask's.
    """
    swept, record = config.retrain.parameters, loaded.record()
    base = {"base_model": pruned, "base_model_hash": None, "keep_layers": None, "mask_hash": mask_hash}
    plain = {"lora_dropout": 0.0, "use_dora": False, "peft_init_lora_weights": "default"}
    whole = {"load_in_8bit": False, "load_in_4bit": False}
    changes: dict[str, Any] = {"type": "retrain_pruned", **base, **plain, **whole}
    if pipeline.get("adapter", "lora") != "none":
        changes["adapter"] = "lora"
    if "max_steps" in swept:
        changes |= {"num_epochs": None, "max_steps": swept["max_steps"][0]}
    trials = math.prod(len(values) for values in swept.values())
    spec = {
        **record["spec"],
        "pipeline": {**pipeline, **changes},
        "parameters": {key: {"values": values} for key, values in swept.items()},
        "method": {"type": "grid"},
        "budget": {},
        "early_terminate": {"type": "none"},
        "seeds": {"tune": list(config.retrain.seeds)},
        "keep": {"best": config.retrain.count},
        "soup": None,
        "baseline": None,
    }
    about = {"total": 1, "milestones": [1], "finalists": trials, "trials": trials, "baseline": None, "sources": {}}
    inner = from_record({**record, **about, "spec": spec})
    totals = [inner.total_of(inner.resolve(inner.space.replay(choices))) for choices in inner.space.grid()]
    return replace(inner, total=max(totals), milestones=(max(totals),))


def _finish(
    ledger: Ledger,
    paths: SweepPaths,
    plan: Plan,
    soup: str,
    pipeline: Mapping[str, Any],
    phases: list[Mapping[str, Any]],
    say: Say,
) -> None:
    """The last phase's average is the soup: the same files, with the whole story beside them."""
    last, folder = phases[-1], paths.soup(soup)
    source = paths.root / last["folder"]
    for path in source.iterdir():
        if path.is_file() and path.name not in ("README.md", "soup.json"):
            _link(path, folder / path.name)
    record = json.loads((source / "soup.json").read_text(encoding="utf-8"))
    record |= {"soup": soup, "method": plan.method, "settings": plan.settings, "base_model": pipeline["base_model"]}
    begun = {"run": plan.ingredients[0].run, "hash": plan.ingredients[0].hash}
    record |= {"base_model_hash": pipeline.get("base_model_hash"), "begun_with": begun, "phases": phases}
    write_aside(folder / "README.md", model_card(record))
    write_aside(folder / "soup.json", json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    body = {
        "soup": soup,
        "ingredients": last["ingredients"],
        "folder": relative(paths, folder),
        "score": last["score"],
        "hash": last["hash"],
        "reason": "",
        "made": {key: last[key] for key in ("mask", "sparsity")},
    }
    ledger.append([Event("soup_finished", body)])
    before, after = (f"{last['sparsity'][when]:.4f}" for when in ("before", "after"))
    say(f"soup {soup}: {len(phases)} phases, sparsity {before} before and {after} after the last average")


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has none to give."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
