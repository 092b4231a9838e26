"""The trials of `chaos.py`: seconds of waiting, a state that only an unbroken history brings to its value, no torch.

`CHAOS_STEP` says how many seconds a step takes. `CHAOS_HOLD`, where it is set, names a JSON file with the step that each value of
x may go to; a trial waits there until the file says more, or is gone. `CHAOS_ITEMS` is the number of items of a score (8): with
thousands of them a report goes through Ray's object store, as all results beyond 100 KB do.
"""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluators.base import ItemSet, Report, Score, summarise
from pipelines.finetune.checkpoint import placing, read_report, write_complete
from pipelines.stage import EvaluationJob, Task

EIGHT = 8


class Curve:
    """Each step turns its state over once; the loss is made of the state, so a step that is lost or doubled changes it.

    Args:
        x: swept.
    """

    resource = "steps"

    def __init__(self, x: float = 0.0) -> None:
        self.x = x

    def run(self, task: Task, report: Callable[[Report], None]) -> None:
        """A checkpoint and a report at every step."""
        done, state = 0, self.x
        if task.start is not None:
            kept = json.loads((Path(task.start) / "state.json").read_text())
            done, state = kept["done"], kept["state"]
            if task.replay:
                report(read_report(Path(task.start)))
        while done < task.total:
            time.sleep(float(os.environ["CHAOS_STEP"]))
            while done >= allowed(self.x):
                time.sleep(0.05)
            done, state = done + 1, turned(state)
            name = f"checkpoint-{done}"
            made = Report(done, (scored(state, "tune"),), {"train/state": state}, name)
            with placing(Path(task.folder) / name) as folder:
                (folder / "state.json").write_text(json.dumps({"done": done, "state": state}))
                write_complete(folder, made)
            report(made)

    def evaluate(self, job: EvaluationJob) -> tuple[Score, ...]:
        """The loss of a checkpoint by its state; the untuned model has done nothing."""
        folder = job.model.adapter or job.model.base_model
        state = json.loads((Path(folder) / "state.json").read_text())["state"] if folder else 1.0
        return (scored(state, job.split),)


def allowed(x: float) -> float:
    """The step that a trial may go to now."""
    try:
        text = Path(os.environ["CHAOS_HOLD"]).read_text()
    except (KeyError, FileNotFoundError):
        return math.inf
    return float(json.loads(text).get(str(x), math.inf))


def turned(state: float) -> float:
    """The logistic map in its chaotic range: two states that differ in the last digit are strangers soon."""
    return 3.9 * state * (1 - state)


@functools.cache
def items() -> ItemSet:
    """What a score is made of."""
    return ItemSet(tuple(f"item-{i}" for i in range(int(os.environ.get("CHAOS_ITEMS", EIGHT)))))


def scored(state: float, split: Any) -> Score:
    """The loss of a state in [0, 1]."""
    values = [abs(state - 0.5) + 0.01 * (i % EIGHT) for i in range(len(items().ids))]
    return summarise("loss", split, "minimize", items(), values)
