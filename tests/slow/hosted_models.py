"""A model and a pipeline for tests of hosts on Ray: answers are capitals, slowly where told to; every batch is written down."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from evaluators.base import ItemSet, Report, summarise
from pipelines.calls import Answers, Identity, Role, make_calls
from pipelines.finetune.checkpoint import placing, write_complete
from pipelines.memo import Cost
from pipelines.stage import Devices, EvaluationJob, Services, Task, UserError

KIND = "hosted_models:Shouting"


class Shouting:
    """Answers with capitals."""

    role: ClassVar[Role] = "embedder"
    remote: ClassVar[bool] = False

    def __init__(self, book: str, seconds: float) -> None:
        self._book, self._seconds = book, seconds

    @staticmethod
    def identify(spec: Mapping[str, Any]) -> Identity:
        return Identity(1, "shouting")

    @classmethod
    def load(cls, spec: Mapping[str, Any], devices: Devices, services: Services) -> Shouting:
        if spec.get("broken"):
            raise UserError("this model can't be loaded")
        return cls(spec["book"], spec.get("seconds", 0.0))

    def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        self._write({"pid": os.getpid(), "begins": list(items), "threads": os.environ.get("OMP_NUM_THREADS")})
        time.sleep(self._seconds)
        self._write({"pid": os.getpid(), "done": list(items)})
        return [(str(item).upper().encode(), Cost(self._seconds, 1)) for item in items]

    def _write(self, row: Any) -> None:
        with open(self._book, "a") as book:
            book.write(json.dumps(row) + "\n")


def book_of(folder: str | Path) -> list[dict[str, Any]]:
    path = Path(folder) / "book.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Asking:
    """A pipeline whose every trial asks the same texts, and a few of its own."""

    resource = "questions"

    def __init__(self, folder: str, own: int, texts: int = 40, seconds: float = 0.0) -> None:
        self._folder, self._own, self._texts, self._seconds = folder, own, texts, seconds

    def run(self, task: Task, report: Callable[[Report], None]) -> None:
        asked = make_calls(task.services, f"{task.trial}/{task.seed}/{task.attempt}", task.devices)
        spec = {"kind": KIND, "book": f"{self._folder}/book.jsonl", "seconds": self._seconds}
        own = str(self._own)
        found = asked.ask("embed", spec, "embed", [*(f"text {i}" for i in range(self._texts)), f"own {own}"])
        assert found[-1] == f"OWN {own}".upper().encode()
        items = ItemSet(tuple(str(i) for i in range(4)))
        score = summarise("loss", "tune", "minimize", items, [0.1, 0.2, 0.3, float(len(own))])
        used = asked.usage["embed"]
        told = {"cost/computed": float(used.computed), "cost/calls": float(used.calls)}
        name = f"checkpoint-{task.total}"
        made = Report(task.total, (score,), told, name)
        with placing(Path(task.folder) / name) as folder:
            (folder / "state.json").write_text("{}")
            write_complete(folder, made)
        report(made)

    def evaluate(self, job: EvaluationJob) -> tuple[Any, ...]:
        items = ItemSet(tuple(str(i) for i in range(4)))
        return (summarise("loss", job.split, "minimize", items, [0.1, 0.2, 0.3, 0.4]),)


def ask_there(memo: Any, hosts: Any, owner: str, model: dict[str, Any], texts: list[str]) -> tuple[list[bytes], int]:
    """As a trial of another process asks: the answers, and how many were computed for it."""
    asked = make_calls(Services(partial(memo, owner), hosts), owner)
    return asked.ask("embed", model, "embed", texts), asked.usage["embed"].computed
