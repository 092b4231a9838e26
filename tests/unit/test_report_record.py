"""The report's record: what it says of finished, running, failed, empty and old sweeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_sweeps import conclude, simulated

from sweeps.events import Event
from sweeps.ledger import Ledger
from sweeps.load import load_resolved
from sweeps.paths import SweepPaths
from sweeps.report.axes import axes_of
from sweeps.report.record import report_record
from sweeps.report.redact import MASK, cut, redact
from sweeps.report.timeline import timeline
from sweeps.space import Axis, Branch, Choice, Group, Interval, Space


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    return simulated(tmp_path_factory.mktemp("big"))


@pytest.fixture(scope="module")
def record(big: SweepPaths) -> dict[str, Any]:
    return report_record(big)


def test_the_record_is_json_and_the_same_each_time(big: SweepPaths, record: dict[str, Any]) -> None:
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert report_record(big) == record
    assert record["etag"].endswith("-finished")


def test_every_trial_is_there_with_its_curve_and_its_ending(record: dict[str, Any]) -> None:
    trials = record["trials"]
    assert len(trials) == 64
    assert {trial["state"] for trial in trials} == {"finished", "stopped", "failed"}
    assert sum(record["totals"]["states"].values()) == 64
    best = trials[0]
    assert best["rank"] == 1
    curve = best["runs"][0]["curves"]["tune/loss"]
    assert [point[0] for point in curve] == record["milestones"]
    assert curve[-1][1] == pytest.approx(best["score"]["value"], rel=1e-5)
    assert all(point[2] > 0 for point in curve)
    failed = [trial for trial in trials if trial["state"] == "failed"]
    assert {trial["kind"] for trial in failed} >= {"user", "oom"}
    for trial in failed:
        assert any(failure["message"] for run in trial["runs"] for failure in run["failures"])
    assert all(trial["reason"] for trial in trials if trial["state"] == "stopped")


def test_the_headline_says_what_was_decided(record: dict[str, Any]) -> None:
    assert record["headline"]["title"].startswith("The best single model beats the baseline; ")
    said = " ".join(record["headline"]["lines"])
    assert "Test was opened once for 3 verdicts" in said
    assert "not the luck of training" in said
    assert "best single minus baseline" in said.lower()
    assert "p < 0.001" in said
    assert [verdict["decided"] for verdict in record["verdicts"]][1:] == ["left", "left"]


def test_holm_takes_a_verdict_back(tmp_path: Path) -> None:
    paths = simulated(tmp_path, trials=6, total=8, finish=False, broken=None)
    loaded = load_resolved(paths.resolved_spec)
    conclude(loaded)
    ledger = Ledger.open(paths.root, durable=False)
    narrow = {"left": "soup", "right": "winner", "metric": "test/other", "difference": -0.1, "se": 0.04, "low": -0.19}
    narrow |= {"high": -0.01, "p": 0.04, "n": 9, "clusters": 9, "dropped": 0, "better": "left", "covers": "data"}
    ledger.append([Event("verdict", {**narrow, "seeds": {"left": [], "right": []}, "note": ""}) for _ in range(4)])
    ledger.close()
    last = report_record(paths)["verdicts"][-1]
    assert (last["better"], last["decided"]) == ("left", "neither")
    assert last["words"] == "no difference is shown between the soup and the best single model"


def test_a_soup_of_the_winner_alone_is_called_that(tmp_path: Path) -> None:
    paths = simulated(tmp_path, trials=6, total=8, finish=False, broken=None)
    ledger = Ledger.open(paths.root, durable=False)
    run = next(iter(report_record(paths)["trials"]))["id"] + "/seed-0"
    ledger.append(
        [Event("soup_started", {"soup": "greedy-1", "method": "greedy", "metric": "select/loss", "ingredients": []})]
    )
    done = {
        "soup": "greedy-1",
        "ingredients": [[run, 1.0]],
        "folder": "soups/greedy-1",
        "score": None,
        "hash": "a",
        "reason": "",
    }
    ledger.append([Event("soup_finished", done)])
    candidates = [{"role": "winner", "run": run}, {"role": "soup", "soup": "greedy-1"}]
    ledger.append([Event("final_frozen", {"candidates": candidates})])
    same = {
        "left": "soup",
        "right": "winner",
        "metric": "test/loss",
        "difference": 0.0,
        "se": 0.0,
        "low": 0.0,
        "high": 0.0,
    }
    same |= {"p": 1.0, "n": 9, "clusters": 9, "dropped": 0, "better": "neither", "covers": "data", "note": ""}
    ledger.append([Event("verdict", {**same, "seeds": {"left": [], "right": []}})])
    ledger.close()
    assert "that model itself" in report_record(paths)["headline"]["title"]


def test_a_running_sweep_becomes_an_interrupted_one(tmp_path: Path) -> None:
    paths = simulated(tmp_path, trials=6, total=8, finish=False)
    ledger = Ledger.open(paths.root, durable=False)
    ledger.append([Event("driver_started", {"pid": 1, "host": "h", "version": "0"})])
    running = report_record(paths)
    assert running["phase"] == "running"
    assert running["headline"]["title"].startswith("Running: ")
    assert running["reproduction"]["drivers"][-1]["how"] == "at work"
    ledger.drop()
    after = report_record(paths)
    assert after["phase"] == "interrupted"
    assert "can be resumed" in after["headline"]["title"]
    assert after["reproduction"]["drivers"][-1]["how"] == "was killed"
    assert running["etag"] != after["etag"]


def test_an_empty_ledger_has_a_report(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "empty", durable=False).close()
    record = report_record(SweepPaths(tmp_path / "empty"))
    assert (record["phase"], record["trials"], record["name"]) == ("empty", [], "empty")
    assert record["headline"]["title"] == "Nothing has been tried yet."


def test_a_sweep_whose_trials_all_failed_says_why(tmp_path: Path) -> None:
    from sweeps.failures import Failure

    paths = simulated(
        tmp_path, trials=4, total=8, finish=False, broken=lambda lease, at: Failure("user", "no such file: x")
    )
    record = report_record(paths)
    assert record["totals"]["best"] is None
    assert "no such file: x" in " ".join(record["headline"]["lines"])
    assert record["importance"]["indices"] == []


def test_an_old_sweep_that_this_version_cant_load_still_has_one(tmp_path: Path) -> None:
    paths = simulated(tmp_path, trials=6, total=8)
    whole = report_record(paths)
    spec = json.loads(paths.resolved_spec.read_text())
    spec["format"] = 0
    paths.resolved_spec.write_text(json.dumps(spec))
    old = report_record(paths)
    assert "can't load" in old["notes"][0]
    assert [trial["id"] for trial in old["trials"]] == [trial["id"] for trial in whole["trials"]]
    assert {axis["path"] for axis in old["axes"]} <= {axis["path"] for axis in whole["axes"]}
    assert old["headline"] == whole["headline"]


def test_kinds_of_later_versions_change_nothing(tmp_path: Path) -> None:
    paths = simulated(tmp_path, trials=4, total=8, finish=False)
    before = report_record(paths)
    ledger = Ledger.open(paths.root, durable=False)
    ledger.append([Event("from_the_future", {"x": 1})])
    ledger.close()
    after = report_record(paths)
    assert after["trials"] == before["trials"]
    assert after["reproduction"]["ledger"]["kinds"]["from_the_future"] == 1


def test_importance_is_absent_below_twenty_and_found_above(tmp_path: Path, record: dict[str, Any]) -> None:
    few = report_record(simulated(tmp_path, trials=9, total=8))["importance"]
    assert few["indices"] == []
    assert "of the 20 ended trials" in few["reason"]
    found = record["importance"]
    assert found["n"] >= 20
    first = found["indices"][0]
    assert first["name"] == "kwargs.learning_rate"
    assert first["value"] > first["noise"]
    assert first["low"] <= first["value"] <= first["high"]
    arm = next(index for index in found["indices"] if index["name"] == "kwargs.optimizer.beta2")
    assert arm["n"] < found["n"]


def test_the_soup_is_told_step_by_step(record: dict[str, Any]) -> None:
    (soup,) = record["soups"]
    assert soup["decisions"][0]["decision"] == "start"
    assert {decision["decision"] for decision in soup["decisions"]} == {"start", "accept", "reject"}
    assert sum(entry["weight"] for entry in soup["ingredients"]) == pytest.approx(1.0)
    assert all(entry["select"]["se"] > 0 for entry in soup["ingredients"])
    assert len(soup["steps"]) == 9


def test_data_has_rows_and_the_smallest_difference(record: dict[str, Any]) -> None:
    splits = {split["split"]: split for split in record["data"]["splits"]}
    assert set(splits) == {"tune", "select", "test"}
    for split in splits.values():
        assert (split["rows"], split["groups"]) == (80, 40)
        # Differences of two noises of 0.08 over 80 rows in pairs: 2.8 x 0.08 x sqrt(2 / 80).
        assert split["smallest"] == pytest.approx(2.8 * 0.08 * (2 / 80) ** 0.5, rel=0.35)


def test_reproduction_holds_spec_hashes_and_the_command(big: SweepPaths, record: dict[str, Any]) -> None:
    facts = record["reproduction"]
    assert facts["spec"]["name"] == "big"
    assert facts["yaml"].startswith("name: big\n")
    assert f"stockpot submit {big.resolved_spec} --set name=big-again" in [c["command"] for c in facts["commands"]]
    assert any(entry["what"] == "sweep.resolved.json" and len(entry["hash"]) == 64 for entry in facts["hashes"])
    assert facts["ledger"]["openings"][0]["by"] == "final"


def test_leases_stand_in_as_many_lanes_as_slots(record: dict[str, Any]) -> None:
    line = record["timeline"]
    assert line["lanes"] == 4
    assert {span["kind"] for span in line["spans"]} == {"lease", "soup", "final"}
    by_lane: dict[int, float] = {}
    for span in sorted((s for s in line["spans"] if s["kind"] == "lease"), key=lambda s: s["start"]):
        assert span["start"] >= by_lane.get(span["lane"], 0.0) - 0.01
        by_lane[span["lane"]] = span["end"]


def test_hours_without_a_driver_are_cut_out() -> None:
    lease = {"run": "0000-a/seed-0", "lease": "l"}
    events = [
        Event("driver_started", {}, 1, 100.0),
        Event("lease_started", lease, 2, 110.0),
        Event("driver_started", {}, 3, 5000.0),
        Event("lease_started", lease, 4, 5010.0),
        Event("lease_ended", {**lease, "reason": "finished"}, 5, 5020.0),
    ]
    line = timeline(events, driven=False)
    assert line["breaks"] == [{"at": 10.0, "seconds": 4890}]
    assert [(span["start"], span["end"], span["how"]) for span in line["spans"]] == [
        (10.0, 10.0, "interrupted"),
        (20.0, 30.0, "finished"),
    ]
    assert line["seconds"] == 30.0


def test_axes_know_scales_branches_and_groups() -> None:
    arms = {"a": Space((Axis("o.a.b", "o.b", Interval(0.0, 1.0)),)), "b": Space()}
    space = Space(
        (Axis("lr", "lr", Interval(1e-5, 1e-2, log=True)), Axis("r", "r", Choice((16, 4, 8)))),
        (Group("g", ({"x": 1, "y": True}, {"x": 2, "y": False})),),
        (Branch("o", arms),),
    )
    axes = {axis["path"]: axis for axis in axes_of(space, [{"lr": 1e-3, "extra": "new"}])}
    assert (axes["lr"]["kind"], axes["lr"]["low"], axes["lr"]["high"]) == ("log", 1e-5, 1e-2)
    assert axes["r"]["values"] == [4, 8, 16]
    assert axes["y"]["values"] == [True, False]
    assert (axes["o.type"]["label"], axes["o.type"]["values"]) == ("o", ["a", "b"])
    assert axes["o.b"]["when"] == ["o = a"]
    assert axes["extra"]["values"] == ["new"]


def test_secrets_are_masked_and_long_texts_cut() -> None:
    spec = {"env": {"HF_TOKEN": "${HF_TOKEN}", "API_KEY": "plain"}, "max_new_tokens": 64, "tokenizer": "a/b"}
    spec["url"] = "https://user:hunter2@host/x"
    spec["note"] = "it said hf_abcdefghijklmnopqrstuvwxyz here"
    found = redact(spec)
    assert found["env"] == {"HF_TOKEN": "${HF_TOKEN}", "API_KEY": MASK}
    assert (found["max_new_tokens"], found["tokenizer"]) == (64, "a/b")
    assert found["url"] == f"https://{MASK}@host/x"
    assert found["note"] == f"it said {MASK} here"
    assert len(cut("x" * 1_000_000)) < 2100
    assert "998,000 characters left out" in cut("x" * 1_000_000)
