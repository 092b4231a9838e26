"""`show`, `compare`, `list`, `status`, `check` and `evaluate` on ledgers written here, without Ray and torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evaluators.base import ItemSet, Score, summarise
from sweeps import cli
from sweeps.events import Event, Items
from sweeps.ledger import Ledger
from sweeps.load import LoadedSweep, load_text
from sweeps.paths import SweepPaths

FILE = """
name: {name}
pipeline: {{type: custom, import_path: "toy:Toy", total: 9, metrics: {{loss: minimize}}, kwargs: {{x: 0.1}}}}
parameters: {{kwargs.x: {{min: 0.0, max: 1.0}}}}
metric: loss
budget: {{trials: 3}}
"""
TOY = """
from evaluators.base import ItemSet, summarise

class Toy:
    resource = "steps"
    def __init__(self, x=0.0):
        self.x = x
    def run(self, task, report):
        raise NotImplementedError
    def evaluate(self, job):
        assert job.model.base_model == "some-hub-id"
        return (summarise("loss", job.split, "minimize", ItemSet(("a", "b")), [self.x, 0.3]),)
"""
WORSE = [0.0, 0.01, 0.5]
"""What is added to the loss of each trial: the second can't be told from the first, the third can."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(TOY)
    return tmp_path


def score_of(extra: float, rows: int = 40) -> Score:
    items = ItemSet(tuple(f"row-{i}" for i in range(rows)))
    values = [1.0 + 0.1 * (i % 5) + extra + (extra > 0) * (0.1 if i % 2 else -0.1) for i in range(rows)]
    return summarise("loss", "tune", "minimize", items, values)


def make_sweep(here: Path, name: str = "toy", worse: Sequence[float] = WORSE, rows: int = 40) -> LoadedSweep:
    """A finished sweep of a trial for each entry of `worse`."""
    loaded = load_text(FILE.format(name=name).encode(), here)
    ledger = Ledger.create(loaded.paths.root)
    loaded.paths.resolved_spec.write_text(json.dumps(loaded.record()))
    ledger.append([Event("sweep_created", {"name": name, "spec": loaded.record(), "versions": {}, "space": {}})])
    ledger.append([Event("driver_started", {"pid": 1, "host": "h", "version": "0"})])
    for order, extra in enumerate(worse):
        trial, x = f"{order:04d}-{order:08x}", {"kwargs.x": order / 10}
        run = f"{trial}/seed-0"
        told = {"trial": trial, "order": order, "config": loaded.resolve(x), "parameters": x, "choices": x}
        lease = {"lease": f"{trial}-l", "run": run, "attempt": 0, "from_resource": 0, "milestones": [9]}
        ledger.append([Event("suggested", told), Event("lease_started", lease)])
        score = score_of(extra, rows)
        report: dict[str, Any] = {"lease": f"{trial}-l", "run": run, "attempt": 0, "resource": 9}
        report |= {"scores": [score.record()], "telemetry": {}, "checkpoint": "checkpoint-9", "worker_seconds": 2.0}
        ledger.append([Event("reported", report)], [Items(run, 9, score)])
        ledger.append([Event("run_ended", {"run": run, "state": "finished", "reason": ""})])
    ledger.append([Event("sweep_finished", {"trials": len(worse), "failed": 0, "best": None, "seconds": 6})])
    ledger.close()
    return loaded


