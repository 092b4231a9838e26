"""A baseline that is trial 0: beside the budget and the search, in every table, and what the final step compares with."""

from __future__ import annotations

from pathlib import Path

import pytest
from plans import backend, curve, plan
from soup_machine import Stage
from sweep_files import SFT, load, problems

from sweeps.baselines import NADAMW_ALGOPERF
from sweeps.board import to_json
from sweeps.board_text import to_text
from sweeps.describe import describe
from sweeps.events import Event
from sweeps.failures import Failure
from sweeps.final import run_final
from sweeps.fold import fold
from sweeps.keep import GIGABYTE
from sweeps.leaderboard import leaderboard
from sweeps.ledger import Ledger, number
from sweeps.replay import differences
from sweeps.report.trials import trial_records
from sweeps.scoring import ranked
from sweeps.simulate import drive

NAMED = {"baseline": "nadamw_algoperf"}


def driven(root: Path, made, **settings):
    """The state and the ledger of a sweep that was driven to its end."""
    drive(made, root, backend(root, **settings))
    ledger = Ledger.read(root)
    return fold(ledger.events()), ledger


@pytest.mark.parametrize("stop", ["asha", "none"])
@pytest.mark.parametrize("slots", [1, 3])
def test_it_is_trial_0_beside_the_budget_and_goes_to_the_total(tmp_path: Path, stop: str, slots: int) -> None:
    made = plan(trials=6, stop=stop, **NAMED)
    state, ledger = driven(tmp_path, made, slots=slots)
    first = next(iter(state.trials.values()))
    assert (first.order, first.baseline) == (0, "nadamw_algoperf")
    assert [trial.order for trial in state.trials.values()] == [0, 1, 2, 3, 4, 5, 6]
    assert len(state.searched) == 6
    assert state.runs[f"{first.id}/seed-0"].phase == "finished"
    assert made.total in state.runs[f"{first.id}/seed-0"].reports
    assert differences(made, ledger.events()) == []


def test_the_search_is_that_of_a_sweep_without_it(tmp_path: Path) -> None:
    for method in ("random", {"type": "tpe", "seed": 0, "n_startup_trials": 2}):
        found = []
        for name, sections in (("with", NAMED), ("without", {})):
            place = tmp_path / f"{name}-{method if isinstance(method, str) else method['type']}"
            state, _ = driven(place, plan(trials=7, method=method, **sections))
            found.append([trial.suggestion.parameters for trial in state.searched.values()])
        assert found[0] == found[1]


def test_every_tuning_seed_runs_it(tmp_path: Path) -> None:
    state, _ = driven(tmp_path, plan(trials=3, seeds={"tune": [0, 5]}, **NAMED))
    trial = state.baseline
    assert trial is not None
    runs = [run for run in state.runs.values() if run.trial == trial.id]
    assert [(run.seed, run.phase) for run in runs] == [(0, "finished"), (5, "finished")]


def test_it_goes_on_after_a_kill(tmp_path: Path) -> None:
    made = plan(trials=3, **NAMED)
    whole, _ = driven(tmp_path / "whole", made)
    (tmp_path / "cut").mkdir()
    ledger = Ledger.create(tmp_path / "cut")
    events = list(Ledger.read(tmp_path / "whole").events())
    begun = next(i for i, event in enumerate(events) if event.kind == "lease_started")
    ledger.append([Event(event.kind, event.body) for event in events[: begun + 1]])
    ledger.close()
    drive(made, tmp_path / "cut", backend(tmp_path / "cut"))
    state = fold(Ledger.read(tmp_path / "cut").events())
    assert list(state.trials) == list(whole.trials)
    run = state.runs[f"{next(iter(state.trials))}/seed-0"]
    assert (run.phase, run.attempt) == ("finished", 1)


def test_its_row_is_in_the_table_without_a_rank(tmp_path: Path) -> None:
    made = plan(trials=4, **NAMED)
    state, ledger = driven(tmp_path, made)
    board = leaderboard(state, ledger, made)
    [row] = [row for row in board.trials if row.baseline]
    assert (row.rank, row.tie, row.whole) == (None, None, True)
    assert row.parameters == {"kwargs.x": 0.5, "kwargs.k": 2}
    assert row.score.value == pytest.approx(curve({"kwargs": {"x": 0.5, "k": 2}}, made.total))
    assert sorted(row.rank for row in board.trials if row.rank) == [1, 2, 3, 4]
    text = to_text(board, 200)
    assert "4 trials and the baseline" in text
    assert f"{row.name} (baseline)" in text
    assert "the baseline nadamw_algoperf" in text
    assert board.trials[0].baseline == "" or board.trials[1].rank == 1


def test_a_baseline_that_is_best_is_neither_the_winner_nor_an_ingredient(tmp_path: Path) -> None:
    made = plan(trials=4, **NAMED)

    def best_at_half(config, resource, seed=0):
        return abs(config["kwargs"]["x"] - 0.5) + 1 / resource

    drive(made, tmp_path, backend(tmp_path, of=best_at_half))
    ledger = Ledger.read(tmp_path)
    state = fold(ledger.events())
    board = leaderboard(state, ledger, made)
    assert board.trials[0].baseline == "nadamw_algoperf"
    assert board.trials[1].rank == 1
    assert all(placed.run.trial in state.searched for placed in ranked(made, state))


