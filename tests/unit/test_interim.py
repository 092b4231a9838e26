"""Checkpoints between milestones: a run goes on from them bit by bit, and none outlives what it is for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sft_runs import STOP, TOTAL, config, disturb, make_place, quick, run, same

from evaluators.base import Report
from pipelines.finetune import interim
from pipelines.finetune.checkpoint import placing, write_complete
from pipelines.finetune.group import ALONE
from pipelines.finetune.interim import Interims, forget_all, gone_on, taken
from pipelines.finetune.run import Run
from pipelines.stage import Task

OFTEN = 1e-9
COUNTED = ("train/loss", "train/grad_norm", "train/learning_rate", "train/epoch", "train/samples", "cost/tokens")


class Killed(BaseException):
    """Stands for kill -9 of the worker."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("interim"))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interim, "PAUSE", 0.0)


def killed(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], folder: Path, step: int, **more: Any) -> None:
    """A lease that is killed right after a step."""
    plain = Run.after_step

    def after_step(self: Run, done: int) -> None:
        plain(self, done)
        if done == step:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Run, "after_step", after_step)
        with pytest.raises(Killed):
            run(settings, folder, **{"checkpoint_seconds": OFTEN, **more})


def left(run_folder: Path) -> list[str]:
    return sorted(str(path.relative_to(run_folder)) for path in run_folder.glob("attempt-*/*interim-*"))


