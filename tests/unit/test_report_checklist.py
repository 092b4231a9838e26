"""The reproducibility checklist: no empty field, whatever state a sweep is in."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_sweeps import simulated

from sweeps.events import Event
from sweeps.ledger import Ledger
from sweeps.paths import SweepPaths
from sweeps.report.checklist import GROUPS, to_markdown
from sweeps.report.record import report_record
from sweeps.report.write import write_report

ITEMS = [item for group in GROUPS.values() for item in group]


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    return simulated(tmp_path_factory.mktemp("over"), trials=8, total=16)


def filled(paths: SweepPaths) -> dict[str, tuple[str, str]]:
    items = report_record(paths)["checklist"]
    assert [one["item"] for one in items] == ITEMS
    for one in items:
        assert one["answer"] in ("yes", "no", "partly", "unknown"), one
        assert one["said"].strip(), one
        assert "None" not in one["said"], one
    return {one["item"]: (one["answer"], one["said"]) for one in items}


def test_of_a_finished_sweep(over: SweepPaths) -> None:
    said = {item: " ".join(answer) for item, answer in filled(over).items()}
    space = said["The whole search space, with ranges and log scales"]
    assert "kwargs.learning_rate: 1e-05 to 0.01, log" in space
    assert "kwargs.optimizer.beta2: one of 0.95, 0.98, 0.999 (where optimizer = adamw)" in space
    assert said["How many tuning seeds, and which?"] == "yes 1: 0"
    assert said["How many test seeds, and which?"].startswith("no none: seeds.test is empty")
    assert said["Was the test setting left alone while tuning?"].startswith("yes opened once")
    assert "best single" in said["Which configurations were chosen in the end?"]
    assert "method type random" in said["Which package and which method tuned?"]


def test_of_sweeps_that_are_not_over(tmp_path: Path) -> None:
    (tmp_path / "early").mkdir()
    filled(simulated(tmp_path / "early", trials=2, total=4, finish=False))
    (tmp_path / "empty").mkdir()
    Ledger.create(tmp_path / "empty" / "nothing", durable=False).close()
    filled(SweepPaths(tmp_path / "empty" / "nothing"))


def test_tuning_after_an_opening_is_a_no_and_stands_over_the_page(tmp_path: Path) -> None:
    paths = simulated(tmp_path, trials=2, total=4, finish=False)
    events = list(Ledger.read(paths.root).events())
    other = SweepPaths(tmp_path / "other")
    ledger = Ledger.create(other.root, durable=False)
    first = next(i for i, event in enumerate(events) if event.kind == "reported")
    opened = Event("test_opened", {"by": "evaluate", "candidates": ["x"], "metrics": ["test/loss"]})
    ledger.append([*events[:first], opened, *events[first:]])
    ledger.close()
    record = report_record(other)
    assert record["headline"]["title"].startswith("Test was opened before the tuning had ended.")
    assert record["headline"]["lines"][0].startswith("WARNING")
    answers = {one["item"]: one["answer"] for one in record["checklist"]}
    assert answers["Was the test setting left alone while tuning?"] == "no"


def test_it_is_written_beside_the_page(over: SweepPaths, tmp_path: Path) -> None:
    write_report(over)
    text = over.checklist.read_text(encoding="utf-8")
    assert text == to_markdown(report_record(over)["name"], report_record(over)["checklist"])
    assert all(f"**{item}**" in text for item in ITEMS)
    page = over.report.read_text(encoding="utf-8")
    assert all(item in page for item in ITEMS)
    over.checklist.unlink()
    write_report(over, tmp_path / "elsewhere.html")
    assert not over.checklist.exists()
    write_report(over, tmp_path / "elsewhere.html", tmp_path / "list.md")
    assert (tmp_path / "list.md").read_text(encoding="utf-8") == text
