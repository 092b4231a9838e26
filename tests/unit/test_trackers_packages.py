"""What trackers' packages are told: MLflow and W&B as small machines that keep it, TensorBoard itself."""

from __future__ import annotations

import fnmatch
import importlib.util
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipelines.finetune.unseen import unseen
from sweeps.track_rules import PACKAGES
from sweeps.track_spec import MLflowConfig, TensorBoardConfig, WandbConfig
from sweeps.trackers import TRACKERS, mlflow
from sweeps.trackers.base import RunFacts, SweepFacts
from sweeps.trackers.mlflow import MLflowTracker
from sweeps.trackers.tensorboard import OPEN_AT_MOST, TensorBoardTracker
from sweeps.trackers.wandb import SWEEP, WandbTracker

FACTS = SweepFacts("s", "key", "/sweep", ("tune/loss",), ("lr",), {"trials": "3", "method": "random"})
RUNS = [RunFacts(f"000{i}-a/seed-0", f"000{i}-a", 0, {"lr": 0.5, "rank": 8, "on": True}) for i in range(3)]


class Killed(BaseException):
    """The process that calls is killed."""


class MLflowServer(ModuleType):
    """Stands for the package `mlflow`: its runs outlive the clients; `kill_at` is the call that no client survives."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.entities = SimpleNamespace(Param=_named("key value"), Metric=_named("key value timestamp step"))
        self.runs: dict[str, SimpleNamespace] = {}
        self.experiments: dict[str, str] = {}
        self.calls, self.kill_at = 0, -1
        self.uri = ""

    def MlflowClient(self, uri: str) -> MLflowServer:
        self.uri = uri
        if uri.startswith("sqlite:///"):
            self._migrate(Path(uri.removeprefix("sqlite:///")))
        return self

    def _migrate(self, file: Path) -> None:
        """Tables are made one after another, and a half of them is of no use any more."""
        if not file.exists():
            file.write_text("half")
            self._called()
            file.write_text("whole")
        assert file.read_text() == "whole", "table secrets already exists"

    def _called(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.kill_at:
            raise Killed

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        self._called()
        found = self.experiments.get(name)
        return None if found is None else SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str) -> str:
        self._called()
        assert name not in self.experiments
        self.experiments[name] = "7"
        return "7"

    def create_run(self, experiment: str, start_time: int | None, tags: Mapping[str, str], run_name: str) -> Any:
        self._called()
        info = SimpleNamespace(run_id=f"id-{len(self.runs)}", status="RUNNING", run_name=run_name)
        data = SimpleNamespace(tags=dict(tags), params={}, metrics=[])
        self.runs[info.run_id] = SimpleNamespace(info=info, data=data)
        return self.runs[info.run_id]

    def search_runs(self, experiments: list[str], text: str, max_results: int, page_token: int | None) -> Any:
        self._called()
        assert (experiments, text) == (["7"], "tags.`stockpot.sweep` = 'key'")
        at = page_token or 0
        page = _Page(list(self.runs.values())[at : at + 2])
        page.token = at + 2 if at + 2 < len(self.runs) else None
        return page

    def log_batch(self, run: str, params: Any = (), metrics: Any = ()) -> None:
        self._called()
        for each in params:
            kept = self.runs[run].data.params.setdefault(each.key, each.value)
            assert kept == each.value, "MLflow refuses to change a parameter"
        self.runs[run].data.metrics += [(each.key, each.value, each.timestamp, each.step) for each in metrics]

    def update_run(self, run: str, status: str) -> None:
        self._called()
        self.runs[run].info.status = status

    def set_terminated(self, run: str, status: str, end_time: int) -> None:
        self.update_run(run, status)

    def set_tag(self, run: str, key: str, value: str) -> None:
        self._called()
        self.runs[run].data.tags[key] = value

    @property
    def states(self) -> dict[str, str]:
        """Status of every run, by the tag that names it."""
        return {run.data.tags["stockpot.run"]: run.info.status for run in self.runs.values()}


class _Page(list[Any]):
    token: int | None = None


def _named(fields: str) -> Any:
    return lambda *values: SimpleNamespace(**dict(zip(fields.split(), values, strict=True)))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> MLflowServer:
    made = MLflowServer()
    monkeypatch.setitem(sys.modules, "mlflow", made)
    return made


def tell_mlflow(notes: dict[str, Any], uri: str = "http://there") -> None:
    tracker = MLflowTracker(MLflowConfig(tracking_uri=uri))
    tracker.open(FACTS, notes)
    for run in RUNS:
        tracker.began(run, 5.0)
        tracker.reported(run, 3, {"tune/loss": 0.5}, 6.0)
        tracker.ended(run, "finished", "", 7.0)
    tracker.concluded("finished", 8.0)


def test_mlflow_has_each_run_once_and_whole_whenever_its_process_was_killed(
    server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow, "PARAMETERS_AT_ONCE", 2)
    tell_mlflow({})
    whole, calls = server.states, server.calls
    assert set(whole) == {"sweep", *(run.id for run in RUNS)}
    for kill_at in range(calls):
        server.__init__()  # type: ignore[misc]  # another server
        server.kill_at = kill_at
        with pytest.raises(Killed):
            tell_mlflow({})
        tell_mlflow({})
        assert len(server.runs) == len(whole), f"killed at call {kill_at}"
        assert server.states == whole
        parents = {run.data.tags.get("mlflow.parentRunId") for run in server.runs.values()}
        assert parents == {None, next(iter(server.runs))}
        for run in list(server.runs.values())[1:]:
            assert run.data.params == {"lr": "0.5", "rank": "8", "on": "True", "seed": "0"}, f"killed at call {kill_at}"
            assert set(run.data.metrics) == {("tune/loss", 0.5, 6000, 3)}


def test_mlflow_shows_what_a_resume_goes_on_with_as_running(server: MLflowServer) -> None:
    notes: dict[str, Any] = {}
    tell_mlflow(notes)
    tracker = MLflowTracker(MLflowConfig(tracking_uri="http://there"))
    tracker.open(
        SweepFacts(FACTS.name, FACTS.key, FACTS.folder, FACTS.metrics, FACTS.parameters, {"trials": "9"}), notes
    )
    tracker.began(RUNS[1], 9.0)
    ended = {RUNS[0].id: "FINISHED", RUNS[2].id: "FINISHED"}
    assert server.states == {"sweep": "RUNNING", RUNS[1].id: "RUNNING", **ended}
    assert next(iter(server.runs.values())).data.params["trials"] == "3"


def test_a_database_whose_maker_was_killed_is_made_again(server: MLflowServer, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    server.kill_at = 0
    with pytest.raises(Killed):
        tell_mlflow({}, uri)
    tell_mlflow({}, uri)
    assert len(server.runs) == 4
    assert server.uri == uri
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("links", [True, False])
def test_a_database_that_another_sweep_made_meanwhile_stays(
    server: MLflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def none(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(mlflow.os, "link", none)
    file, connect = tmp_path / "mlflow.db", server.MlflowClient
    mlflow._make(tmp_path / "new.db", "key", connect)
    assert (tmp_path / "new.db").read_text() == "whole"

    def meanwhile(uri: str) -> None:
        connect(uri)
        file.write_text("theirs")

    mlflow._make(file, "key", meanwhile)
    assert file.read_text() == "theirs"
    assert {each.name for each in tmp_path.iterdir()} == {"mlflow.db", "new.db"}


def test_mlflow_is_told_no_path_of_the_machine(server: MLflowServer) -> None:
    tell_mlflow({})
    assert FACTS.folder not in str(server.runs)


class Wandb(ModuleType):
    """Stands for the package `wandb`: histories outlive the connections, and a step is written once, in ascending order."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.histories: dict[str, dict[int, dict[str, Any]]] = {}
        self.axes: dict[str, dict[str, str]] = {}

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **about: Any) -> WandbRun:
        return WandbRun(self, about["id"])


