"""The final step: candidates frozen, retrained where asked, `test` opened once, everything scored and compared.

Whatever the ledger has is not done again: a killed driver goes on with the next candidate, and `test` counts as opened
once. Later openings (`stockpot soup` on a judged sweep, `evaluate --on test`) are events of their own.

Candidates and their roles: `baseline` (the untuned model, or `baseline:` trained from the beginning), `winner` (the best
run at the highest rung), `soup` (the newest finished one when the candidates are frozen); a soup judged later has its id
as its role. With `seeds.test` the winner's and the baseline's configurations are trained again with each of these seeds,
and winner minus baseline is judged on those; the soup is made of the sweep's own runs and is judged against them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.config import EVALUATOR_CONFIGS
from pipelines.finetune.checkpoint import content_hash, newest_whole
from pipelines.stage import ModelSource
from sweeps.engine import Backend, CallFailed
from sweeps.ledger import Event, Items, Ledger
from sweeps.metrics import Metric, soup_metric
from sweeps.paths import SweepPaths
from sweeps.retrain import TRAIN, reached
from sweeps.scoring import Say, call, evaluate, has_split, model_source, ranked, relative, silent, whole_checkpoint
from sweeps.state import SoupState, SweepState, fold
from sweeps.trial import Attempt, Run
from sweeps.verdicts import Side, verdict, with_holm

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

RESOURCE = 0
"""Item scores of the final step are stored at this resource."""
PAIRS = (("soup", "winner"), ("winner", "baseline"), ("soup", "baseline"))
"""What is compared: left minus right."""
DATA_ONLY = "the intervals cover the data, not training: each candidate was trained once (seeds.test is empty)"

NOTHING = "final step: no run has a result and a whole checkpoint, so there is nothing to judge"


@dataclass(frozen=True)
class Contender:
    """Something to score on `test`.

    Attributes:
        role: `baseline`, `winner`, `soup` or a soup's id.
        candidate: its record in `final_frozen`.
        config: the pipeline configuration that it is scored (and trained) with.
        seed: a seed of `seeds.test` that it is trained with; None for what the sweep made.
        folder: weights; None for the untuned model.
        trains: trial id to train under, where it is still to be trained.
    """

    role: str
    candidate: Mapping[str, Any]
    config: Mapping[str, Any]
    seed: int | None = None
    folder: Path | None = None
    trains: str | None = None

    @property
    def label(self) -> str:
        """`<role>[/seed-<s>]`; its items are stored under `final/<label>`."""
        return self.role if self.seed is None else f"{self.role}/seed-{self.seed}"


def run_final(
    loaded: LoadedSweep, ledger: Ledger, paths: SweepPaths, backend: Backend, progress: Say | None = None
) -> None:
    """Do what is left of the final step.

    Args:
        loaded: the sweep.
        ledger: open for writing.
        paths: the sweep's paths.
        backend: trains and evaluates.
        progress: takes lines for people.

    Raises:
        CallFailed: when a worker failed for a reason that is not the candidate's; a resume goes on.
    """
    say = progress or silent
    state = fold(ledger.events())
    if not state.candidates:
        soups = [soup for soup in state.soups.values() if soup.finished is not None and soup.finished["folder"]]
        candidates = freeze(loaded, state, paths, soups[-1] if soups else None)
        if not candidates:
            say(NOTHING)
            return
        ledger.append([Event("final_frozen", {"candidates": candidates})])
    _judge(loaded, ledger, paths, backend, "final", say)


def judge_soup(
    loaded: LoadedSweep,
    ledger: Ledger,
    paths: SweepPaths,
    backend: Backend,
    soup: SoupState,
    progress: Say | None = None,
) -> None:
    """Judge a soup that `stockpot soup` made: with the final step where there was none, else as a later opening of `test`.

    Raises:
        CallFailed: as `run_final`.
    """
    state = fold(ledger.events())
    if state.candidates and not any(candidate.get("soup") == soup.id for candidate in state.candidates):
        added = [*state.candidates, _soup_candidate(soup, soup.id)]
        ledger.append([Event("final_frozen", {"candidates": added})])
    elif not state.candidates:
        candidates = freeze(loaded, state, paths, soup)
        if not candidates:
            (progress or silent)(NOTHING)
            return
        ledger.append([Event("final_frozen", {"candidates": candidates})])
    _judge(loaded, ledger, paths, backend, "soup", progress or silent)


def open_test(ledger: Ledger, by: str, candidates: Sequence[str], metrics: Sequence[str]) -> None:
    """Count an opening of `test`, before anything of it is read.

    Args:
        ledger: open for writing.
        by: `final`, `soup` or `evaluate`.
        candidates: what is scored.
        metrics: full names, `test/loss`.
    """
    ledger.append([Event("test_opened", {"by": by, "candidates": list(candidates), "metrics": list(metrics)})])
    ledger.ship(force=True)


def freeze(loaded: LoadedSweep, state: SweepState, paths: SweepPaths, soup: SoupState | None) -> list[dict[str, Any]]:
    """The candidates as `final_frozen` holds them; empty when no run has a result and a whole checkpoint."""
    found = ((placed, whole_checkpoint(paths, placed)) for placed in ranked(loaded, state))
    best = next(((placed, checkpoint) for placed, checkpoint in found if checkpoint is not None), None)
    if best is None:
        return []
    placed, (folder, content) = best
    winner = {
        "role": "winner",
        "run": placed.run.id,
        "resource": placed.report.resource,
        "checkpoint": relative(paths, folder),
        "hash": content,
    }
    candidates: list[dict[str, Any]] = []
    config = state.trials[placed.run.trial].config
    trained = loaded.resolve_baseline()
    if trained is not None:
        reason = ", ".join(f"{key}={value}" for key, value in (loaded.baseline or {}).items())
        candidates.append({"role": "baseline", "config": trained, "reason": reason})
    elif config.get("base_model") is not None:
        candidates.append({"role": "baseline", "model": config["base_model"]})
    candidates.append(winner)
    if soup is not None:
        candidates.append(_soup_candidate(soup, "soup"))
    return candidates


def _soup_candidate(soup: SoupState, role: str) -> dict[str, Any]:
    assert soup.finished is not None, f"soup {soup.id} must be finished before it is judged"
    return {"role": role, "soup": soup.id, "folder": soup.finished["folder"], "hash": soup.finished["hash"]}


def _judge(loaded: LoadedSweep, ledger: Ledger, paths: SweepPaths, backend: Backend, by: str, say: Say) -> None:
    state = fold(ledger.events())
    judged = judged_metric(loaded)
    evaluators = loaded.timetable.final
    winner = next(candidate for candidate in state.candidates if candidate["role"] == "winner")
    config = state.trials[Run.parse(winner["run"]).trial].config
    if judged is None or not (evaluators or config["type"] == "custom"):
        say("final step: no evaluator runs on test, so nothing was judged")
        return
    contenders = plan(loaded, state, paths)
    scored = {(final["role"], final.get("seed")) for final in state.finals}
    pending = [contender for contender in contenders if (contender.role, contender.seed) not in scored]
    if pending:
        if not has_split(loaded, backend, config, "test"):
            custom = config["type"] == "custom"
            lacks = "the pipeline has no evaluate(job)" if custom else "pipeline.datasets.test is not given"
            say(f"final step: {lacks}, so test was not opened and nothing judged")
            return
        ready = [contender for one in pending if (contender := _trained(loaded, paths, backend, one, say)) is not None]
        _open_once(loaded, ledger, by, ready, evaluators)
        for contender in ready:
            _score(loaded, ledger, backend, contender, evaluators, say)
    _compare(ledger, f"test/{judged.bare}", judged, contenders, say)
    if not loaded.spec.seeds.test:
        say(f"final step: {DATA_ONLY}")


def judged_metric(loaded: LoadedSweep) -> Metric | None:
    """What verdicts are about: the sweep's metric, or the soup's where that is telemetry; None when neither is a score."""
    metric = Metric(loaded.metric, loaded.direction)
    if loaded.metric.startswith("tune/"):
        return metric
    if loaded.spec.soup is None or loaded.spec.soup.metric is None:
        return None
    bare = soup_metric(loaded.spec, metric)
    known = {name: direction for config in EVALUATOR_CONFIGS for name, direction in config.metrics.items()}
    return Metric(f"tune/{bare}", known[bare]) if bare in known else None


def plan(loaded: LoadedSweep, state: SweepState, paths: SweepPaths) -> list[Contender]:
    """What is to be scored on `test`, in the order it is done."""
    winner = next(candidate for candidate in state.candidates if candidate["role"] == "winner")
    run = state.runs[winner["run"]]
    config = state.trials[run.trial].config
    seeds = loaded.spec.seeds.test
    contenders = []
    for candidate in state.candidates:
        role = candidate["role"]
        if role == "winner":
            contenders.append(Contender(role, candidate, config, folder=paths.root / candidate["checkpoint"]))
            again = {**config, **run.changes}
            contenders += [Contender(role, candidate, again, seed, trains=run.trial) for seed in seeds]
        elif "config" in candidate:
            trained = candidate["config"]
            contenders += [Contender(role, candidate, trained, s, trains="baseline") for s in seeds or (None,)]
        elif role == "baseline":
            contenders.append(Contender(role, candidate, config))
        else:
            contenders.append(Contender(role, candidate, config, folder=paths.root / candidate["folder"]))
    return contenders


def _trained(
    loaded: LoadedSweep, paths: SweepPaths, backend: Backend, contender: Contender, say: Say
) -> Contender | None:
    """The contender with its weights, trained where they are not there yet; None when its training failed for good."""
    if contender.trains is None:
        return contender
    seed = contender.seed if contender.seed is not None else loaded.spec.seeds.tune[0]
    folder = paths.attempt(Attempt(Run(contender.trains, seed), 0))
    milestones = loaded.milestones_of(contender.config)
    if reached(folder) < milestones[-1]:
        say(f"final step: training {contender.label} ({contender.trains} with seed {seed})")
        payload = {
            "config": dict(contender.config),
            "trial": contender.trains,
            "seed": seed,
            "folder": str(folder),
            "milestones": list(milestones),
        }
        try:
            call(loaded, backend, TRAIN, payload, say)
        except CallFailed as error:
            if error.failure.kind not in ("user", "nan", "oom"):
                raise
            say(f"final step: {contender.label} could not be trained: {error.failure.message}")
            return None
    return Contender(
        contender.role, contender.candidate, contender.config, contender.seed, newest_whole(folder), contender.trains
    )


def _open_once(
    loaded: LoadedSweep,
    ledger: Ledger,
    by: str,
    ready: Sequence[Contender],
    evaluators: Sequence[Mapping[str, Any]],
) -> None:
    """Record the opening, unless the one that a killed driver recorded was for these."""
    labels = [contender.label for contender in ready]
    opened = [set(event.body["candidates"]) for event in ledger.events() if event.kind == "test_opened"]
    if not labels or any(before >= set(labels) for before in opened):
        return
    known = {config.model_fields["type"].default: config for config in EVALUATOR_CONFIGS}
    names = [name for entry in evaluators for name in known[entry["type"]].metrics]
    names += getattr(loaded.spec.pipeline, "metrics", {})
    open_test(ledger, by, labels, [f"test/{name}" for name in dict.fromkeys(names)])


def _score(
    loaded: LoadedSweep,
    ledger: Ledger,
    backend: Backend,
    contender: Contender,
    evaluators: Sequence[Mapping[str, Any]],
    say: Say,
) -> None:
    say(f"final step: scoring {contender.label} on test")
    model = _source(contender)
    try:
        scores = evaluate(loaded, backend, contender.config, model, "test", evaluators, say)
    except CallFailed as error:
        if error.failure.kind not in ("user", "oom"):
            raise
        say(f"final step: {contender.label} could not be scored: {error.failure.message}")
        return
    body = {
        "role": contender.role,
        "candidate": dict(contender.candidate),
        "scores": [score.record() for score in scores],
        "seed": contender.seed,
    }
    owner = f"final/{contender.label}"
    ledger.append([Event("final_scored", body)], [Items(owner, RESOURCE, score) for score in scores])
    ledger.ship()


def _source(contender: Contender) -> ModelSource:
    content = contender.candidate.get("hash")
    if contender.trains is not None and contender.folder is not None:
        content = content_hash(contender.folder)
    return model_source(contender.config, contender.folder, content)


def _compare(ledger: Ledger, metric: str, judged: Metric, contenders: Sequence[Contender], say: Say) -> None:
    """The verdicts that are not in the ledger yet, in one transaction."""
    state = fold(ledger.events())
    done = {(body["left"], body["right"], body["metric"]) for body in state.verdicts}
    later = [(contender.role, other) for contender in contenders for other in ("winner", "baseline")]
    extra = [pair for pair in later if pair[0] not in ("soup", "winner", "baseline")]
    bodies = []
    for left, right in (*PAIRS, *extra):
        retrained = (left, right) == ("winner", "baseline")
        sides = [_side(ledger, state, role, metric, retrained) for role in (left, right)]
        if (left, right, metric) not in done and all(one.scores for one in sides):
            bodies.append(verdict(sides[0], sides[1], metric, judged.direction))
    if bodies:
        adjusted = with_holm([body.get("p") for body in state.verdicts], bodies)
        ledger.append([Event("verdict", body) for body in adjusted])
        say(f"final step: {len(bodies)} verdicts on {metric}")


def _side(ledger: Ledger, state: SweepState, role: str, metric: str, retrained: bool) -> Side:
    """A role's scores of a metric: those of `seeds.test` where these are asked for and there, else the sweep's own."""
    found = [final for final in state.finals if final["role"] == role and metric in final["scores"]]
    own = [final for final in found if final.get("seed") is None]
    again = [final for final in found if final.get("seed") is not None]
    chosen = again if again and (retrained or not own) else own
    split, _, name = metric.partition("/")
    seeds = [final.get("seed") for final in chosen]
    owners = [f"final/{role}" if seed is None else f"final/{role}/seed-{seed}" for seed in seeds]
    return Side(
        role,
        tuple(final["scores"][metric] for final in chosen),
        tuple(ledger.items(owner, RESOURCE, name, split) for owner in owners),
        tuple(seed for seed in seeds if seed is not None),
    )
