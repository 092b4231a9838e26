"""Failures that are caused: memory that runs out in a worker, weights that are no numbers. Real Ray, real training, tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from tiny import save_model, write_rows

from sweeps.events import Event
from sweeps.ledger import Ledger

pytestmark = pytest.mark.slow

ROWS = 256
SPARE = 400
"""Megabytes a worker may take beyond what it holds when a run begins; 256 rows of 240 tokens take about a thousand."""
LIMITED = f'''"""A site hook: every fine-tune in this interpreter gets {SPARE} MB of address space and no more."""
import importlib.abc, importlib.util, resource, sys


class Limit(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name != "pipelines.finetune.pipeline":
            return None
        sys.meta_path.remove(self)
        self.real = importlib.util.find_spec(name)
        return importlib.util.spec_from_loader(name, self, origin=self.real.origin)

    def exec_module(self, module):
        module.__file__ = self.real.origin
        self.real.loader.exec_module(module)
        run = module.FineTunePipeline.run

        def limited(pipeline, task, report):
            pages = int(open("/proc/self/statm").read().split()[0])
            limit = pages * resource.getpagesize() + {SPARE} * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            try:
                run(pipeline, task, report)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        module.FineTunePipeline.run = limited


sys.meta_path.insert(0, Limit())
'''


def sweep(name: str, **pipeline: Any) -> dict[str, Any]:
    return {
        "name": name,
        "pipeline": {
            "type": "sft",
            "base_model": "./model",
            "datasets": {
                "train": {"path": "train.jsonl", "type": "prompt_completion"},
                "tune": {"path": "tune.jsonl", "type": "prompt_completion"},
            },
            "max_steps": 2,
            "sequence_len": 250,
            "eval_batch_size": 4,
            **pipeline,
        },
        "parameters": {"learning_rate": [1e-3, 2e-3, 3e-3]},
        "method": "grid",
        "metric": "loss",
        "max_concurrent_trials": 1,
        "resources": {"cpus": 1, "gpus": 0},
    }


def stockpot(folder: Path, *words: str, status: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("stockpot")), *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def events(folder: Path, name: str) -> list[Event]:
    ledger = Ledger.read(folder / "stockpot-runs" / name)
    try:
        return list(ledger.events())
    finally:
        ledger.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model")
    words = ["one", "two", "six", "ten"]
    rows = [{"prompt": f"{i}=", "completion": " ".join([words[i % 4]] * 60)} for i in range(ROWS + 8)]
    write_rows(tmp_path / "train.jsonl", rows[:ROWS])
    write_rows(tmp_path / "tune.jsonl", rows[ROWS:])
    return tmp_path


def test_a_trial_that_runs_out_of_memory_goes_again_smaller_and_the_next_begin_so(folder: Path) -> None:
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(LIMITED)
    (folder / "s.yaml").write_text(yaml.safe_dump(sweep("s", micro_batch_size=ROWS)))
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    stockpot(folder, "submit", "s.yaml", PYTHONPATH=path)
    told = events(folder, "s")
    failed = [event.body for event in told if event.kind == "failed"]
    assert failed
    assert {(body["kind"], body["run"].partition("-")[0]) for body in failed} == {("oom", "0000")}
    assert all("out of memory with micro_batch_size" in body["message"] for body in failed)
    changes = failed[-1]["changes"]
    assert changes["micro_batch_size"] <= ROWS // 2
    assert changes["micro_batch_size"] * changes["gradient_accumulation_steps"] == ROWS
    adjusted = [event.body for event in told if event.kind == "adjusted"]
    assert [(body["run"].partition("-")[0], body["changes"]) for body in adjusted] == [
        ("0001", changes),
        ("0002", changes),
    ]
    rows = [row for row in json.loads(stockpot(folder, "show", "s", "--json"))["rows"] if row["kind"] == "trial"]
    assert [row["state"] for row in rows] == ["finished"] * 3
    assert all(row["changes"] == changes for row in rows)
    logs = stockpot(folder, "logs", "s")
    assert f"/seed-0: began with micro_batch_size {changes['micro_batch_size']}, " in logs
    assert "needs no more and ran out of memory at micro_batch_size" in logs
    assert "reached the total; micro_batch_si" in stockpot(folder, "show", "s"), "what the reason's column has room for"


def test_a_broken_row_is_refused_and_a_repeating_error_stops_the_sweep_with_it_on_screen(folder: Path) -> None:
    weights = load_file(folder / "model" / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model" / "model.safetensors", {"format": "pt"})
    file = sweep("s", micro_batch_size=4) | {"on_failure": {"abort_after_same_error": 2}}
    (folder / "s.yaml").write_text(yaml.safe_dump(file))
    good = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(good.replace('"completion": "two', '"complet": "two', 1))
    assert "train.jsonl, line 2" in stockpot(folder, "submit", "s.yaml", status=2)
    assert not (folder / "stockpot-runs").exists()
    (folder / "train.jsonl").write_text(good)
    said = stockpot(folder, "submit", "s.yaml", status=1)
    assert "stopped: the first trials all failed alike: the training loss is nan at step 1" in said
    failed = [event.body for event in events(folder, "s") if event.kind == "failed"]
    assert [(body["kind"], body["final"]) for body in failed] == [("nan", True)] * 2