class WandbRun:
    def __init__(self, package: Wandb, key: str) -> None:
        self.rows = package.histories.setdefault(key, {})
        self.axes = package.axes.setdefault(key, {})
        self.next = max(self.rows, default=-1) + 1
        self.summary: dict[str, Any] = {}

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, row: Mapping[str, Any], step: int | None = None) -> None:
        at = self.next if step is None else step
        if at >= max(self.rows, default=0):
            self.rows.setdefault(at, {}).update(row)
            self.next = at + 1

    def finish(self, exit_code: int) -> None:
        self.closed = exit_code


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    made = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", made)
    return made


def test_wandb_keeps_every_number_of_the_sweep(package: Wandb) -> None:
    told = [(1, {"best/tune/loss": 0.5}), (1, {"best/tune/loss": 0.4}), (2, {"best/tune/loss": 0.3})]
    later = [(2, {"winner/test/loss": 0.6}), (2, {"verdict/a-b/loss.p_holm": 0.01}), (2, {"winner/test/loss": 0.7})]
    for part in (told, later):
        tracker = WandbTracker(WandbConfig(project="p"))
        tracker.open(FACTS, {})
        for step, values in part:
            tracker.told(step, values, 5.0)
        tracker.concluded("finished", 6.0)
    rows = package.histories[f"{FACTS.key}-{SWEEP}"]
    assert list(rows.values()) == [{"trials": step, **values} for step, values in told + later]
    [(pattern, axis)] = package.axes[f"{FACTS.key}-{SWEEP}"].items()
    assert axis == "trials"
    assert fnmatch.fnmatch("best/tune/loss", pattern)


