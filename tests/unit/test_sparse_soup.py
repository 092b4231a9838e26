"""Sparse soups end to end in this process, on a tiny model: phases, one mask each, resumes, and what is refused."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from soup_machine import Killed
from sparse_machine import LocalBackend
from tiny import save_model, sums, write_rows
from transformers import AutoModelForCausalLM

from pipelines.soups.masks import counted, recorded_mask
from pipelines.stage import Devices
from sweeps import worker
from sweeps.commands.story import soup_lines
from sweeps.engine import Engine
from sweeps.events import Event
from sweeps.final import run_final
from sweeps.fold import fold
from sweeps.inner import InnerLedger
from sweeps.ledger import Ledger
from sweeps.load import load_text
from sweeps.problems import SpecError
from sweeps.soup import make_soup
from sweeps.soup_spec import SparseSoupConfig, parse_soup
from sweeps.state import SoupState

SWEEP = """
name: small
storage: {storage}
pipeline:
  type: sft
  base_model: {model}
  datasets:
    train: {{path: train.jsonl, type: prompt_completion}}
    tune: {{fraction: 0.2}}
    select: {{fraction: 0.2}}
    test: {{fraction: 0.2}}
  adapter: {adapter}
  lora_r: 2
  max_steps: 4
  sequence_len: 32
  learning_rate: 0.003
