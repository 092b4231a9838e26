"""A small machine behind `Backend`: adapters on one 6x5 layer, scored by squared error on seeded rows.

Merging is the real one. Every adapter is the true ΔW plus noise of its own, so that averages beat singles; `Stage` writes
the ledger of a finished sweep of such adapters.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from evaluators.base import ItemSet, Report, Score, summarise
from pipelines import soups
from pipelines.finetune.checkpoint import placing, write_complete
from pipelines.soups import cosines
from pipelines.stage import UserError
from sweeps.engine import CallFailed, Loop
from sweeps.events import Event, Items
from sweeps.failures import classify
from sweeps.ledger import Ledger
from sweeps.load import LoadedSweep, load_text
from sweeps.loop import Later
from sweeps.paths import SweepPaths

NAME = "base_model.model.layer"
SHAPE = (6, 5)
ROWS = 40

SWEEP = """
name: small
storage: {storage}
pipeline:
  type: sft
  base_model: org/model
  datasets:
    train: {{path: train.jsonl, type: prompt_completion}}
    tune: {{fraction: 0.2}}
    select: {{fraction: 0.2}}
    {test}
  max_steps: 30
parameters:
  learning_rate: {{distribution: log_uniform_values, min: 1.0e-5, max: 1.0e-3}}
