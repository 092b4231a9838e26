"""Scoring weights from the driver: which checkpoints count, and the calls that soups and the final step make.

The driver holds no tensors. A worker merges (`pipelines.soups:merge`), trains (`sweeps.retrain:train`) and evaluates
(`sweeps.worker:evaluate`); each call is tried again as a trial would be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evaluators.base import Score, Split
from pipelines.finetune.checkpoint import content_hash, is_whole
from pipelines.stage import ModelSource
from sweeps import pareto
from sweeps.engine import Backend, CallFailed
from sweeps.failures import Failure, full_disk, remedy
from sweeps.loop import Pending
from sweeps.metrics import Metric
from sweeps.paths import SweepPaths
from sweeps.retrain import TRAIN
from sweeps.seeds import by_trial, measured, standing
from sweeps.state import ReportState, RunState, SweepState
from sweeps.trial import Attempt, Run, finite

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

Say = Callable[[str], None]
"""Takes one line for people."""

EVALUATE = "sweeps.worker:evaluate"


@dataclass(frozen=True)
class Placed:
    """A run with its result at the highest rung, and its configuration's.

    Attributes:
        run: the run.
        report: its report there.
        value: the metric that ranks it, there.
        means: every metric of the sweep there, the means over the configuration's seeds.
        seeds: how many those are.
    """

    run: RunState
    report: ReportState
    value: float
    means: tuple[float, ...]
    seeds: int


def silent(text: str) -> None:
    """A `Say` for nobody."""


def ranked(loaded: LoadedSweep, state: SweepState, metric: Metric | None = None) -> list[Placed]:
    """The runs at the highest rung with finite metrics, those of the best configuration first.

    A configuration is ranked by its mean over the seeds that have reported there, one with fewer of them behind those with
    more (`sweeps.seeds`), the earlier among equals first; within it the runs go by their own values. Where runs differ in
    length (never under asha) a rung is a share of the run's own total. With several metrics a run counts where all of them
    are finite. The baseline's runs are not among them.

    Args:
        loaded: the sweep.
        state: its fold.
        metric: what ranks them; default the primary metric.
    """
    by = metric or loaded.metrics[0]
    found: list[tuple[tuple[float, ...], list[Placed]]] = []

    def counts(run: RunState, resource: int) -> bool:
        return all(finite(run.reports[resource].value(one.name)) for one in loaded.metrics)

    for trial, runs in by_trial(state.searched_runs).items():
        milestones = loaded.milestones_of(state.trials[trial].config)
        place = standing([run for run in runs if run.phase != "failed"], milestones, counts)
        if place is None:
            continue
        means = tuple(
            fmean(measured(run, place.resource, one.name).value for run in place.runs) for one in loaded.metrics
        )
        placed = [
            Placed(run, report, report.value(by.name) or 0.0, means, len(place.runs))
            for run in place.runs
            for report in (run.reports[place.resource],)
        ]
        share, mean = place.resource / milestones[-1], fmean(one.value for one in placed)
        placed.sort(key=lambda one: (by.sign * one.value, one.run.seed))
        found.append(((-share, -len(place.runs), by.sign * mean, runs[0].order), placed))
    if not found:
        return []
    found.sort(key=lambda entry: entry[0])
    return [one for key, placed in found for one in placed if key[0] == found[0][0][0]]


def front_runs(loaded: LoadedSweep, placed: Sequence[Placed], most: int | None) -> list[Placed]:
    """The first run of each configuration that none of those with as many seeds dominates, in their order.

    Args:
        loaded: the sweep.
        placed: runs, as `ranked` has them.
        most: how many at most; more are thinned to an even spread that keeps the first.
    """
    equal = [one for one in placed if one.seeds == placed[0].seeds]
    vectors = [[metric.sign * mean for metric, mean in zip(loaded.metrics, one.means, strict=True)] for one in equal]
    return [equal[i] for i in pareto.representatives(vectors, [one.run.trial for one in equal], most)]


def checkpoint_folder(paths: SweepPaths, run: RunState, report: ReportState) -> Path | None:
    """Folder of the checkpoint behind a report; None where it was never made or was deleted."""
    if report.checkpoint is None or report.deleted:
        return None
    return paths.attempt(Attempt(Run(run.trial, run.seed), report.attempt)) / report.checkpoint


def whole_checkpoint(paths: SweepPaths, placed: Placed) -> tuple[Path, str] | None:
    """(folder, content hash) of a run's checkpoint, every file checked; None where it is not whole."""
    folder = checkpoint_folder(paths, placed.run, placed.report)
    return (folder, content_hash(folder)) if folder is not None and is_whole(folder) else None