@pytest.mark.parametrize(
    "changed",
    quick(
        [
            {},
            {"adapter": "none", "learning_rate": 0.001},
            {"optimizer": "schedule_free_adamw"},
            {"precision": "bf16"},
            {"optimizer": "prodigy"},
        ],
        "lora",
        "schedule free",
        ids=["lora", "full", "schedule free", "bf16", "prodigy"],
    ),
)
def test_a_killed_run_goes_on_bit_by_bit(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    settings = config(place, **changed)
    (whole,) = run(settings, tmp_path / "whole" / "attempt-0")
    cut = tmp_path / "cut"
    killed(monkeypatch, settings, cut / "attempt-0", STOP)
    assert left(cut) == [f"attempt-0/interim-{STOP}"]
    disturb()
    steps: list[int] = []
    plain = Run.after_step
    monkeypatch.setattr(Run, "after_step", lambda self, step: (steps.append(step), plain(self, step)))
    (second,) = run(settings, cut / "attempt-1", checkpoint_seconds=OFTEN)
    assert steps == list(range(STOP + 1, TOTAL + 1))
    assert same(tmp_path / "whole" / "attempt-0" / f"checkpoint-{TOTAL}", cut / "attempt-1" / f"checkpoint-{TOTAL}")
    assert [score.record() for score in whole.scores] == [score.record() for score in second.scores]
    assert {name: whole.telemetry[name] for name in COUNTED} == {name: second.telemetry[name] for name in COUNTED}
    assert left(cut) == []


def test_they_change_nothing(place: Path, tmp_path: Path) -> None:
    plain = run(config(place), tmp_path / "plain", (3, TOTAL), report_every=2)
    kept = run(config(place), tmp_path / "kept", (3, TOTAL), report_every=2, checkpoint_seconds=OFTEN)
    assert [r.resource for r in plain] == [r.resource for r in kept] == [2, 3, 4, 6, TOTAL]
    for one, two in zip(plain, kept, strict=True):
        assert {name: one.telemetry[name] for name in COUNTED} == {name: two.telemetry[name] for name in COUNTED}
    assert same(tmp_path / "plain" / f"checkpoint-{TOTAL}", tmp_path / "kept" / f"checkpoint-{TOTAL}")
    assert not list((tmp_path / "kept").glob("*interim-*"))


def test_a_torn_one_is_passed_over(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(monkeypatch, config(place), tmp_path / "attempt-0", 2)
    older = tmp_path / "attempt-0" / "interim-2"
    shutil.copytree(older, tmp_path / "kept")
    killed(monkeypatch, config(place), tmp_path / "attempt-1", 4)
    shutil.copytree(tmp_path / "kept", older)
    weights = tmp_path / "attempt-1" / "interim-4" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert taken(lease(tmp_path / "attempt-2")) == 2
    assert left(tmp_path) == ["attempt-2/interim-2"]


def lease(folder: Path, start: int = 0, *milestones: int) -> Task:
    return Task({}, "0000-abcdef01", 7, 0, str(folder), milestones or (TOTAL,), TOTAL, start_resource=start)


def one(folder: Path, step: int, text: str = "") -> Path:
    with placing(folder / f"interim-{step}") as aside:
        (aside / "state.json").write_text(text)
        write_complete(aside, Report(step, (), {}, f"interim-{step}"))
    return folder / f"interim-{step}"


def test_only_what_lies_between_start_and_milestone_is_taken(tmp_path: Path) -> None:
    for step in (3, 5, 8):
        one(tmp_path / "attempt-0", step)
    assert gone_on(lease(tmp_path / "attempt-1", 3, 5, 8), ALONE) == lease(tmp_path / "attempt-1", 3, 5, 8)
    assert taken(lease(tmp_path / "attempt-1", 3, 8)) == 5
    went = gone_on(lease(tmp_path / "attempt-1", 3, 8), ALONE)
    assert (went.start, went.start_resource) == (str(tmp_path / "attempt-1" / "interim-5"), 5)


def test_of_two_equal_steps_a_whole_one_is_taken(tmp_path: Path) -> None:
    one(tmp_path / "attempt-0", 3, "older")
    (one(tmp_path / "attempt-1", 3) / "complete.json").unlink()
    assert taken(lease(tmp_path / "attempt-1")) == 3
    assert (tmp_path / "attempt-1" / "interim-3" / "state.json").read_text() == "older"
    assert left(tmp_path) == ["attempt-1/interim-3"]


def test_a_process_that_is_cut_off_cannot_take_it_back(tmp_path: Path) -> None:
    cut_off = Interims(tmp_path / "attempt-0", OFTEN)
    one(tmp_path / "attempt-0", 3)
    assert taken(lease(tmp_path / "attempt-1")) == 3
    one(tmp_path / "attempt-0", 4)
    cut_off.written(4, 0.0)
    assert left(tmp_path) == ["attempt-0/interim-4", "attempt-1/interim-3"]


def test_it_waits_for_its_time_and_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(interim.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(interim, "PAUSE", 9.0)
    interims = Interims(tmp_path / "attempt-0", 600)
    found = []
    for now[0] in (599, 600, 700):
        found.append(interims.due())
    interims.written(1, seconds=100)  # so that the next waits 900 s
    for now[0] in (1599, 1600):
        found.append(interims.due())
    assert found == [False, True, True, False, True]
    assert interims.has_room(1000)
    assert not interims.has_room(shutil.disk_usage(tmp_path).free)
    assert not interims.due(), "a full disk is asked again after the same time"
    assert not Interims(tmp_path, None).due()


def test_what_a_dead_run_kept_goes(tmp_path: Path) -> None:
    one(tmp_path / "attempt-0", 3)
    (tmp_path / "attempt-1" / ".interim-4.17-abc.tmp").mkdir(parents=True)
    (tmp_path / "attempt-1" / "checkpoint-3").mkdir()
    forget_all(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")] == ["attempt-1/checkpoint-3"]


@pytest.mark.parametrize("changed", [{}, {"adapter": "none"}])
def test_its_size_is_known_before_it_is_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    told: list[int] = []
    monkeypatch.setattr(Interims, "has_room", lambda self, size: told.append(size) is None)
    killed(monkeypatch, config(place, **changed), tmp_path / "attempt-0", 3)
    written = sum(path.stat().st_size for path in (tmp_path / "attempt-0" / "interim-3").glob("*.safetensors"))
    assert told[-1] == pytest.approx(written, rel=0.25)


def test_the_losses_of_a_checkpoint_are_json(place: Path, tmp_path: Path) -> None:
    run(config(place), tmp_path)
    text = (tmp_path / f"checkpoint-{TOTAL}" / "state.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["losses"]["grad_norm"] is None