def test_wandb_has_a_runs_reports_at_their_resource(package: Wandb) -> None:
    tracker = WandbTracker(WandbConfig(project="p"))
    tracker.open(FACTS, {})
    for resource in (3, 9):
        tracker.reported(RUNS[0], resource, {"tune/loss": 1 / resource}, 5.0)
    tracker.ended(RUNS[0], "finished", "", 6.0)
    assert package.histories[f"{FACTS.key}-{RUNS[0].label}"] == {3: {"tune/loss": 1 / 3}, 9: {"tune/loss": 1 / 9}}


# TensorBoard, for real


def test_tensorboard_shows_parameters_under_hparams(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    tracker, notes = TensorBoardTracker(TensorBoardConfig(log_dir=str(tmp_path))), {}
    runs = [RunFacts(f"000{i}-a/seed-0", f"000{i}-a", 0, {"lr": 0.5, "adapter": "lora", "on": True}) for i in range(3)]
    tracker.open(SweepFacts("s", "k", str(tmp_path), ("tune/loss",), ("lr", "adapter", "on")), notes)
    for run in runs:
        tracker.began(run, 5.0)
        tracker.began(run, 6.0)
    tracker.close()
    plugin = EventAccumulator(str(tmp_path / runs[0].label)).Reload().PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(plugin[metadata.SESSION_START_INFO_TAG])
    assert (start.hparams["lr"].number_value, start.hparams["adapter"].string_value) == (0.5, "lora")
    top = EventAccumulator(str(tmp_path)).Reload().PluginTagToContent("hparams")
    experiment = metadata.parse_experiment_plugin_data(top[metadata.EXPERIMENT_TAG])
    assert [info.name for info in experiment.hparam_infos] == ["lr", "adapter", "on"]
    assert [info.name.tag for info in experiment.metric_infos] == ["tune/loss"]


def test_tensorboard_keeps_few_files_open(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before = set(threading.enumerate())
    tracker = TensorBoardTracker(TensorBoardConfig(log_dir=str(tmp_path)))
    tracker.open(SweepFacts("s", "k", str(tmp_path), ("tune/loss",)), {})
    runs = [RunFacts(f"{i:04d}-a/seed-0", f"{i:04d}-a", 0) for i in range(OPEN_AT_MOST + 5)]
    for run in [*runs, runs[0]]:
        tracker.reported(run, 3 if run is runs[0] else 1, {"tune/loss": 0.5}, 5.0)
    assert len(set(threading.enumerate()) - before) == OPEN_AT_MOST, (
        "a file that is open has a thread that writes to it"
    )
    tracker.close()
    assert set(threading.enumerate()) <= before
    read = EventAccumulator(str(tmp_path / runs[0].label)).Reload()
    assert [event.step for event in read.Scalars("tune/loss")] == [3, 3]


def test_every_tracker_has_its_package_named() -> None:
    assert set(TRACKERS) == set(PACKAGES)


def test_training_does_not_import_trackers_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "loaded_already", sys)
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with unseen(("wave", "loaded_already")):
        assert importlib.util.find_spec("wave") is None
        with pytest.raises(ImportError):
            importlib.import_module("wave")
        assert sys.modules["loaded_already"] is sys
    assert importlib.import_module("wave").__name__ == "wave"
