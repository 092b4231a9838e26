"""Trackers: what they are told of a ledger, once and without secrets, also after failures and by `stockpot track`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_sweeps import FILE, HOSTILE, events_of, simulate

from sweeps.commands import track as track_command
from sweeps.commands.places import UsageError
from sweeps.events import Event
from sweeps.fold import fold
from sweeps.ledger import Ledger
from sweeps.load import LoadedSweep, load_text
from sweeps.lock import DriverLock
from sweeps.paths import SweepPaths
from sweeps.secret_values import MASK, Masks, values_of
from sweeps.state import SweepState
from sweeps.track_spec import TensorBoardConfig
from sweeps.trackers import feed, sender
from sweeps.trackers.base import SweepFacts
from sweeps.trackers.feed import Feed
from sweeps.trackers.sender import (
    LAST_SECONDS,
    Sender,
    alone,
    end_after,
    follow,
)


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
        sending = Sender(paths, config, tracker)
        count = sending.send(ledger)
        if conclude:
            sending.conclude()
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
        sending, failures = Sender(paths, config, told), 0
        while True:
            try:
                sending.send(ledger)
                break
            except ConnectionError:
                failures += 1
    calm = Told()
    paths.tracker("tensorboard").unlink()
    sent(paths, config, calm, conclude=False)
    assert failures > 3
    whole, kept = ([str(one) for one in tracker.heard if one[0] != "flush"] for tracker in (calm, told))
    assert kept == whole, "NaN is not equal to itself, its text is"


def test_a_tracker_that_fails_is_complained_of_once(
    paths: SweepPaths, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(sender, "pause_after", lambda failures: 0.0)
    lock = DriverLock.take(paths.lock)

    def fails(count: int) -> bool:
        if count == 5:
            lock.release()
        return count <= 6

    told = Told(fails)
    with closing(Ledger.read(paths.root)) as ledger:
        driver = DriverLock.holder(paths.lock)
        assert not follow(Sender(paths, config, told), ledger, paths, driver, said.append), "its last try failed"
        assert (told.tried, said) == (6, [f"ConnectionError: http://{MASK}@host refused"])
        assert follow(Sender(paths, config, calm := Told()), ledger, paths, driver, said.append)
    assert len(said) == 1
    assert calm.of("concluded")


def test_a_sender_ends_with_its_own_driver(paths: SweepPaths, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alarms: list[int] = []
    monkeypatch.setattr(sender.signal, "alarm", alarms.append)
    killed = {"pid": 1, "host": "here", "started": "before"}
    lock = DriverLock.take(paths.lock)
    try:
        with closing(Ledger.read(paths.root)) as ledger:
            assert follow(Sender(paths, config, Told()), ledger, paths, killed, pytest.fail)
        end_after(paths, killed)
    finally:
        lock.release()
    assert alarms == [LAST_SECONDS]


def test_an_end_that_could_not_be_told_is_told_later(paths: SweepPaths, config: Any) -> None:
    class Refuses(Told):
        def concluded(self, state: str, time: float) -> None:
            raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        sent(paths, config, Refuses())
    assert sent(paths, config, later := Told()) == 0
    assert later.of("concluded") == [("finished", state_of(paths).updated_at)]
    assert (later.opened, later.closed) == (1, 1)
    sent(paths, config, third := Told())
    assert third.opened == 0


def test_what_was_sent_is_not_worked_out_again(paths: SweepPaths, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(paths, config, Told()) > 0
    monkeypatch.setattr(feed, "best", lambda state, loaded: pytest.fail("it takes all runs into account"))
    assert sent(paths, config, Told()) == 0


def test_no_text_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_OWN_WORD", "planted-word")
    monkeypatch.setenv("SOME_API_KEY", "planted-key")
    monkeypatch.setenv("QUOTED_SECRET", 'plänted"word')
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    (tmp_path / "toy.py").write_text("class Toy: ...\n")
    text = FILE.format(trials=2, seeds="[0]") + f"storage: {tmp_path}\nenv: {{A: '${{MY_OWN_WORD}}'}}\n"
    loaded = load_text(text.encode(), tmp_path)
    feed = Feed("/sweep", Masks(values_of(loaded.spec.env)))
    trial, run = "0000-aaaaaaaa", "0000-aaaaaaaa/seed-0"
    lies = "planted-word planted-key hf_abcdefghijklmnopqrstuvwxyz https://me:planted@host"
    suggested = {"trial": trial, "order": 0, "config": {}, "choices": {}, "distributions": {}, "attributes": {}}
    parameters = {"kwargs.x": lies, "kwargs.api_key": "anything", "kwargs.more": {"token": "anything", "n": 3}}
    parameters |= {"kwargs.keys": ['a plänted"word'], "kwargs.token": ["anything"], "kwargs.y": "false"}
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
    for planted in ("planted", "anything", "hf_abc", "nted"):
        assert planted not in str(said)
    facts = said[0][1][0]
    assert facts.parameters["kwargs.api_key"] == MASK
    assert json.loads(facts.parameters["kwargs.more"]) == {"token": MASK, "n": 3}
    assert json.loads(facts.parameters["kwargs.keys"]) == [f"a {MASK}"]
    assert (facts.parameters["kwargs.token"], facts.parameters["kwargs.y"]) == (MASK, "false")
    assert len(said[1][1][2]) < 600


def test_two_processes_never_tell_the_same_tracker(paths: SweepPaths, capsys: Any) -> None:
    with alone(paths, "tensorboard", 0.0):
        command = ["track", str(paths.root), "--to", "tensorboard"]
        assert track_of(command) == 1
    assert "its driver is telling it already" in capsys.readouterr().out


def test_what_another_process_tells_meanwhile_is_not_told_again(
    paths: SweepPaths, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def late(*_: Any) -> Iterator[None]:
        assert sent(paths, TensorBoardConfig(), Told()) > 0
        yield

    monkeypatch.setattr(sender, "alone", late)
    assert track_of(["track", str(paths.root), "--to", "tensorboard"]) == 0
    assert "knows everything" in capsys.readouterr().out


def test_a_password_in_the_shells_address_is_refused(paths: SweepPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:word@host")
    with pytest.raises(UsageError, match="holds a password; keep it in MLFLOW_TRACKING_USERNAME"):
        track_of(["track", str(paths.root), "--to", "mlflow"])
    assert not paths.tracker("mlflow").exists()


def track_of(words: list[str]) -> int:
    from sweeps.arguments import parser

    return track_command.track(parser().parse_args(words))


def test_an_error_is_described_in_a_line_without_secrets(paths: SweepPaths, config: Any, capsys: Any) -> None:
    sending = Sender(paths, config, Told(), Masks(("planted",)))
    assert sending.describe(ValueError()) == "ValueError"
    assert sending.describe(ValueError("a\nb hf_abcdefghijklmnopqrstuvwxyz")) == "ValueError: a"
    assert sending.describe(ValueError("hf_abcdefghijklmnopqrstuvwxyz")) == f"ValueError: {MASK}"
    try:
        raise ValueError(f"a {chr(112)}lanted word")
    except ValueError:
        sending.log()
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