def model_source(config: Mapping[str, Any], folder: Path | None, content: str | None = None) -> ModelSource:
    """What a pipeline is told to score: an adapter on the configuration's base model, a whole model, or the base itself.

    Args:
        config: the pipeline configuration; a pipeline of the user's own has no `base_model`.
        folder: weights; None for the untuned model.
        content: their hash.
    """
    base = config.get("base_model")
    if folder is None:
        return ModelSource(str(base))
    if base is not None and (folder / "adapter_config.json").is_file():
        return ModelSource(str(base), str(folder), content)
    return ModelSource(str(folder), None, content)


def evaluate(
    loaded: LoadedSweep,
    backend: Backend,
    config: Mapping[str, Any],
    model: ModelSource,
    split: Split,
    evaluators: Sequence[Mapping[str, Any]],
    say: Say = silent,
    samples: Path | None = None,
) -> tuple[Score, ...]:
    """Scores of given weights on a split, made on a worker; what benchmarks keep of their documents goes to `samples`.

    Raises:
        CallFailed: with the typed failure.
    """
    payload: dict[str, Any] = {
        "config": dict(config),
        "model": asdict(model),
        "split": split,
        "evaluators": [dict(e) for e in evaluators],
    }
    if loaded.judge is not None:
        payload["judge"] = loaded.judge
    if samples is not None:
        payload["samples"] = str(samples)
    return tuple(call(loaded, backend, EVALUATE, payload, say))


def call(
    loaded: LoadedSweep,
    backend: Backend,
    function: str,
    payload: Mapping[str, Any],
    say: Say = silent,
    begun: Pending | None = None,
) -> Any:
    """`Backend.call`, again after a failure where `on_failure` would start a trial again; a full disk stays full.

    Args:
        loaded: the sweep.
        backend: makes the call.
        function: `module:function`.
        payload: its argument.
        say: takes lines for people.
        begun: the same call, where it was started before.

    Raises:
        CallFailed: with the typed failure.
    """
    earlier: list[Failure] = []
    while True:
        try:
            if begun is not None:
                pending, begun = begun, None
                return pending.result(say)
            return backend.call(function, payload, say)
        except CallFailed as error:
            config = payload.get("config") or {}
            answer = remedy(error.failure, loaded.spec.on_failure, earlier, config)
            if not answer.retry or (answer.changes and function != TRAIN) or full_disk(error.failure):
                raise
            earlier.append(error.failure)
            payload = {**payload, "config": {**config, **(answer.changes or {})}} if answer.changes else payload
            say(f"{error.failure.message}; trying again")


def can_evaluate(payload: Mapping[str, Any]) -> bool:
    """Whether a pipeline can score weights; runs on a worker, as only there a user's own pipeline is imported.

    Args:
        payload: `config`, a resolved configuration.
    """
    from pipelines import build_pipeline

    return callable(getattr(build_pipeline(payload["config"]), "evaluate", None))


def has_split(loaded: LoadedSweep, backend: Backend, config: Mapping[str, Any], split: Split) -> bool:
    """Whether a split can be scored: the file gives it, or the user's own pipeline has `evaluate`."""
    if config["type"] == "custom":
        return bool(call(loaded, backend, "sweeps.scoring:can_evaluate", {"config": dict(config)}))
    if config["type"] == "rag":
        questions = config["questions"]
        return split == "tune" or (not isinstance(questions, str) and questions.get(split) is not None)
    return (config.get("datasets") or {}).get(split) is not None


def relative(paths: SweepPaths, folder: Path) -> str:
    """A folder of the sweep as events hold it: relative to the sweep's own."""
    return folder.relative_to(paths.root).as_posix()
