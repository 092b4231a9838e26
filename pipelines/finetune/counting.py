"""What a run counts: of the present step, since the last report, and from its beginning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from pipelines.energy import UNKNOWN, Spent
from pipelines.finetune.group import Group


@dataclass
class Progress:
    """What a run counts; kept in `state.json`, so that it goes on after a restart.

    Attributes:
        tokens: tokens fed to the model.
        samples: rows fed to the model.
        train_seconds: seconds of training steps.
        evaluation_seconds: seconds of evaluations and checkpoints.
        first_loss: the loss of the run's first step.
        skipped_steps: fp16 steps that were left out because their gradients overflowed.
        energy: joules, as `pipelines.energy.Spent`.
    """

    tokens: int = 0
    samples: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    first_loss: float | None = None
    skipped_steps: int = 0
    energy: Spent = field(default_factory=dict)


@dataclass
class Counted:
    """What this process has counted in the present step."""

    total: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    weight: float = 0.0
    tokens: int = 0
    samples: int = 0
    places: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def over(self, group: Group) -> Counted:
        """The same over all workers."""
        names = sorted(self.sums)
        numbers = [float(self.total), self.weight, self.tokens, self.samples, self.places]
        total, weight, tokens, samples, places, *sums = group.sum([*numbers, *(self.sums[name] for name in names)])
        made = torch.tensor(total, dtype=torch.float64)
        return Counted(made, weight, round(tokens), round(samples), round(places), dict(zip(names, sums, strict=True)))


@dataclass
class StepLosses:
    """Numbers of the steps since the last report.

    Attributes:
        total: summed loss.
        weight: what it is a sum over: trained-on tokens, pairs, ...
        sums: what else the objective tells, summed over the same.
        grad_norm: of the newest step that was taken, before clipping.
        steps: optimizer steps.
        places: places in the batches, padding included.
        padding: those of them that are padding.
    """

    total: float = 0.0
    weight: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    grad_norm: float = math.nan
    steps: int = 0
    places: int = 0
    padding: int = 0

    def add(self, step: Counted) -> None:
        """Add a step of all workers."""
        self.total += float(step.total)
        self.weight += step.weight
        self.places += step.places
        self.padding += step.places - step.tokens
        for name, value in step.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The loss and what else the objective tells, each a mean over what counts; NaN before the first step."""
        sums = {"loss": self.total, **self.sums}
        return {f"train/{name}": value / self.weight if self.weight else math.nan for name, value in sums.items()}


def counts_record(progress: Progress, losses: StepLosses) -> dict[str, Any]:
    """Both as JSON, for a checkpoint."""
    seen = None if math.isnan(losses.grad_norm) else losses.grad_norm
    return {"progress": asdict(progress), "losses": {**asdict(losses), "grad_norm": seen}}


def read_counts(record: Mapping[str, Any]) -> tuple[Progress, StepLosses]:
    """The inverse of `counts_record`; checkpoints of older versions lack the losses, and then none are counted yet."""
    losses = dict(record.get("losses", {}))
    if losses.get("grad_norm") is None:
        losses["grad_norm"] = math.nan
    return Progress(**{"energy": UNKNOWN, **record["progress"]}), StepLosses(**losses)