def told(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert cli.main(words) == status
    captured = capsys.readouterr()
    assert captured.err == "" if status == 0 else captured.out == ""
    return captured.out or captured.err


def test_show_prints_the_leaderboard_in_three_forms(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = make_sweep(here)
    text = told(capsys, "show", "toy")
    assert text.index("0000-00000000") < text.index("0001-00000001") < text.index("0002-00000002")
    assert f"folder: {loaded.paths.root}" in text
    assert "stockpot compare toy" in text
    record = json.loads(told(capsys, "show", "toy", "--json"))
    assert [row["name"] for row in record["rows"]] == ["0000-00000000", "0001-00000001", "0002-00000002"]
    assert (record["metric"], record["finished"], record["soups"]) == ("tune/loss", True, [])
    assert len(json.loads(told(capsys, "show", "toy", "--json", "--top", "1"))["rows"]) == 1
    rows = list(csv.DictReader(io.StringIO(told(capsys, "show", "toy", "--csv"))))
    assert [row["parameters.kwargs.x"] for row in rows] == ["0.0", "0.1", "0.2"]
    assert "not allowed with" in told(capsys, "show", "toy", "--csv", "--json", status=2)


def test_compare_marks_what_cant_be_told_from_the_best(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(here)
    assert "2 can't be told from the best (marked =)" in told(capsys, "compare", "toy")
    record = json.loads(told(capsys, "compare", "toy", "--json"))
    assert record["tied_best"] == ["0000-00000000", "0001-00000001"]
    assert record["pairs"][1]["difference"] == pytest.approx(-0.5, abs=1e-4)
    assert "at least 2" in told(capsys, "compare", "toy", "--top", "1", status=2)


def test_compare_takes_other_metrics_and_named_trials(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(here)
    assert json.loads(told(capsys, "compare", "toy", "--metric", "tune/loss", "--json"))["metric"] == "tune/loss"
    named = json.loads(told(capsys, "compare", "toy", "--trial", "0", "--trial", "0002-00000002", "--json"))
    assert [one["name"] for one in named["contestants"]] == ["0000-00000000", "0002-00000002"]
    make_sweep(here, "two")
    for words, said in [
        (["toy", "--metric", "los"], "--metric: 'los' is unknown; did you mean 'loss'?"),
        (["toy", "--metric", "loss:maximize"], "'maximize' contradicts loss"),
        (["toy", "--metric", "loss:up"], "'up' is no goal; write loss:minimize or loss:maximize"),
        (["toy", "--metric", "test/loss"], "test/ is opened once"),
        (["toy", "--metric", "train/loss"], "say which way is better: train/loss:minimize or train/loss:maximize"),
        (["toy", "--metric", "cost/tokens"], "no trial of toy reports cost/tokens; reported are: tune/loss"),
        (["toy", "--trial", "0"], "--trial is given for each trial to compare"),
        (["toy", "--trial", "0", "--trial", "9"], "sweep toy has no trial '9'; its trials: 0000-00000000 to"),
        (["toy", "two", "--trial", "0", "--trial", "1"], "--trial names trials of one sweep"),
    ]:
        assert said in told(capsys, "compare", *words, status=2)


def test_compare_takes_several_sweeps(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(here, "one", [0.5, 0.7])
    make_sweep(here, "two", [0.0])
    make_sweep(here, "other", [0.1], rows=20)
    text = told(capsys, "compare", "one", "two", "other")
    assert text.splitlines()[2].split()[:2] == ["=", "two:0000-00000000"]
    assert "one:0001-00000001" in text
    assert "left out: other:0000-00000000" in text


def test_compare_has_nothing_before_the_first_milestone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(here, worse=[])
    assert "nothing to compare" in told(capsys, "compare", "toy", status=2)


def test_list_and_status_tell_state_best_and_driver(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = make_sweep(here)
    make_sweep(here, "other", [0.1])
    text = told(capsys, "list")
    assert text.splitlines()[0].split() == ["name", "state", "trials", "best", "age"]
    assert any(line.split()[:3] == ["toy", "finished", "3/3"] for line in text.splitlines())
    assert {shot["name"] for shot in json.loads(told(capsys, "list", "--json"))} == {"toy", "other"}
    status = told(capsys, "status", "toy")
    assert "toy: finished" in status
    assert "none is running" in status
    driver = Ledger.open(loaded.paths.root)
    try:
        assert json.loads(told(capsys, "status", "toy", "--json"))["driver"]["pid"]
    finally:
        driver.close()
    assert json.loads(told(capsys, "status", "toy", "--json"))["driver"] is None


def test_status_watch_ends_with_the_sweep(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(here)
    assert "toy: finished" in told(capsys, "status", "toy", "--watch")
    assert len(told(capsys, "status", "toy", "--watch", "--json").splitlines()) == 1


def test_a_dead_drivers_sweep_is_interrupted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_text(FILE.format(name="dead").encode(), here)
    ledger = Ledger.create(loaded.paths.root)
    loaded.paths.resolved_spec.write_text(json.dumps(loaded.record()))
    ledger.append([Event("sweep_created", {"name": "dead", "spec": {}, "versions": {}, "space": {}})])
    ledger.append([Event("driver_started", {"pid": 1, "host": "h", "version": "0"})])
    lease = {"lease": "l", "run": "0000-t/seed-0", "attempt": 0, "from_resource": 0, "milestones": [9]}
    trial = {"trial": "0000-t", "order": 0, "config": {}, "parameters": {}, "choices": {}}
    ledger.append([Event("suggested", trial), Event("lease_started", lease)])
    text = told(capsys, "status", "dead")
    assert "dead: running" in text
    assert "0/3 trials, 1 running" in text
    ledger.drop()
    text = told(capsys, "status", "dead")
    assert "dead: interrupted" in text
    assert "0/3 trials, 0 running" in text
    assert "stockpot resume dead" in text


def test_a_damaged_sweep_does_not_spoil_the_list(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = make_sweep(here)
    broken = SweepPaths.of(here / "stockpot-runs", "broken")
    broken.root.mkdir()
    broken.ledger.write_bytes(loaded.paths.ledger.read_bytes()[:3000])
    lines = told(capsys, "list").splitlines()
    assert any(line.split()[:2] == ["broken", "damaged"] for line in lines)
    assert any(line.split()[:2] == ["toy", "finished"] for line in lines)


def test_check_says_what_would_run_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "toy.yaml").write_text(FILE.format(name="toy"))
    text = told(capsys, "check", "toy.yaml", "--data", "--set", "budget.trials=5")
    assert "toy: no mistakes" in text
    assert "5 trials, random over 1 parameter" in text
    assert "5 runs to 9 units: about 45 units in all" in text
    assert "the pipeline reads its own" in text
    assert "next: stockpot submit toy.yaml --set=budget.trials=5" in text
    assert json.loads(told(capsys, "check", "toy.yaml", "--json"))["resource"] == 27
    mistake = told(capsys, "check", "toy.yaml", "--set", "method=randm", "--set", "budget.trails=3", status=2)
    assert "did you mean 'random'?" in mistake
    assert "did you mean 'trials'?" in mistake
    assert not (here / "stockpot-runs").exists()


def test_check_reads_the_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"q{i}", "completion": str(i)} for i in range(300)]
    (here / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text("{}")
    (here / "sft.yaml").write_text(
        "name: s\npipeline: {type: sft, base_model: ./model, max_steps: 4,\n"
        "  datasets: {train: {path: train.jsonl, type: prompt_completion}, tune: {fraction: 0.1}}}\n"
        "parameters: {lora_r: [4, 8]}\nmethod: grid\nmetric: loss\n"
    )
    text = told(capsys, "check", "sft.yaml", "--data")
    record = json.loads(told(capsys, "check", "sft.yaml", "--data", "--json"))
    assert sum(record["rows"].values()) == 300
    assert record["rows"]["tune"] > 0
    assert f"  train    {record['rows']['train']} rows\n" in text
    assert f"  tune     {record['rows']['tune']} rows: shows a difference of" in text
    (here / "train.jsonl").write_text('{"prompt": "q", "completion": 3}\n')
    assert "train.jsonl, line 1" in told(capsys, "check", "sft.yaml", "--data", status=2)


def test_evaluate_scores_a_sweeps_split_and_counts_openings_of_test(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = make_sweep(here)
    text = told(capsys, "evaluate", "some-hub-id", "--on", "sweep://toy/tune", "--with", "loss")
    assert text.splitlines()[1].split() == ["loss", "0.15", "±", "0.15,", "n=2"]
    assert openings(loaded) == []
    record = json.loads(told(capsys, "evaluate", "some-hub-id", "--on", "sweep://toy/test", "--with", "loss", "--json"))
    assert record["scores"][0]["split"] == "test"
    assert openings(loaded) == [{"by": "evaluate", "candidates": ["some-hub-id"], "metrics": ["test/loss"]}]


def test_an_opening_of_test_that_could_not_be_sent_is_the_exit_status(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sweep(here)
    monkeypatch.setattr("sweeps.driving.Drive.status", lambda self, status: 1)
    assert cli.main(("evaluate", "some-hub-id", "--on", "sweep://toy/test", "--with", "loss")) == 1
    assert "loss" in capsys.readouterr().out


def openings(loaded: LoadedSweep) -> list[dict[str, Any]]:
    ledger = Ledger.read(loaded.paths.root)
    try:
        return [dict(event.body) for event in ledger.events() if event.kind == "test_opened"]
    finally:
        ledger.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["x", "--on", "sweep://toy/tunes", "--with", "loss"],
            "write sweep://NAME/ and one of tune, select, test, train",
        ),
        (["x", "--on", "sweep://tyo/tune", "--with", "loss"], "Did you mean 'toy'?"),
        (["sweep://toy/soup", "--on", "sweep://toy/tune", "--with", "loss"], "has no finished soup"),
        (["x", "--on", "sweep://toy/tune", "--with", "los"], "did you mean 'loss'?"),
        (["x", "--on", "sweep://toy/tune", "--with", ","], "--with names no evaluator"),
        (
            ["x", "--on", "rows.jsonl", "--with", "loss", "--max-new-tokens", "3"],
            "--max-new-tokens means nothing to loss",
        ),
        (["x", "--on", "none.jsonl", "--with", "loss"], "there is no such file"),
        (["x", "--on", "toy.py", "--with", "loss"], "say which is which"),
        (["x", "--on", "rows.jsonl", "--with", "loss", "--type", "chatt"], "did you mean 'chat'?"),
        (["x", "--on", "rows.jsonl", "--with", "loss", "--base", "y"], "--base is for adapter folders"),
        (["adapter", "--on", "rows.jsonl", "--with", "loss"], "names no base model; say it with --base MODEL"),
        (["x", "--on", "bad.jsonl", "--with", "loss"], "bad.jsonl, line 2"),
    ],
)
def test_evaluates_mistakes(words: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(here)
    (here / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (here / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text("{}")
    assert said in told(capsys, "evaluate", *words, status=2)