metric: {metric}
budget: {{trials: 8}}
early_terminate: {{type: asha, min: 10, eta: 3, finalists: 4}}
evaluate: [exact_match]
soup: {{method: greedy, top: 4}}
{more}
"""


def load(folder: Path, more: str = "", test: str = "test: {fraction: 0.2}", metric: str = "loss") -> LoadedSweep:
    rows = [{"prompt": f"question {index}", "completion": f"answer {index}"} for index in range(60)]
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    text = SWEEP.format(storage=folder / "runs", more=more, test=test, metric=metric)
    return load_text(text.encode(), folder)


def truth() -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(0).normal(size=SHAPE)


def write_adapter(folder: Path, seed: int, noise: float, **config: Any) -> None:
    """An adapter whose ΔW is the truth plus noise, exactly factored."""
    delta = truth() + noise * np.random.default_rng(seed).normal(size=SHAPE)
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    factors = {"lora_B": left * values / 2.0, "lora_A": right}
    tensors = {f"{NAME}.{key}.weight": torch.tensor(value, dtype=torch.float32) for key, value in factors.items()}
    body = {"peft_type": "LORA", "base_model_name_or_path": "org/model", "r": 5, "lora_alpha": 10, **config}
    with placing(folder) as aside:
        save_file(tensors, str(aside / "adapter_model.safetensors"))
        (aside / "adapter_config.json").write_text(json.dumps(body))
        write_complete(aside, Report(int(folder.name.rpartition("-")[2])))


def delta(folder: Path | None) -> np.ndarray[Any, np.dtype[np.float64]]:
    if folder is None:
        return np.zeros(SHAPE)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(str(folder / "adapter_model.safetensors"))
    up, down = (tensors[f"{NAME}.lora_{factor}.weight"].double().numpy() for factor in "BA")
    return config["lora_alpha"] / config["r"] * up @ down


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of a size (`64k`) at a new folder; the test is skipped where none can be mounted."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False)
    if done.returncode:
        pytest.skip("a tmpfs can't be mounted here (needs root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Killed(BaseException):
    """A driver that is gone."""


class SmallMachine:
    """Implements `Backend.call`. `calls` is what was asked; `fail` may raise before a call is done."""

    slots = 1

    def __init__(self) -> None:
        self.calls: list[tuple[str, Mapping[str, Any]]] = []
        self.fail: Callable[[str, Mapping[str, Any]], None] = lambda function, payload: None
        self.blind: set[str] = set()
        self.unsound: dict[str, str] = {}

    def run(self, loop: Loop) -> None:
        raise AssertionError("no leases here")

    def close(self) -> None:
        pass

    def call(self, function: str, payload: Mapping[str, Any], on_progress: Callable[[str], None] | None = None) -> Any:
        json.dumps(payload, allow_nan=False)
        self.fail(function, payload)
        self.calls.append((function, payload))
        try:
            return self.do(function, payload)
        except (UserError, OSError, SafetensorError) as error:
            raise CallFailed(classify(error)) from error

    def start(self, function: str, payload: Mapping[str, Any]) -> Later:
        return Later(lambda on_progress: self.call(function, payload, on_progress))

    def do(self, function: str, payload: Mapping[str, Any]) -> Any:
        if function == "pipelines.soups.admission:problems":
            return {run: why for run, why in self.unsound.items() if run in payload["folders"]}
        if function == "pipelines.soups.cosines:measure":
            return cosines.measure(payload)
        if function == "sweeps.tasting:taste":
            soups.merge(payload["merge"])
            scored = {**payload, "model": {"base_model": "org/model", "adapter": payload["merge"]["out"]}}
            scores = tuple(score for entry in payload["evaluators"] for score in self.scores(scored, entry["type"]))
            shutil.rmtree(payload["merge"]["out"])
            return {"scores": scores}
        if function == "pipelines.soups:merge":
            return soups.merge(payload)
        if function == "sweeps.retrain:train":
            folder = Path(payload["folder"]) / f"checkpoint-{payload['milestones'][-1]}"
            write_adapter(folder, 1000 + payload["seed"], 0.3)
            return {"checkpoint": str(folder), "hash": "trained"}
        assert function == "sweeps.worker:evaluate", function
        return tuple(score for entry in payload["evaluators"] for score in self.scores(payload, entry["type"]))

    def scores(self, payload: Mapping[str, Any], evaluator: str) -> list[Score]:
        assert payload["model"]["base_model"] == "org/model"
        adapter = payload["model"]["adapter"]
        split = payload["split"]
        generator = np.random.default_rng({"tune": 1, "select": 2, "test": 3}[split])
        inputs = generator.normal(size=(ROWS, SHAPE[1]))
        targets = inputs @ truth().T + 0.3 * generator.normal(size=(ROWS, SHAPE[0]))
        errors = ((inputs @ delta(None if adapter is None else Path(adapter)).T - targets) ** 2).mean(axis=1)
        if adapter is not None and any(word in adapter for word in self.blind):
            errors[:] = np.nan
        names = tuple(f"{split}-{row}" for row in range(ROWS))
        item_set = ItemSet(names, groups=tuple(f"{split}-{row // 2}" for row in range(ROWS)))
        if evaluator == "loss":
            return [summarise("loss", split, "minimize", item_set, errors)]
        return [summarise(evaluator, split, "maximize", item_set, np.where(errors < 0.5, 1.0, 0.0))]

    def count(self, function: str) -> int:
        return sum(1 for called, _ in self.calls if called == function)


class Stage:
    """A finished sweep on disk: `noises[i]` is trial i's distance from the truth, `seconds[i]` what it is said to take."""

    def __init__(
        self,
        folder: Path,
        noises: list[float],
        more: str = "",
        test: str = "test: {fraction: 0.2}",
        metric: str = "loss",
        seconds: Sequence[float] = (),
    ) -> None:
        self.loaded = load(folder, more, test, metric)
        self.seconds = seconds
        self.paths: SweepPaths = self.loaded.paths
        self.ledger = Ledger.create(self.paths.root, durable=False)
        self.backend = SmallMachine()
        self.said: list[str] = []
        record = self.loaded.record()
        self.ledger.append([Event("sweep_created", {"name": "small", "spec": record, "versions": {}, "space": {}})])
        self.ledger.append([Event("driver_started", {"pid": 1, "host": "here", "version": "0"})])
        self.runs = [self.add(order, noise) for order, noise in enumerate(noises)]

    def add(self, order: int, noise: float, resource: int = 30, seed: int = 0, **config: Any) -> str:
        """One run that reported at every milestone up to `resource`; its trial is suggested with its seed 0."""
        parameters = {"learning_rate": 1e-4 * (order + 1)}
        resolved = self.loaded.resolve(parameters)
        trial = f"{order:04d}-abcdef00"
        run = f"{trial}/seed-{seed}"
        suggested = {"trial": trial, "order": order, "config": resolved, "parameters": parameters, "choices": {}}
        lease = {"lease": run, "run": run, "attempt": 0, "from_resource": 0, "milestones": [10, 30]}
        began = [] if seed else [Event("suggested", suggested)]
        self.ledger.append([*began, Event("lease_started", lease)])
        for milestone in (m for m in self.loaded.milestones if m <= resource):
            folder = self.paths.root / "trials" / run / "attempt-0" / f"checkpoint-{milestone}"
            write_adapter(folder, order + 1 + 100 * seed, noise, **config)
            model = {"base_model": "org/model", "adapter": str(folder)}
            payload = {"model": model, "split": "tune"}
            due = [entry["type"] for entry in self.loaded.timetable.rung]
            scores = [score for name in due for score in self.backend.scores(payload, name)]
            body = {
                "lease": run,
                "run": run,
                "attempt": 0,
                "resource": milestone,
                "scores": [score.record() for score in scores],
                "telemetry": {"cost/seconds": self.seconds[order]} if self.seconds else {},
                "checkpoint": folder.name,
            }
            self.ledger.append([Event("reported", body)], [Items(run, milestone, score) for score in scores])
        state = "finished" if resource == 30 else "stopped"
        self.ledger.append([Event("run_ended", {"run": run, "state": state, "reason": ""})])
        return run

    def add_baseline(self, noise: float | None) -> str:
        """The baseline that is trial 0, finished at a distance from the truth, or failed (None); its id."""
        config = self.loaded.resolve_baseline()
        trial = "0000-ba5e11fe"
        run = f"{trial}/seed-0"
        name = self.loaded.spec.named_baseline
        suggested = {"trial": trial, "order": 0, "config": config, "parameters": {}, "choices": {}, "baseline": name}
        lease = {"lease": trial, "run": run, "attempt": 0, "from_resource": 0, "milestones": [10, 30]}
        self.ledger.append([Event("suggested", suggested), Event("lease_started", lease)])
        if noise is None:
            failed = {"run": run, "kind": "nan", "message": "the loss is nan", "final": True}
            self.ledger.append([Event("failed", failed)])
            return trial
        folder = self.paths.root / "trials" / run / "attempt-0" / "checkpoint-30"
        write_adapter(folder, 99, noise)
        payload = {"model": {"base_model": "org/model", "adapter": str(folder)}, "split": "tune"}
        scores = self.backend.scores(payload, "loss")
        told = {
            "resource": 30,
            "scores": [score.record() for score in scores],
            "telemetry": {},
            "checkpoint": folder.name,
        }
        body = {"lease": trial, "run": run, "attempt": 0, **told}
        self.ledger.append([Event("reported", body)], [Items(run, 30, score) for score in scores])
        self.ledger.append([Event("run_ended", {"run": run, "state": "finished", "reason": ""})])
        return trial

    def kill(self, what: str, after: int) -> None:
        """From now on the driver dies, once, right before its `call` or `event` (`what`) of this number (from 0)."""
        left = [after]

        def count_down(*args: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                left[0] = 10**9
                raise Killed

        append = self.ledger.append
        if what == "call":
            self.backend.fail = count_down
        else:
            self.ledger.append = lambda *args: (count_down(), append(*args))[1]  # type: ignore[method-assign]

    def bodies(self, kind: str) -> list[Mapping[str, Any]]:
        return [event.body for event in self.ledger.events() if event.kind == kind]

    def facts(self) -> list[tuple[str, Any]]:
        """Everything after the sweep itself, without times."""
        kinds = ("soup_", "final_", "test_", "baseline_", "verdict")
        return [(event.kind, event.body) for event in self.ledger.events() if event.kind.startswith(kinds)]