method: grid
metric: loss
soup: {soup}
"""
SPARSE = "{method: sparse, sparsity: 0.75, phases: 2, barrier: false, retrain: {seeds: [0, 1], max_steps: [2]}}"


class Stage:
    """A sweep of one trial that has finished, before its soup."""

    def __init__(self, folder: Path, setup: worker.Setup, soup: str = SPARSE, adapter: str = "none") -> None:
        save_model(folder / "model")
        write_rows(folder / "train.jsonl", sums(60))
        text = SWEEP.format(storage=folder / "runs", model=folder / "model", soup=soup, adapter=adapter)
        self.loaded = load_text(text.encode(), folder)
        self.paths = self.loaded.paths
        self.ledger = Ledger.create(self.paths.root, durable=False)
        self.backend = LocalBackend(self.loaded, self.paths, setup)
        self.said: list[str] = []
        created = {"name": "small", "spec": self.loaded.record(), "versions": {}, "space": {}}
        self.ledger.append([Event("sweep_created", created)])
        self.ledger.append([Event("driver_started", {"pid": 1, "host": "here", "version": "0"})])
        engine = Engine(self.loaded, self.ledger, self.paths, 1)
        self.backend.run(engine)
        engine.close()

    def soup(self) -> SoupState | None:
        assert self.loaded.spec.soup is not None
        return make_soup(self.loaded, self.ledger, self.paths, self.backend, self.loaded.spec.soup, self.said.append)

    def made(self) -> SoupState:
        return fold(self.ledger.events()).soups["sparse-1"]

    def phase(self, number: int) -> Any:
        return fold(InnerLedger(self.ledger, f"sparse-1/phase-{number}").events())


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[worker.Setup]:
    """This process as a worker, its environment and module path left alone afterwards."""
    folder = tmp_path_factory.mktemp("worker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(worker, "_SETUP", [])
        patch.setenv("STOCKPOT_CACHE", str(folder / "cache"))
        made = worker.Setup(Devices(1.0, 0.0), str(folder), cache=str(folder / "cache"))
        worker.enter(made)
        yield made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, setup: worker.Setup) -> Stage:
    """A sweep with its finished soup."""
    stage = Stage(tmp_path_factory.mktemp("whole"), setup)
    assert stage.soup() is not None
    return stage


def test_phases_end_in_a_soup_of_the_sparsity_asked_for(whole: Stage) -> None:
    stage, soup = whole, whole.made()
    assert soup.finished is not None
    folder = stage.paths.root / soup.finished["folder"]
    assert folder == stage.paths.soup("sparse-1")
    mask = counted(folder)
    assert mask == recorded_mask(folder)
    assert mask.sparsity == pytest.approx(0.75, abs=1e-4)
    assert soup.finished["made"] == {"mask": mask.hash, "sparsity": {"before": mask.sparsity, "after": mask.sparsity}}
    assert [note["sparsity"]["before"] for note in soup.notes] == pytest.approx([0.5, 0.75], abs=1e-4)
    assert soup.notes[0]["mask"] != soup.notes[1]["mask"] == mask.hash
    AutoModelForCausalLM.from_pretrained(folder)
    record = json.loads((folder / "soup.json").read_text())
    assert record["begun_with"]["run"] == soup.ingredients[0]["run"]
    assert record["weights"]["sparsity"] == soup.finished["made"]["sparsity"]
    said = "\n".join(soup_lines(soup, folder))
    assert f"sparsity {mask.sparsity:.4f} before and {mask.sparsity:.4f} after averaging, mask {mask.hash[:12]}" in said


def test_retrainings_are_trials_of_the_same_ledger(whole: Stage) -> None:
    stage, soup = whole, whole.made()
    outer = fold(stage.ledger.events())
    assert len(outer.trials) == len(outer.runs) == 1
    for number in (1, 2):
        phase = stage.phase(number)
        assert {run.phase for run in phase.runs.values()} == {"finished"}
        assert sorted(run.seed for run in phase.runs.values()) == [0, 1]
        (trial,) = phase.trials.values()
        assert trial.config["type"] == "retrain_pruned"
        assert (trial.config["max_steps"], trial.config["mask_hash"]) == (2, soup.notes[number - 1]["mask"])
        run = next(iter(phase.runs))
        assert InnerLedger(stage.ledger, f"sparse-1/phase-{number}").items(run, 2, "loss", "tune") is not None
        assert stage.ledger.items(run, 2, "loss", "tune") is None
        assert all(report.deleted for one in phase.runs.values() for report in one.reports.values())


def test_a_finished_soup_is_not_made_again_and_is_judged(whole: Stage) -> None:
    stage, leases = whole, len(whole.backend.leases)
    again = stage.soup()
    assert again is not None
    assert again.finished == stage.made().finished
    assert len(stage.backend.leases) == leases
    run_final(stage.loaded, stage.ledger, stage.paths, stage.backend, again, stage.said.append)
    judged = fold(stage.ledger.events())
    assert {"winner", "soup", "baseline"} == {final["role"] for final in judged.finals}
    assert {(body["left"], body["right"]) for body in judged.verdicts} >= {("soup", "winner")}


@pytest.mark.parametrize("place", ["lease", "pipelines.soups:merge"])
def test_a_killed_soup_goes_on_and_ends_the_same(whole: Stage, setup: worker.Setup, tmp_path: Path, place: str) -> None:
    """Killed between two retrainings of the first phase, and when the second phase is averaged."""
    stage, wanted = Stage(tmp_path, setup), whole.made()
    passed = len(stage.backend.leases)
    seen: list[str] = []

    def fail(what: str) -> None:
        seen.append(what if ":" in what else "lease")
        if seen.count(place) == 2:
            raise Killed

    stage.backend.fail = fail
    with pytest.raises(Killed):
        stage.soup()
    stage.backend.fail = lambda what: None
    made = stage.soup()
    assert made is not None
    assert made.finished is not None
    assert wanted.finished is not None
    assert [note["mask"] for note in made.notes] == [note["mask"] for note in wanted.notes]
    assert made.finished["score"]["value"] == wanted.finished["score"]["value"]
    assert len(stage.backend.leases) - passed == 4


def test_a_stop_in_a_phase_ends_the_soup_and_the_next_driver_goes_on(setup: worker.Setup, tmp_path: Path) -> None:
    stage = Stage(tmp_path, setup, SPARSE.replace("phases: 2", "phases: 1"))

    def ask_to_stop(what: str) -> None:
        if ":" not in what:
            stage.paths.stop_request.touch()
            os.utime(stage.paths.stop_request, (time.time() + 60, time.time() + 60))

    stage.backend.fail = ask_to_stop
    with pytest.raises(KeyboardInterrupt):
        stage.soup()
    stage.backend.fail = lambda what: None
    made = stage.soup()
    assert made is not None
    assert made.finished is not None
    assert made.finished["made"]["sparsity"]["after"] == pytest.approx(0.75, abs=1e-4)


def test_an_adapters_sweep_is_pruned_retrained_and_mixed(tmp_path: Path, setup: worker.Setup) -> None:
    soup = "{method: sparse, sparsity: 0.6, phases: 1, take: greedy, prune: {method: wanda, rows: 4}, "
    stage = Stage(tmp_path, setup, soup + "retrain: {seeds: [0], weight_decay: [0.0, 0.1]}}", adapter="lora")
    made = stage.soup()
    assert made is not None
    assert made.finished is not None
    folder = stage.paths.root / made.finished["folder"]
    assert not (folder / "adapter_config.json").exists()
    assert counted(folder) == recorded_mask(folder)
    assert counted(folder).sparsity == pytest.approx(0.6, abs=0.01)
    assert sorted(trial.config["weight_decay"] for trial in stage.phase(1).trials.values()) == [0.0, 0.1]


def test_a_phase_that_cannot_go_on_says_why(tmp_path: Path, setup: worker.Setup) -> None:
    stage = Stage(tmp_path, setup, "{method: sparse, sparsity: 0.5, phases: 1, metric: exact_match}")
    (tmp_path / "runs" / "small" / "trials").rename(tmp_path / "gone")
    assert stage.soup() is None
    assert stage.said[-1] == "no soup: it begins with a run at the highest rung, but none has a whole checkpoint"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"retrain": {"seeds": [0]}}, "give two seeds or more"),
        ({"toward_base": True}, "fills the zeros"),
        ({"rank": 4}, "compacts adapters"),
        ({"sparsity": 1.0}, "less than 1"),
    ],
)
def test_settings_that_make_no_sparse_soup_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse_soup({"method": "sparse", "sparsity": 0.5, **changed})


def test_shares_and_retrainings_follow_the_file() -> None:
    config = parse_soup({"method": "sparse", "sparsity": 0.9, "retrain": {"weight_decay": [0, 0.1], "seeds": [3, 4]}})
    assert isinstance(config, SparseSoupConfig)
    assert [config.share(phase) for phase in (1, 2, 3)] == pytest.approx([0.5358, 0.7846, 0.9], abs=1e-4)
    assert (config.retrain.count, config.mixing.top) == (4, 4)
    assert config.retrain.parameters == {"weight_decay": [0.0, 0.1]}


def test_only_fine_tunes_are_pruned(tmp_path: Path) -> None:
    text = f"""
name: small
storage: {tmp_path}
pipeline: {{type: custom, import_path: "a:B", total: 3, metrics: {{loss: minimize}}}}
metric: loss
budget: {{trials: 2}}
soup: {{method: sparse, sparsity: 0.5}}
"""
    with pytest.raises(SpecError, match="sparse prunes and retrains what sft trains, and custom is another kind"):
        load_text(text.encode(), tmp_path)
