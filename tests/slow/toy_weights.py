"""A pipeline with weights and no training: full models of one matrix, each the truth plus noise of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from evaluators.base import ItemSet, Report, Score, summarise
from pipelines.finetune.checkpoint import placing, write_complete
from pipelines.stage import EvaluationJob, Task

WIDTH = 1024
ROWS = 60


def matrix(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((WIDTH, WIDTH), dtype=np.float32)


class Weights:
    """Scores the squared error of a matrix's products with seeded rows.

    Args:
        x: swept; seeds the noise, of which every second model has three times as much.
    """

    resource = "steps"

    def __init__(self, x: int = 0) -> None:
        self.x = x

    def run(self, task: Task, report: Callable[[Report], None]) -> None:
        """One checkpoint: the truth and noise."""
        weights = matrix(0) + np.float32(0.3 * (1 + 2 * (self.x % 2))) * matrix(1 + self.x)
        made = Report(1, (self._score(weights, "tune"),), {}, "checkpoint-1")
        with placing(Path(task.folder) / "checkpoint-1") as folder:
            save_file({"model.layers.0.weight": weights}, str(folder / "model.safetensors"))
            (folder / "config.json").write_text("{}")
            write_complete(folder, made)
        report(made)

    def evaluate(self, job: EvaluationJob) -> tuple[Score, ...]:
        """The loss of a folder; the untuned model is all zeros."""
        file = Path(job.model.base_model) / "model.safetensors"
        zeros = np.zeros((WIDTH, WIDTH), dtype=np.float32)
        return (self._score(load_file(str(file))["model.layers.0.weight"] if file.is_file() else zeros, job.split),)

    def _score(self, weights: NDArray[np.float32], split: Any) -> Score:
        rows = np.random.default_rng(len(split)).standard_normal((ROWS, WIDTH), dtype=np.float32)
        errors = (((weights - matrix(0)) @ rows.T) ** 2).mean(axis=0)
        return summarise("loss", split, "minimize", ItemSet(tuple(f"{split}-{n}" for n in range(ROWS))), errors)
