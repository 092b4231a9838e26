"""Training for the final step: to the total, from the newest whole checkpoint after a cut, with a pipeline without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.stage import Devices
from sweeps import worker
from sweeps.retrain import reached, train

PIPELINE = """
from pathlib import Path

from evaluators.base import Report
from pipelines.finetune.checkpoint import placing, write_complete


class Counting:
    resource = "steps"

    def __init__(self, journal, stop_at=0):
        self.journal, self.stop_at = Path(journal), stop_at

    def run(self, task, report):
        before = 0 if task.start is None else int((Path(task.start) / "count").read_text())
        assert before == task.start_resource
        for milestone in task.milestones:
            flag = self.journal.with_suffix(".cut")
            if milestone == self.stop_at and not flag.exists():
                flag.touch()
                raise MemoryError("cut off")
            with self.journal.open("a") as file:
                file.write(f"{task.seed}: {before} to {milestone} of {task.total}\\n")
            before = milestone
            with placing(Path(task.folder) / f"checkpoint-{milestone}") as folder:
                (folder / "count").write_text(str(milestone))
                write_complete(folder, Report(milestone))
            report(Report(milestone, checkpoint=f"checkpoint-{milestone}"))
"""


@pytest.fixture
def payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "counting_pipeline.py").write_text(PIPELINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(worker, "_SETUP", [worker.Setup(Devices(), str(tmp_path))])
    monkeypatch.setattr(worker, "WARM", worker.WarmPipelines())
    config = {
        "type": "custom",
        "import_path": "counting_pipeline:Counting",
        "kwargs": {"journal": str(tmp_path / "journal")},
        "total": 30,
    }
    folder = str(tmp_path / "attempt-0")
    more = {"milestones": [10, 30], "checkpoint_seconds": 600.0}
    return {"config": config, "trial": "0001-aa", "seed": 100, "folder": folder, **more}


def test_trains_to_the_total_once(payload: dict[str, Any], tmp_path: Path) -> None:
    made = train(payload)
    assert made["checkpoint"] == str(tmp_path / "attempt-0" / "checkpoint-30")
    assert len(made["hash"]) == 64
    assert train(payload) == made
    assert (tmp_path / "journal").read_text() == "100: 0 to 10 of 30\n100: 10 to 30 of 30\n"


def test_goes_on_from_the_newest_whole_checkpoint(payload: dict[str, Any], tmp_path: Path) -> None:
    payload["config"]["kwargs"]["stop_at"] = 30
    with pytest.raises(MemoryError):
        train(payload)
    assert reached(tmp_path / "attempt-0") == 10
    train(payload)
    assert (tmp_path / "journal").read_text() == "100: 0 to 10 of 30\n100: 10 to 30 of 30\n"


def test_a_torn_checkpoint_is_passed_over(payload: dict[str, Any], tmp_path: Path) -> None:
    train(payload)
    (tmp_path / "attempt-0" / "checkpoint-30" / "count").write_text("torn")
    assert reached(tmp_path / "attempt-0") == 10
    train(payload)
    assert reached(tmp_path / "attempt-0") == 30
