"""The contract between the engine and what a trial runs.

Config goes down (`Task`, `EvaluationJob`), numbers come up (`Report`, `Score`). A pipeline knows neither Ray nor the
ledger. Nothing here imports torch or ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from evaluators.base import UserError as UserError

if TYPE_CHECKING:
    from evaluators.base import Example, Report, Score, Split

Resource = Literal["steps", "tokens", "questions"]


@dataclass(frozen=True)
class Devices:
    """What a process of a trial may use.

    Attributes:
        cpus: CPU threads; torch and BLAS are set to this many.
        gpus: GPUs, fractions share a device; 0 means the process sees none.
        workers: processes that train one trial together, each with as much.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    workers: int = 1


@dataclass(frozen=True)
class Rank:
    """A process's place among those that train one trial together.

    Attributes:
        index: its number; 0 decides, scores, writes and reports for all.
        size: how many there are.
        host: where the first one's store listens.
        port: as above.
    """

    index: int = 0
    size: int = 1
    host: str = ""
    port: int = 0


@dataclass(frozen=True)
class ModelSource:
    """Weights to score or to start from, as pipelines see them: paths and hashes only, never `sweep://`.

    Attributes:
        base_model: hub id, folder, GGUF file or `package://module/path`.
        adapter: folder of a PEFT adapter on top of it; None for the base itself.
        content_hash: SHA-256 of the weights where known, for the memo's keys.
        blend: (folder, weight) of adapters on the base, or of full models, to be averaged in memory; for pipelines whose
            `blends` is true.
    """

    base_model: str
    adapter: str | None = None
    content_hash: str | None = None
    blend: tuple[tuple[str, float], ...] | None = None


@dataclass(frozen=True)
class Services:
    """What pipelines get from above; everything here pickles.

    Attributes:
        memo: opens the memo's client (`pipelines.memo.Memo`); None runs without.
        hosts: opens the client of resident models (`pipelines.calls.Host`); None keeps them in this process.
        secret: reads a secret by its name from the environment of the worker; raises KeyError when it is not there.
        cache: folder for converted models and folded adapters, shared by trials of one machine.
        abandoned: whether nobody is left to store an answer; no request to an endpoint begins then. None where the
            process ends with its caller.
    """

    memo: Callable[[], Any] | None = None
    hosts: Callable[[], Any] | None = None
    secret: Callable[[str], str] | None = None
    cache: str | None = None
    abandoned: Callable[[], bool] | None = None


@dataclass(frozen=True)
class Task:
    """One lease as a pipeline sees it: train from `start_resource` until told to stop.

    Attributes:
        config: the trial's resolved pipeline configuration (JSON); `pipelines.config.parse_pipeline` types it.
        trial: trial id.
        seed: the run's seed.
        attempt: counts from 0.
        folder: the attempt's folder; checkpoints go to `<folder>/checkpoint-<resource>`.
        start: folder of a whole checkpoint to go on from, None to begin.
        start_resource: resource at `start`, 0 without one.
        milestones: ascending resources after `start_resource` at which it must checkpoint, evaluate and report; the
            last is the pipeline's total. `report` ends the lease where the engine wants.
        total: the pipeline's total, to which schedules are laid out.
        rung_evaluators: `evaluate` entries (JSON) to run at every milestone on `tune`.
        end_evaluators: entries to run at the last milestone as well.
        report_every: resource between extra reports (telemetry only); None for none.
        checkpoint_seconds: seconds between checkpoints that a fine-tune keeps for itself between milestones; None for none.
        devices: what it may use.
        replay: report the start checkpoint's stored report first: it was written but never reached the ledger.
        services: memo, hosts, secrets, cache.
        judge: the sweep's `judge:` (JSON), for evaluators that ask one.
        energy: the sweep's `resources.energy` (JSON), for pipelines that measure theirs (`pipelines.energy.open_meter`).
        rank: this process's place among `devices.workers`; those after the first are never asked to report.
    """

    config: Mapping[str, Any]
    trial: str
    seed: int
    attempt: int
    folder: str
    milestones: tuple[int, ...]
    total: int
    start: str | None = None
    start_resource: int = 0
    rung_evaluators: tuple[Mapping[str, Any], ...] = ()
    end_evaluators: tuple[Mapping[str, Any], ...] = ()
    report_every: int | None = None
    checkpoint_seconds: float | None = None
    devices: Devices = Devices()
    replay: bool = False
    services: Services = Services()
    judge: Mapping[str, Any] | None = None
    energy: Mapping[str, Any] | None = None
    rank: Rank = Rank()


@dataclass(frozen=True)
class EvaluationJob:
    """Score given weights on one split, as `soup`, `final` and `stockpot evaluate` ask for it.

    Attributes:
        config: the pipeline configuration whose datasets, sequence length and template apply.
        model: what to score.
        split: which rows.
        evaluators: `evaluate` entries (JSON).
        devices: what it may use.
        services: memo, hosts, secrets, cache.
        rows: score these instead of the split's own; the configuration's datasets are then not read.
        judge: the sweep's `judge:` (JSON), for evaluators that ask one.
        samples: folder for what evaluators keep of their rows; None keeps nothing.
    """

    config: Mapping[str, Any]
    model: ModelSource
    split: Split
    evaluators: tuple[Mapping[str, Any], ...]
    devices: Devices = Devices()
    services: Services = Services()
    rows: tuple[Example, ...] | None = None
    judge: Mapping[str, Any] | None = None
    samples: str | None = None


class Pipeline(Protocol):
    """What a trial runs. One instance a worker; it may keep models between tasks.

    `report` returns to go on and raises `SystemExit` to end the lease: use `finally`, never a bare except. `run` is not
    called in the main thread.
    """

    resource: Resource

    def run(self, task: Task, report: Callable[[Report], None]) -> None:
        """Train (or evaluate) from `task.start_resource`, reporting at every milestone."""
        ...

    def evaluate(self, job: EvaluationJob) -> tuple[Score, ...]:
        """Score `job.model` on `job.split`, items aligned to the split's rows."""
        ...


class OutOfMemory(RuntimeError):
    """The trial did not fit; raised from the library's own error with the micro batch in the message."""


class Diverged(RuntimeError):
    """The loss became NaN or infinite, or passed the allowed multiple of its first value; says which, and at which resource."""


class Abandoned(RuntimeError):
    """A request was not sent, as nobody is left to store its answer."""


class WorkerLost(RuntimeError):
    """Another process of the trial is gone or failed; a node's failure, unless that one says more."""
