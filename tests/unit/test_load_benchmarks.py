"""What the door says about evaluators with rows of their own: choice rows, and tasks of lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from sweep_files import SFT, load, problems

import sweeps.benchmark_rules
from sweeps.load import load_resolved
from sweeps.task_files import scored_during, task_files

BARE = SFT.replace("metric: loss\n", "")
TASKS = {
    "base.yaml": "task: both\ndataset_path: json\nvalidation_split: validation\ntest_split: test\ntag: mine\n",
    "lower.yaml": "include: base.yaml\ntask: lower\nprocess_docs: !function utils.docs\ntag:\n  - mine\n  - others\n",
    "only.yaml": "task: only\ndataset_path: json\ntest_split: test\n",
    "group.yaml": "group: all_mine\ntask:\n  - both\n  - task: lower\n",
    "mixed.yaml": "group: mixed\ntask: [both, only]\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's folder with task files of its own; what comes with the harness is an empty folder."""
    (tmp_path / "tasks").mkdir()
    for name, text in TASKS.items():
        (tmp_path / "tasks" / name).write_text(text)
    (tmp_path / "choices.jsonl").write_text("")
    theirs = tmp_path / "harness"
    theirs.mkdir()
    monkeypatch.setattr("sweeps.task_files.harness_folder", lambda: theirs)
    monkeypatch.setattr(sweeps.benchmark_rules, "harness_folder", lambda: theirs)
    task_files.cache_clear()
    return tmp_path


def own(tasks: str, more: str = "") -> str:
    return f"evaluate: [{{type: lm_eval, include_path: tasks, tasks: [{tasks}]{more}}}]\n"


def test_names_groups_and_tags_are_found_with_the_splits_that_they_have(folder: Path) -> None:
    found = task_files(folder / "tasks")
    assert found.names == {"both", "lower", "only", "all_mine", "mixed", "mine", "others"}
    told = {name: scored_during(name, (found,)) for name in found.names}
    assert told == {
        "both": True, "lower": True, "all_mine": True, "mine": True, "others": True, "only": False, "mixed": False,
    }  # fmt: skip
    assert not scored_during("absent", (found,))


def test_a_benchmark_and_several_of_them_can_be_the_metric(folder: Path) -> None:
    loaded = load(folder, BARE + own("both, lower") + "metric: lm_eval\n")
    assert [(m.name, m.direction) for m in loaded.metrics] == [("tune/lm_eval", "maximize")]
    assert [entry["type"] for entry in loaded.timetable.rung] == ["lm_eval"]
    assert loaded.timetable.rung[0]["include_path"] == str(folder / "tasks")
    front = load(
        folder,
        BARE + own("both, lower") + "metric: [lm_eval.both, lm_eval.lower]\nmethod: random\nbudget: {trials: 3}\n",
    )
    assert [m.name for m in front.metrics] == ["tune/lm_eval.both", "tune/lm_eval.lower"]
    assert len(front.timetable.rung) == 1


def test_a_record_of_a_sweep_reads_back_with_its_benchmarks(folder: Path, tmp_path: Path) -> None:
    import json

    loaded = load(folder, BARE + own("both, {name: lower, metric: acc_norm}") + "metric: lm_eval.both\n")
    record = tmp_path / "record.json"
    record.write_text(json.dumps(loaded.record()))
    assert load_resolved(record).spec.evaluate == loaded.spec.evaluate
    assert load_resolved(record).timetable == loaded.timetable


def test_a_test_split_decides_nothing(folder: Path) -> None:
    said = problems(folder, BARE + own("only") + "metric: lm_eval.only\n")
    assert "a benchmark's test split decides nothing" in said["metric"]
    said = problems(folder, SFT + own("only", ", when: end"))
    assert "which the final step alone opens; write when: final" in said["evaluate[0].when"]
    said = problems(folder, SFT + own("both, mixed") + "soup: {metric: lm_eval}\n")
    assert "mixed has no validation split" in said["soup.metric"]
    final = load(folder, SFT + own("only"))
    assert [entry["type"] for entry in final.timetable.final] == ["loss", "lm_eval"]


def test_two_entries_of_different_tasks_run_at_different_times(folder: Path) -> None:
    two = "evaluate: [{type: lm_eval, include_path: tasks, tasks: [both]}, {type: lm_eval, include_path: tasks, tasks: [only], when: final}]\n"
    loaded = load(folder, BARE + two + "metric: lm_eval.both\n")
    named = lambda entries: [task["name"] for entry in entries for task in entry["tasks"]]  # noqa: E731
    assert named(loaded.timetable.rung) == ["both"]
    assert named(loaded.timetable.final) == ["both", "only"]
    said = problems(folder, SFT + two.replace("[only]", "[both]"))
    assert "lm_eval.both is reported twice" in said["evaluate[1]"]


def test_what_is_not_there_is_said_with_its_mend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean 'both'?" in problems(folder, SFT + own("boht"))["evaluate[0].tasks[0]"]
    assert (
        "write evaluate: [{type: lm_eval, tasks: [both]}]"
        in problems(folder, BARE + "metric: lm_eval.both\n")["metric.name"]
    )
    nowhere = SFT + "evaluate: [{type: lm_eval, include_path: nowhere, tasks: [both]}]\n"
    assert "no folder here" in problems(folder, nowhere)["evaluate[0].include_path"]
    assert "stands twice" in problems(folder, SFT + own("both, both"))["evaluate[0]"]
    assert "stand under include_path" in problems(folder, SFT + own("./tasks"))["evaluate[0]"]
    monkeypatch.setattr(sweeps.benchmark_rules, "harness_folder", lambda: None)
    assert "pip install 'stockpot[lm-eval]'" in problems(folder, SFT + own("both"))["evaluate[0]"]


def test_choice_rows_decide_where_they_have_a_file(folder: Path) -> None:
    file = "evaluate: [{type: multiple_choice, tune: choices.jsonl}]\n"
    loaded = load(folder, BARE + file + "metric: multiple_choice.acc_norm\n")
    assert loaded.timetable.rung[0]["tune"] == str(folder / "choices.jsonl")
    assert (
        "has no select: FILE.jsonl" in problems(folder, SFT + file + "soup: {metric: multiple_choice}\n")["soup.metric"]
    )
    assert "reported by an entry of its own" in problems(folder, BARE + "metric: multiple_choice\n")["metric"]
    assert "no file here" in problems(folder, SFT + file.replace("choices", "absent"))["evaluate[0].tune"]
    assert "there is no file of rows" in problems(folder, SFT + "evaluate: [multiple_choice]\n")["evaluate[0]"]
    select = file.replace("tune:", "select:")
    early = "soup: {metric: multiple_choice, method: greedy, early_stop: {}}\n"
    assert "rows of its own" in problems(folder, SFT + select + early)["soup.early_stop"]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_the_tasks_that_come_with_the_harness_are_found_without_importing_it() -> None:
    from sweeps.task_files import harness_folder

    found = harness_folder()
    assert found is not None
    assert task_files(found / "gsm8k").names >= {"gsm8k"}
    assert scored_during("arc_easy", (task_files(found / "arc"),))
    assert not scored_during("gsm8k", (task_files(found / "gsm8k"),))


def test_an_evaluator_with_settings_is_asked_of_a_sweep_s_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeps.cli import main

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    assert main(["evaluate", "some/model", "--on", str(rows), "--with", "lm_eval"]) == 2
    assert "'lm_eval' has settings; score a split of a sweep with evaluate: [{type: lm_eval" in capsys.readouterr().err
