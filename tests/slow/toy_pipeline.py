"""A pipeline without torch: a curve in the resource, with JSON checkpoints, that fails where it is told to."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from evaluators.base import ItemSet, Report, Score, summarise
from pipelines.finetune.checkpoint import placing, read_report, write_complete
from pipelines.pulse import beat
from pipelines.stage import EvaluationJob, Task, UserError
from sweeps.worker import progress

ITEMS = 16


class Toy:
    """Loss = (x - 0.3)^2 + 1/(1 + resource), item by item, a little different for each seed.

    Args:
        x: swept.
        step_seconds: time a unit of the resource takes.
        fail: `nan`, `missing`, `crash`, `exit`, `stall` or `user`, at the first milestone; `slow` takes eight seconds with signs of life.
        say: text printed at the start.
        wait_at: unit of the resource that it does not get past while `wait_for` is not there.
        wait_for: a file.
        reveal: a variable of the environment: its value is printed, and how long it is, is telemetry.
        reveal_at: with this `x` the value stands in what is raised, and in what that came of.
    """

    resource = "steps"

    def __init__(
        self,
        x: float = 0.5,
        step_seconds: float = 0.0,
        fail: str = "",
        say: str = "",
        wait_at: int = 0,
        wait_for: str = "",
        reveal: str = "",
        reveal_at: float | None = None,
    ) -> None:
        self.x = x
        self.step_seconds = step_seconds
        self.fail = fail
        self.say = say
        self.wait_at, self.wait_for = wait_at, Path(wait_for)
        self.reveal, self.reveal_at = reveal, reveal_at

    def run(self, task: Task, report: Callable[[Report], None]) -> None:
        """Trains by waiting; its state is the sum of what it has seen, so that a resume can be told from a restart."""
        print(f"toy {task.trial} pid {os.getpid()} {self.say}", flush=True)
        done, seen = 0, 0.0
        if task.start is not None:
            state = json.loads((Path(task.start) / "state.json").read_text())
            done, seen = state["done"], state["seen"]
            if task.replay:
                report(read_report(Path(task.start)))
        for milestone in task.milestones:
            while done < milestone:
                time.sleep(self.step_seconds)
                done += 1
                while done == self.wait_at and not self.wait_for.exists():
                    time.sleep(0.05)
                seen += self.x * done
            self._fail()
            name = f"checkpoint-{done}"
            scores = (self._score(done, task.seed),) if self.fail != "missing" else ()
            made = Report(done, scores, {"train/seen": seen, **self._revealed()}, name)
            with placing(Path(task.folder) / name) as folder:
                (folder / "state.json").write_text(json.dumps({"done": done, "seen": seen, "x": self.x}))
                write_complete(folder, made)
            report(made)

    def evaluate(self, job: EvaluationJob) -> tuple[Score, ...]:
        """The loss of a checkpoint by its state; the untuned model has done nothing."""
        state = {"x": 0.0, "done": 0}
        folder = job.model.adapter or job.model.base_model
        if folder:
            state = json.loads((Path(folder) / "state.json").read_text())
        return (curve(state["x"], state["done"], 0, job.split),)

    def _score(self, done: int, seed: int) -> Score:
        return curve(float("nan") if self.fail == "nan" else self.x, done, seed, "tune")

    def _revealed(self) -> dict[str, float]:
        if not self.reveal:
            return {}
        word = os.environ[self.reveal]
        print(f"{self.reveal} is {word}", flush=True)
        if self.x == self.reveal_at:
            try:
                raise KeyError(word)
            except KeyError as error:
                raise RuntimeError(f"the server says: no Bearer {word}") from error
        return {"train/reveal_length": float(len(word))}

    def _fail(self) -> None:
        if self.fail == "crash":
            raise RuntimeError("the toy was told to crash")
        if self.fail == "user":
            raise ValueError("the toy was told to be wrong")
        if self.fail == "exit":
            os._exit(7)
        if self.fail == "slow":
            for _ in range(16):
                time.sleep(0.5)
                beat()
        if self.fail == "stall":
            time.sleep(3600)


def curve(x: float, done: int, seed: int, split: str) -> Score:
    """The score after `done` units."""
    items = [(x - 0.3) ** 2 + 1 / (1 + done) + 0.001 * ((i * 7 + seed) % 5) for i in range(ITEMS)]
    if x != x:
        items = [float("inf")] * ITEMS
    item_set = ItemSet(tuple(f"item-{i}" for i in range(ITEMS)))
    return summarise("loss", split, "minimize", item_set, items)  # type: ignore[arg-type]


class Noop:
    """Reports once, at once."""

    resource = "steps"

    def __init__(self, x: float = 0.0) -> None:
        self.x = x

    def run(self, task: Task, report: Callable[[Report], None]) -> None:
        """One report, no checkpoint."""
        report(Report(task.total, (Score("loss", "tune", self.x, 0.1, 4, 0, "minimize"),)))


def look_around(payload: dict[str, object]) -> dict[str, object]:
    """A function for `Backend.call`: what its worker's process looks like."""
    if payload.get("exit"):
        os._exit(3)
    if once := payload.get("exit_once"):
        mark = Path(str(once))
        if not mark.exists():
            mark.touch()
            os._exit(3)
    if payload.get("fail"):
        raise UserError("there is nothing to see")
    progress("looking")
    time.sleep(float(str(payload.get("wait", 0))))
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TOY_SAYS")
    return {"pid": os.getpid(), **{name: os.environ.get(name) for name in names}}
