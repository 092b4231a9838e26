"""Sweeps for the engine's tests: a plan as `sweeps.load` would make it, and known curves."""

import math
from dataclasses import dataclass
from pathlib import Path

from sweeps.metrics import Metric
from sweeps.paths import SweepPaths
from sweeps.schedulers.asha import ASHAScheduler
from sweeps.simulate import MemoryCheckpoints, SimulatedBackend, VirtualClock
from sweeps.space import Axis, Choice, Interval, Space
from sweeps.spec import SweepSpec

LINE = Space((Axis("kwargs.x", "kwargs.x", Interval(0.0, 1.0)), Axis("kwargs.k", "kwargs.k", Choice((1, 2, 3)))))
FINITE = Space((Axis("kwargs.x", "kwargs.x", Choice((0.1, 0.2, 0.3))), Axis("kwargs.k", "kwargs.k", Choice((1, 2)))))
LOSS = (Metric("tune/loss", "minimize"),)


@dataclass(frozen=True)
class Plan:
    """A custom pipeline with `kwargs.x` and `kwargs.k` swept."""

    spec: SweepSpec
    space: Space
    milestones: tuple[int, ...]
    finalists: int
    metrics: tuple[Metric, ...] = LOSS

    @property
    def total(self):
        return self.milestones[-1]

    def resolve(self, parameters):
        config = {"type": "custom", "total": self.total, "kwargs": {}, "micro_batch_size": 4}
        for path, value in parameters.items():
            if path.startswith("kwargs."):
                config["kwargs"][path.removeprefix("kwargs.")] = value
            else:
                config[path] = value
        return config

    def resolve_baseline(self):
        return self.resolve({"kwargs.x": 0.5, "kwargs.k": 2}) if self.spec.named_baseline else None

    def milestones_of(self, config):
        return self.milestones if config["total"] == self.total else (config["total"],)


def plan(
    trials=9, method="random", stop="asha", total=27, first=1, eta=3, finalists=1, space=LINE, metrics=LOSS, **sections
):
    """A plan; `sections` are the sweep file's own."""
    asha = {"type": "asha", "min": first, "eta": eta, "finalists": finalists}
    spec = SweepSpec.model_validate(
        {
            "name": "s",
            "pipeline": {"type": "custom", "import_path": "a:B", "total": total, "metrics": {"loss": "minimize"}},
            "method": {"type": method, "seed": 0} if isinstance(method, str) else method,
            "metric": [{"name": metric.name} for metric in metrics],
            "early_terminate": asha if stop == "asha" else {"type": "none"},
            "budget": {"trials": trials} if trials else {},
            **sections,
        }
    )
    rungs = [total]
    if stop == "asha":
        rungs = [m for k in range(20) if (m := first * eta**k) < total] + [total]
        ASHAScheduler(tuple(rungs), eta, finalists)
    return Plan(spec, space, tuple(rungs), finalists, metrics)


def curve(config, resource, seed=0):
    """Falls with the resource towards something that depends on the configuration; curves cross."""
    x, k = config["kwargs"]["x"], config["kwargs"]["k"]
    return 1.0 + (x - 0.3) ** 2 * k + math.exp(-resource * x) * (2.0 - x) + 1e-4 * seed


def backend(root, slots=1, of=curve, **settings):
    """A simulated backend with checkpoints."""
    settings.setdefault("checkpoints", MemoryCheckpoints(SweepPaths(Path(root))))
    return SimulatedBackend(slots, of, clock=VirtualClock(1e9), **settings)
