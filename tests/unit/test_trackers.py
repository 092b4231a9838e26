"""Trackers: what they are told of a ledger, once, without secrets; and that one which fails or hangs is waited for by nobody."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_sweeps import FILE, HOSTILE, events_of, simulate

from pipelines.finetune.unseen import unseen
from sweeps import tracking
from sweeps.commands import track as track_command
from sweeps.fold import fold
from sweeps.ledger import Event, Ledger
from sweeps.load import LoadedSweep, load_text
from sweeps.paths import SweepPaths
from sweeps.problems import SpecError
from sweeps.report.redact import MASK
from sweeps.state import SweepState
from sweeps.track_rules import PACKAGES, destination, missing, placed
from sweeps.track_spec import MLflowConfig, TensorBoardConfig, WandbConfig
from sweeps.trackers import TRACKERS
from sweeps.trackers.base import RunFacts, SweepFacts
from sweeps.trackers.feed import Feed
from sweeps.trackers.sender import Sender, alone, follow, secrets_of
from sweeps.trackers.tensorboard import OPEN_AT_MOST, TensorBoardTracker
from sweeps.tracking import Tracking


class Told:
    """A tracker that keeps what it is told, and fails where it is asked to."""

    def __init__(self, fails: Callable[[int], bool] = lambda count: False) -> None:
        self.heard: list[tuple[str, tuple[Any, ...]]] = []
        self.opened = 0
        self.closed = 0
        self.tried = 0
        self.fails = fails

    def open(self, sweep: SweepFacts, notes: dict[str, Any]) -> None:
        self.opened += 1
        self.sweep = sweep
        notes["opened"] = notes.get("opened", 0) + 1

    def __getattr__(self, name: str) -> Callable[..., None]:
        def tell(*arguments: Any) -> None:
            self.tried += 1
            if self.fails(self.tried):
                raise ConnectionError("http://user:secret@host refused\nand more")
            self.heard.append((name, arguments))

        return tell

    def close(self) -> None:
        self.closed += 1

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for heard, arguments in self.heard if heard == name]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> LoadedSweep:
    return simulate(tmp_path_factory.mktemp("ran"), trials=12)


@pytest.fixture(scope="module")
def events(ran: LoadedSweep) -> list[Event]:
    """As a driver would have written them: the first one holds all that a reader needs."""
    first, *others = events_of(ran)
    return [replace(first, body={**first.body, "spec": ran.record()}), *others]


@pytest.fixture
def config(tmp_path: Path) -> TensorBoardConfig:
    return TensorBoardConfig(log_dir=str(tmp_path / "tb"))


@pytest.fixture
def paths(ran: LoadedSweep, events: list[Event], tmp_path: Path) -> SweepPaths:
    """A finished sweep in a folder of its own."""
    made = SweepPaths(tmp_path / "gsm8k-lora")
    with closing(Ledger.create(made.root, durable=False)) as ledger:
        ledger.append(events)
    made.resolved_spec.write_text(json.dumps(ran.record()))
    return made


def sent(paths: SweepPaths, config: Any, tracker: Any, conclude: bool = True) -> int:
    with closing(Ledger.read(paths.root)) as ledger:
        sender = Sender(paths, config, tracker)
        count = sender.send(ledger)
        if conclude:
            sender.conclude()
        return count


def state_of(paths: SweepPaths) -> SweepState:
    with closing(Ledger.read(paths.root)) as ledger:
        return fold(ledger.events())


def test_every_run_report_and_outcome_is_told_once(paths: SweepPaths, config: Any) -> None:
    told, state = Told(), state_of(paths)
    assert sent(paths, config, told) == len(told.heard) - told.heard.count(("flush", ())) - 1
    assert {run.id for run, _ in told.of("began")} == set(state.runs)
    reports = Counter((run.id, resource) for run, resource, _, _ in told.of("reported"))
    assert reports == Counter((run.id, resource) for run in state.runs.values() for resource in run.reports)
    ends = {run.id: (phase, reason[:40]) for run, phase, reason, _ in told.of("ended")}
    assert {run: phase for run, (phase, _) in ends.items()} == {run.id: run.phase for run in state.runs.values()}
    assert {phase for phase, _ in ends.values()} == {"finished", "stopped", "failed"}
    assert told.of("concluded") == [("finished", state.updated_at)]
    assert (told.opened, told.closed) == (1, 1)


def test_numbers_are_those_of_the_ledger(paths: SweepPaths, config: Any) -> None:
    told, state = Told(), state_of(paths)
    sent(paths, config, told)
    for run, resource, values, when in told.of("reported"):
        report = state.runs[run.id].reports[resource]
        assert when == report.time
        assert {name for name in values if not name.endswith(".se")} == {*report.scores, *report.telemetry}
        assert all(values[key] == score.value or score.value != score.value for key, score in report.scores.items())
    for run, _ in told.of("began"):
        assert dict(run.parameters) == state.trials[run.trial].suggestion.parameters
    steps = [step for step, _, _ in told.of("told")]
    assert steps == sorted(steps)
    best = [values["best/tune/loss"] for _, values, _ in told.of("told") if "best/tune/loss" in values]
    losses = [
        run.newest.scores["tune/loss"].value for run in state.runs.values() if run.phase == "finished" and run.newest
    ]
    assert best[-1] == pytest.approx(min(losses))
    assert told.sweep.metrics == ("tune/loss",)
    assert told.sweep.parameters == ("kwargs.x", "kwargs.r")


def test_a_later_process_tells_only_what_is_new(events: list[Event], tmp_path: Path, config: Any) -> None:
    whole, paths = events, SweepPaths(tmp_path / "s")
    first, second = Told(), Told()
    ledger = Ledger.create(paths.root, durable=False)
    ledger.append(whole[: len(whole) // 2])
    sent(paths, config, first, conclude=False)
    ledger.append(whole[len(whole) // 2 :])
    ledger.close()
    sent(paths, config, second)
    assert json.loads(paths.tracker("tensorboard").read_text())["notes"] == {"opened": 2}
    both = Counter(str(one) for one in [*first.heard, *second.heard] if one[0] in ("began", "reported", "ended"))
    assert set(both.values()) == {1}
    assert first.sweep.key == second.sweep.key
    assert sent(paths, config, third := Told()) == 0
    assert third.opened == 0
    assert sent(paths, config.model_copy(update={"log_dir": "/elsewhere"}), fourth := Told()) > 0
    assert len(fourth.of("reported")) == len(first.of("reported")) + len(second.of("reported"))


def test_what_a_failure_interrupted_is_told_again(paths: SweepPaths, config: Any) -> None:
    told = Told(lambda count: count % 7 == 0)
    with closing(Ledger.read(paths.root)) as ledger:
        sender, failures = Sender(paths, config, told), 0
        while True:
            try:
                sender.send(ledger)
                break
            except ConnectionError:
                failures += 1
    calm = Told()
    paths.tracker("tensorboard").unlink()
    sent(paths, config, calm, conclude=False)
    assert failures > 3
    whole, kept = ([str(one) for one in tracker.heard if one[0] != "flush"] for tracker in (calm, told))
    assert kept == whole, "NaN is not equal to itself, its text is"


def test_a_tracker_that_fails_is_complained_of_once(paths: SweepPaths, config: Any) -> None:
    said: list[str] = []
    with closing(Ledger.read(paths.root)) as ledger:
        assert not follow(Sender(paths, config, Told(lambda count: True)), ledger, paths, said.append)
        assert follow(Sender(paths, config, Told()), ledger, paths, said.append)
    assert said == [f"ConnectionError: http://{MASK}@host refused"]


def test_no_text_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_OWN_WORD", "planted-word")
    monkeypatch.setenv("SOME_API_KEY", "planted-key")
    (tmp_path / "toy.py").write_text("class Toy: ...\n")
    text = FILE.format(trials=2, seeds="[0]") + f"storage: {tmp_path}\nenv: {{A: '${{MY_OWN_WORD}}'}}\n"
    loaded = load_text(text.encode(), tmp_path)
    feed = Feed("/sweep", secrets_of(loaded.spec.env))
    trial, run = "0000-aaaaaaaa", "0000-aaaaaaaa/seed-0"
    lies = "planted-word planted-key hf_abcdefghijklmnopqrstuvwxyz https://me:planted@host"
    suggested = {"trial": trial, "order": 0, "config": {}, "choices": {}, "distributions": {}, "attributes": {}}
    parameters = {"kwargs.x": lies, "kwargs.api_key": "anything", "kwargs.more": {"token": "anything", "n": 3}}
    lease = {"lease": "l", "run": run, "attempt": 0, "milestones": [3], "changes": None}
    events = [
        Event("sweep_created", {"name": "s", "spec": loaded.record()}, 1, 5.0),
        Event("driver_started", {"pid": 1}, 2, 5.0),
        Event("suggested", {**suggested, "parameters": parameters, "duplicate_of": None}, 3, 6.0),
        Event("lease_started", lease, 4, 6.0),
        Event("run_ended", {"run": run, "state": "failed", "reason": HOSTILE + lies * 100}, 5, 7.0),
    ]
    said = [one for event in events for one in feed.take(event)]
    assert [name for name, _ in said] == ["began", "ended", "told"]
    for planted in ("planted", "anything", "hf_abc"):
        assert planted not in str(said)
    facts = said[0][1][0]
    assert facts.parameters["kwargs.api_key"] == MASK
    assert json.loads(facts.parameters["kwargs.more"]) == {"token": MASK, "n": 3}
    assert len(said[1][1][2]) < 600


def test_defaults_are_filled_in_at_the_door(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path / "runs" / "qa")
    wrote = [
        TensorBoardConfig(),
        TensorBoardConfig(log_dir="tb"),
        MLflowConfig(),
        MLflowConfig(tracking_uri="sqlite:///a.db", experiment_name="e"),
        MLflowConfig(tracking_uri="./mlruns"),
        MLflowConfig(tracking_uri="databricks"),
        WandbConfig(),
    ]
    found = placed(wrote, tmp_path / "files", paths, {"MLFLOW_TRACKING_URI": "http://there:5000"})
    assert [entry["log_dir"] for entry in found[:2]] == [None, str(tmp_path / "files" / "tb")]
    assert destination(TensorBoardConfig(), paths) == f"event files in {paths.root}/tensorboard"
    uris = ["http://there:5000", f"sqlite:///{tmp_path}/files/a.db", str(tmp_path / "files" / "mlruns"), "databricks"]
    assert [entry["tracking_uri"] for entry in found[2:6]] == uris
    assert [entry["experiment_name"] for entry in found[2:4]] == ["qa", "e"]
    assert found[6]["project"] == "qa"
    assert placed([MLflowConfig()], tmp_path, paths, {})[0]["tracking_uri"] == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert destination(MLflowConfig(**found[3]), paths) == f"sqlite:///{tmp_path}/files/a.db, experiment e"


WRONG = {
    "track: comet": "it is not supported; write 'wandb', 'mlflow' or 'tensorboard'",
    "track: [mlflow, {type: mlflow, experiment_name: b}]": "'mlflow' stands twice",
    "track: {type: mlflow, tracking_uri: 'https://me:word@host'}": "goes into the ledger; export MLFLOW_TRACKING_USERNAME",
    "track: {type: wandb, project: a/b}": "track[0].project",
    "track: {type: tensorboard, logdir: x}": "did you mean 'log_dir'?",
    "storage: s3://bucket/x\ntrack: mlflow": "give tracking_uri",
    "wandb_project: x": "write track: {type: wandb, project: ...}",
}


def sweep_text(tmp_path: Path, more: str) -> bytes:
    (tmp_path / "toy.py").write_text("class Toy: ...\n")
    return (FILE.format(trials=2, seeds="[0]") + more + "\n").encode()


@pytest.mark.parametrize("more", WRONG)
def test_mistakes_are_told_at_the_door(tmp_path: Path, more: str) -> None:
    with pytest.raises(SpecError, match="1 mistake") as caught:
        load_text(sweep_text(tmp_path, more), tmp_path)
    assert WRONG[more] in str(caught.value)


def test_a_package_that_is_not_here_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "wandb", "no_such_package")
    with pytest.raises(SpecError) as caught:
        load_text(sweep_text(tmp_path, "track: [tensorboard, wandb]"), tmp_path)
    assert "track[1]" in str(caught.value)
    assert "pip install 'stockpot[wandb]'" in str(caught.value)
    (tmp_path / "bare_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, "wandb", "bare_folder")
    assert missing("wandb") is not None, "a folder named like the package is none"


def test_one_word_one_mapping_and_a_list_mean_the_same(tmp_path: Path) -> None:
    forms = ("track: wandb", "track: {type: wandb}", "track: [wandb]", "track: [{type: wandb, mode: online}]")
    specs = [load_text(sweep_text(tmp_path, form), tmp_path).spec.track for form in forms]
    assert specs == [specs[0]] * 4
    changed = load_text(sweep_text(tmp_path, "track: wandb"), tmp_path, ["track.0.mode=offline"]).spec.track
    assert changed[0].mode == "offline"


# The process of its own


def sweep_in_progress(tmp_path: Path) -> tuple[SweepPaths, Ledger]:
    paths = SweepPaths(tmp_path / "s")
    return paths, Ledger.create(paths.root, durable=False)


SENDERS = {
    "fine": "import sys",
    "complains": "print('it is down', flush=True); print('again', flush=True)",
    "crashes": "raise SystemExit(3)",
    "hangs": "import time; print('slow', flush=True); time.sleep(600)",
}


@pytest.mark.parametrize("how", SENDERS)
def test_nobody_waits_for_a_tracker(tmp_path: Path, how: str, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake_sender.py").write_text(SENDERS[how] + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(tracking, "GOODBYE_SECONDS", 30.0 if how != "hangs" else 0.2)
    paths, ledger = sweep_in_progress(tmp_path)
    said: list[str] = []
    tracked = Tracking(paths, [config], said.append, sender="fake_sender")
    tracked.start()
    assert said.pop(0) == f"tracked by tensorboard: event files in {config.log_dir}"
    children = [child.process for child in tracked._children]
    until = time.monotonic() + 60
    while how != "fine" and not said and time.monotonic() < until:
        tracked.poll()
        time.sleep(0.01)
    ledger.close()
    tracked.finish()
    assert all(process.returncode is not None for process in children)
    warned = [text for text in said if "could not be told" in text]
    assert len(warned) == (how != "fine")
    assert ("`stockpot track" in said[-1] if said else False) == (how in ("crashes", "hangs"))


def test_a_missing_package_is_told_and_the_sweep_goes_on(
    tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGES, "tensorboard", "no_such_package")
    said: list[str] = []
    tracked = Tracking(SweepPaths(tmp_path), [config], said.append)
    tracked.start()
    tracked.poll()
    tracked.finish()
    assert len(said) == 1
    assert "pip install 'stockpot[tensorboard]'" in said[0]


def test_two_processes_never_tell_the_same_tracker(paths: SweepPaths, capsys: Any) -> None:
    with alone(paths, "tensorboard", 0.0):
        command = ["track", str(paths.root), "--to", "tensorboard"]
        assert track_of(command) == 1
    assert "its driver is telling it already" in capsys.readouterr().out


def track_of(words: list[str]) -> int:
    from sweeps.arguments import parser

    return track_command.track(parser().parse_args(words))


def test_an_error_is_described_in_a_line_without_secrets(paths: SweepPaths, config: Any, capsys: Any) -> None:
    sender = Sender(paths, config, Told(), ("planted",))
    assert sender.describe(ValueError()) == "ValueError"
    assert sender.describe(ValueError("a\nb hf_abcdefghijklmnopqrstuvwxyz")) == "ValueError: a"
    assert sender.describe(ValueError("hf_abcdefghijklmnopqrstuvwxyz")) == f"ValueError: {MASK}"
    try:
        raise ValueError(f"a {chr(112)}lanted word")
    except ValueError:
        sender.log()
    logged = capsys.readouterr().err
    assert f"ValueError: a {MASK} word" in logged
    assert "planted" not in logged


# TensorBoard, for real


def scalars(folder: Path) -> Mapping[str, list[Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}


def test_tensorboard_reads_what_was_written(paths: SweepPaths, capsys: Any) -> None:
    assert track_of(["track", str(paths.root), "--to", "tensorboard"]) == 0
    assert "things told" in capsys.readouterr().out
    state, folder = state_of(paths), paths.root / "tensorboard"
    for run in list(state.runs.values())[:4]:
        found = scalars(folder / run.id.replace("/", "-"))
        wanted = {r: report.scores["tune/loss"].value for r, report in run.reports.items() if report.scores}
        read = {event.step: event.value for event in found.get("tune/loss", [])}
        assert read == pytest.approx(wanted, nan_ok=True)
    assert "best/tune/loss" in scalars(folder / "sweep")
    assert track_of(["track", str(paths.root), "--to", "tensorboard"]) == 0
    assert "knows everything" in capsys.readouterr().out


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
    tracker = TensorBoardTracker(TensorBoardConfig(log_dir=str(tmp_path)))
    tracker.open(SweepFacts("s", "k", str(tmp_path), ("tune/loss",)), {})
    runs = [RunFacts(f"{i:04d}-a/seed-0", f"{i:04d}-a", 0) for i in range(OPEN_AT_MOST + 5)]
    before = len(os.listdir("/proc/self/fd"))
    for run in [*runs, runs[0]]:
        tracker.reported(run, 3 if run is runs[0] else 1, {"tune/loss": 0.5}, 5.0)
    assert len(os.listdir("/proc/self/fd")) - before <= OPEN_AT_MOST
    tracker.close()
    assert [event.step for event in scalars(tmp_path / runs[0].label)["tune/loss"]] == [3, 3]


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
