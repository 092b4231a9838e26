"""Trackers for real: one sweep, its resume with more trials, and MLflow, W&B (offline) and TensorBoard that read it back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import killing
import pytest

from sweeps.fold import fold
from sweeps.ledger import Ledger
from sweeps.paths import SweepPaths
from sweeps.state import SweepState

pytestmark = pytest.mark.slow

SECRET = "planted-in-the-environment-7161"
FILE = """\
name: tracked
storage: ./runs
pipeline:
  type: custom
  import_path: toy_pipeline:Toy
  total: 3
  metrics: {loss: minimize}
  kwargs: {x: 0.5, reveal: TOY_TOKEN}
parameters:
  kwargs.x: {min: 0.0, max: 1.0}
method: {type: random, seed: 5}
metric: loss
budget: {trials: 3}
resources: {cpus: 1}
env: {TOY_TOKEN: "${TOY_TOKEN}"}
track: [tensorboard, mlflow, {type: wandb, mode: offline}]
"""


def stockpot(folder: Path, *words: str) -> str:
    command = [killing.STOCKPOT, *words]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "WANDB_"))}
    env = {**plain, "TOY_TOKEN": SECRET, "MLFLOW_TRACKING_TOKEN": f"{SECRET}-2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=folder, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    """A sweep that ended, and went on with a fourth trial; what was late is sent by the command."""
    for package in ("tensorboard", "mlflow", "wandb"):
        pytest.importorskip(package, reason=f"needs the package {package}")
    folder = tmp_path_factory.mktemp("tracked")
    shutil.copy(Path(__file__).with_name("toy_pipeline.py"), folder)
    (folder / "tracked.yaml").write_text(FILE)
    checked = json.loads(stockpot(folder, "check", "tracked.yaml", "--json"))
    assert [each["type"] for each in checked["track"]] == ["tensorboard", "mlflow", "wandb"]
    stockpot(folder, "submit", "tracked.yaml")
    stockpot(folder, "track", "runs/tracked")
    stockpot(folder, "resume", "runs/tracked", "--budget", "trials=4")
    stockpot(folder, "track", "runs/tracked")
    return SweepPaths(folder / "runs" / "tracked")


@pytest.fixture(scope="module")
def state(sweep: SweepPaths) -> SweepState:
    return fold(Ledger.read(sweep.root).events())


def test_mlflow_has_every_run_and_number_once(sweep: SweepPaths, state: SweepState) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{sweep.root.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tracked")
    runs = {run.data.tags["stockpot.run"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"sweep", *state.runs}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs.pop("sweep")
    assert parent.data.metrics["best/tune/loss"] == pytest.approx(min(_losses(state)))
    for name, run in runs.items():
        kept = state.runs[name]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert float(run.data.params["kwargs.x"]) == state.trials[kept.trial].config["kwargs"]["x"]
        history = client.get_metric_history(run.info.run_id, "tune/loss")
        told = {(point.step, round(point.value, 9)) for point in history}
        assert told == {(step, round(report.scores["tune/loss"].value, 9)) for step, report in kept.reports.items()}
        assert len(history) == len(told)


def _losses(state: SweepState) -> list[float]:
    return [run.newest.scores["tune/loss"].value for run in state.runs.values() if run.newest is not None]


def test_tensorboard_has_every_run(sweep: SweepPaths, state: SweepState) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run in state.runs.values():
        read = EventAccumulator(str(sweep.root / "tensorboard" / run.id.replace("/", "-"))).Reload()
        last = read.Scalars("tune/loss")[-1]
        assert (last.step, last.value) == (3, pytest.approx(run.reports[3].scores["tune/loss"].value))


def test_wandb_has_every_run_offline(sweep: SweepPaths, state: SweepState) -> None:
    files = list(sweep.root.glob("wandb/offline-run-*/*.wandb"))
    ids = Counter(file.stem.removeprefix("run-").partition("-")[2] for file in files)
    assert set(ids) == {"sweep", *(run.id.replace("/", "-") for run in state.runs.values())}
    assert len({file.stem.removeprefix("run-").partition("-")[0] for file in files}) == 1, "one sweep, one key"
    assert ids["sweep"] >= 2, "it went on in the run that it had begun"
    run = next(iter(state.runs.values()))
    [file] = [file for file in files if file.stem.endswith(run.id.replace("/", "-"))]
    content = file.read_bytes()
    assert b"tune/loss" in content
    assert b"kwargs.x" in content


def test_no_secret_is_in_any_byte(sweep: SweepPaths, state: SweepState) -> None:
    assert all("TOY_TOKEN is •••" in sweep.log(trial).read_text() for trial in state.trials), "it was printed"
    reports = [report for run in state.runs.values() for report in run.reports.values()]
    assert {report.telemetry["train/reveal_length"] for report in reports} == {len(SECRET)}
    read = 0
    for file in [*sweep.root.rglob("*"), *sweep.root.parent.glob("mlflow.db*")]:
        if file.is_file():
            read += 1
            assert SECRET.encode() not in file.read_bytes(), file
    assert read > 20


def test_every_line_of_a_trials_log_has_its_name(sweep: SweepPaths, state: SweepState) -> None:
    for trial in state.trials:
        records: list[dict[str, Any]] = [json.loads(line) for line in sweep.log(trial).read_text().splitlines()]
        assert {(record["sweep"], record["trial"]) for record in records} == {("tracked", trial)}
        assert records[0]["event"] == "began"
        assert any(f"toy {trial} pid {records[0]['pid']}" in record.get("text", "") for record in records)