def test_one_that_fails_stops_nothing(tmp_path: Path) -> None:
    made = plan(trials=4, **NAMED)

    def faults(lease, resource):
        return Failure("nan", "the loss is nan") if lease.config["kwargs"]["x"] == 0.5 else None

    state, ledger = driven(tmp_path, made, faults=faults)
    assert [run.phase for run in state.runs.values() if run.trial not in state.searched] == ["failed"]
    assert any(run.phase == "finished" for run in state.runs.values())
    assert differences(made, ledger.events()) == []


def test_its_checkpoint_stays_for_the_final_step(tmp_path: Path) -> None:
    made = plan(trials=9, keep={"best": 1, "disk_gb": 1e-3 / GIGABYTE}, **NAMED)
    state, _ = driven(tmp_path, made)
    trial = state.baseline
    assert trial is not None
    assert not state.runs[f"{trial.id}/seed-0"].reports[made.total].deleted


def test_the_file_s_word_becomes_the_calibrated_values(tmp_path: Path) -> None:
    loaded = load(tmp_path, SFT + "parameters: {lora_r: [2, 4]}\nbaseline: nadamw_algoperf\n")
    config = loaded.resolve_baseline()
    assert config is not None
    assert {key: config[key] for key in NADAMW_ALGOPERF} == dict(NADAMW_ALGOPERF)
    assert config["adam_beta1"] == pytest.approx(0.93266073836)
    assert config["lora_dropout"] == 0.1
    told = describe(loaded)
    assert (told["trials"], told["baseline"], told["rungs"][0]["runs"]) == (2, "nadamw_algoperf", 3)


def test_another_word_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, SFT + "parameters: {lora_r: [2, 4]}\nbaseline: nadamw\n")
    assert list(found) == ["baseline"]
    assert "nadamw_algoperf" in found["baseline"]


@pytest.mark.parametrize("seeds", ["", "seeds: {tune: [0], test: [100]}"])
def test_the_final_step_compares_with_it(tmp_path: Path, seeds: str) -> None:
    stage = Stage(tmp_path, [0.9, 0.5], f"baseline: nadamw_algoperf\n{seeds}\n")
    trial = stage.add_baseline(1.4)
    run_final(stage.loaded, stage.ledger, stage.paths, stage.backend, None, stage.said.append)
    state = fold(stage.ledger.events())
    baseline, winner = state.candidates
    assert (baseline["role"], baseline["trial"], winner["run"]) == ("baseline", trial, stage.runs[1])
    assert [(body["left"], body["right"]) for body in state.verdicts] == [("winner", "baseline")]
    trained = [payload for function, payload in stage.backend.calls if function == "sweeps.retrain:train"]
    assert [payload["trial"] for payload in trained] == (["baseline", stage.runs[1].partition("/")[0]] if seeds else [])
    assert all(payload["config"]["optimizer"] == "nadamw" for payload in trained if payload["trial"] == "baseline")
    board = leaderboard(state, stage.ledger, stage.loaded)
    [row] = [row for row in board.rows if row.baseline or row.kind == "baseline"]
    assert row.name == trial
    assert row.test is not None
    if not seeds:
        used = [
            p["model"]["adapter"]
            for f, p in stage.backend.calls
            if f == "sweeps.worker:evaluate" and p["split"] == "test"
        ]
        assert any(f"trials/{trial}/" in str(adapter) for adapter in used)


def test_the_untuned_model_stands_in_for_one_that_failed(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.9, 0.5], "baseline: nadamw_algoperf\n")
    stage.add_baseline(None)
    run_final(stage.loaded, stage.ledger, stage.paths, stage.backend, None, stage.said.append)
    state = fold(stage.ledger.events())
    assert state.candidates[0]["model"] == "org/model"
    assert "nadamw_algoperf failed: the loss is nan" in state.candidates[0]["reason"]
    assert [(body["left"], body["right"]) for body in state.verdicts] == [("winner", "baseline")]


def test_early_signs_stand_by_rows_seen(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.9], "")
    run = stage.runs[0]
    for resource, norm in ((2, 3.0), (4, float("nan"))):
        telemetry = {
            "train/samples": 8.0 * resource,
            "train/grad_norm": number(norm),
            "train/loss": 1.5,
            "cost/seconds": 1.0,
        }
        body = {"lease": "l", "run": run, "attempt": 0, "resource": resource, "scores": [], "telemetry": telemetry}
        stage.ledger.append([Event("reported", {**body, "checkpoint": None})])
    board = leaderboard(fold(stage.ledger.events()), stage.ledger, stage.loaded)
    [row] = to_json(board)["rows"]
    assert row["signs"] == [
        {"resource": 2, "samples": 16.0, "grad_norm": 3.0, "loss": 1.5},
        {"resource": 4, "samples": 32.0, "grad_norm": None, "loss": 1.5},
    ]


def test_the_report_marks_its_row(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [0.9, 0.5], "baseline: nadamw_algoperf\n")
    trial = stage.add_baseline(1.4)
    state = fold(stage.ledger.events())
    board = leaderboard(state, stage.ledger, stage.loaded)
    marked = {found["id"]: found["baseline"] for found in trial_records(state, board, (30,), driven=True)}
    assert marked == {trial: "nadamw_algoperf", "0000-abcdef00": "", "0001-abcdef00": ""}
