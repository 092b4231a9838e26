"""Who is judged in the final step, on which metrics, and against whom.

With one metric: `baseline` (the untuned model, or `baseline:` trained from the beginning, or as trial 0), `winner` (the best
configuration at the highest rung, by its mean over the tuning seeds), `soup` (the newest finished one). A soup judged later has its id as
its role.

A configuration has one set of weights a tuning seed. `run` of its record names the best of them on tune, what
`sweep://NAME/best` means; `others` lists the rest, and the configuration is judged as the mean over all of them.

With several metrics there is no winner, unless one run is better than all others on every metric: the runs of the Pareto
front take its place, as `front-1`, `front-2`, ..., at most `FRONT` of them, one a trial, spread over the front
(`sweeps.pareto.spread`) and numbered by the primary metric. Each is judged against the baseline on every metric that is a
score, and the soup against `front-1` and the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.config import METRICS
from pipelines.finetune.checkpoint import content_hash, is_whole
from pipelines.soups.base import Blend
from sweeps.metrics import FRONT, Metric, known_metrics, soup_metric
from sweeps.paths import SweepPaths
from sweeps.scoring import Placed, checkpoint_folder, front_runs, ranked, relative, whole_checkpoint
from sweeps.state import RunState, SoupState, SweepState, TrialState

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep


@dataclass(frozen=True)
class Contender:
    """Something to score on `test`.

    Attributes:
        role: `baseline`, `winner`, `front-<k>`, `soup` or a soup's id.
        candidate: its record in `final_frozen`.
        config: the pipeline configuration that it is scored (and trained) with.
        seed: a seed of `seeds.test` that it is trained with, or the tuning seed of one of its `others`; None for what the
            sweep made.
        folder: weights; None for the untuned model.
        trains: trial id to train under, where it is still to be trained.
        own: the sweep's run whose weights these are, where it is one of `others`.
    """

    role: str
    candidate: Mapping[str, Any]
    config: Mapping[str, Any]
    seed: int | None = None
    folder: Path | None = None
    trains: str | None = None
    own: str | None = None

    @property
    def content(self) -> str | None:
        """Hash of the weights that the sweep made; None where they are still to be trained, or there are none."""
        found = [one["hash"] for one in self.candidate.get("others", ()) if one["run"] == self.own]
        return found[0] if found else self.candidate.get("hash")

    @property
    def label(self) -> str:
        """`<role>[/seed-<s>]`; its items are stored under `final/<label>`."""
        return self.role if self.seed is None else f"{self.role}/seed-{self.seed}"


def freeze(loaded: LoadedSweep, state: SweepState, paths: SweepPaths, soup: SoupState | None) -> list[dict[str, Any]]:
    """The candidates as `final_frozen` holds them; empty when no run has a result and a whole checkpoint."""
    singles = _singles(loaded, state, paths)
    if not singles:
        return []
    config = state.trials[state.runs[singles[0]["run"]].trial].config
    candidates: list[dict[str, Any]] = []
    trained = loaded.resolve_baseline()
    named = state.baseline
    if named is not None:
        candidates.append(_named_baseline(loaded, state, paths, named))
    elif trained is not None:
        reason = ", ".join(f"{key}={value}" for key, value in (loaded.baseline or {}).items())
        candidates.append({"role": "baseline", "config": trained, "reason": reason})
    elif config.get("base_model") is not None:
        candidates.append({"role": "baseline", "model": config["base_model"]})
    candidates += singles
    if soup is not None:
        candidates.append(soup_candidate(soup, "soup"))
    return candidates


def _singles(loaded: LoadedSweep, state: SweepState, paths: SweepPaths) -> list[dict[str, Any]]:
    """The best run whose checkpoint is whole, or those of the front; of dominated runs only where the front has none whole.

    With each, the other runs of its configuration whose checkpoints are whole.
    """
    several = len(loaded.metrics) > 1
    everyone = placed = ranked(loaded, state)
    alone = not several or len(front_runs(loaded, placed, None)) == 1
    while placed:
        chosen = front_runs(loaded, placed, FRONT) if several else placed[:1]
        found = [(one, checkpoint) for one in chosen if (checkpoint := whole_checkpoint(paths, one)) is not None]
        if found:
            break
        gone = {one.run.id for one in chosen}
        placed = [one for one in placed if one.run.id not in gone]
        alone = not several
    else:
        return []
    roles = ["winner"] if alone else [f"front-{k + 1}" for k in range(len(found))]
    return [
        {"role": role, **_weights(one, paths, *whole), **_others(one, everyone, paths)}
        for role, (one, whole) in zip(roles, found, strict=True)
    ]


def _others(one: Placed, everyone: list[Placed], paths: SweepPaths) -> dict[str, Any]:
    siblings = [other for other in everyone if other.run.trial == one.run.trial and other.run.id != one.run.id]
    found = [(other, whole) for other in siblings if (whole := whole_checkpoint(paths, other)) is not None]
    return {"others": [_weights(other, paths, *whole) for other, whole in found]} if found else {}


def _weights(placed: Placed, paths: SweepPaths, folder: Path, content: str) -> dict[str, Any]:
    return {
        "run": placed.run.id,
        "resource": placed.report.resource,
        "checkpoint": relative(paths, folder),
        "hash": content,
    }


def _named_baseline(loaded: LoadedSweep, state: SweepState, paths: SweepPaths, trial: TrialState) -> dict[str, Any]:
    """The baseline that is a trial, as it ended; the untuned model where it failed, and trained anew where it was cut short."""
    runs = [run for run in state.runs.values() if run.trial == trial.id]
    config = dict(trial.config)
    failed = next((run for run in runs if run.phase == "failed"), None)
    if failed is not None:
        reason = f"the untuned model, because {trial.baseline} failed: {failed.reason}"
        return {"role": "baseline", "model": config["base_model"], "reason": reason}
    found = []
    for run in sorted(runs, key=lambda run: run.seed):
        report = run.reports.get(loaded.milestones_of(config)[-1])
        folder = None if report is None else checkpoint_folder(paths, run, report)
        if folder is not None and is_whole(folder):
            found.append({"run": run.id, "checkpoint": relative(paths, folder), "hash": content_hash(folder)})
            config |= run.changes
    candidate: dict[str, Any] = {"role": "baseline", "trial": trial.id, "config": config, "reason": str(trial.baseline)}
    if found:
        candidate |= {key: found[0][key] for key in ("checkpoint", "hash")}
        candidate |= {"others": found[1:]} if found[1:] else {}
    return candidate


def soup_candidate(soup: SoupState, role: str) -> dict[str, Any]:
    """A finished soup as a candidate."""
    assert soup.finished is not None, f"soup {soup.id} must be finished before it is judged"
    return {"role": role, "soup": soup.id, "folder": soup.finished["folder"], "hash": soup.finished["hash"]}


def same_models(state: SweepState) -> dict[str, str]:
    """Role of each judged soup that is one of the single runs alone -> that run's role; other soups are not in it."""
    return {soup: role for soup, (role, _) in same_runs(state).items()}


def same_runs(state: SweepState) -> dict[str, tuple[str, str]]:
    """The same, with the run itself: of a configuration with several seeds it may be one of its `others`."""
    runs = {
        one["run"]: str(candidate["role"])
        for candidate in state.candidates
        if "run" in candidate
        for one in (candidate, *candidate.get("others", ()))
    }
    found = {}
    for candidate in state.candidates:
        soup = state.soups.get(str(candidate.get("soup")))
        done = (soup.finished or {}) if soup is not None else {}
        if not done.get("ingredients") or done.get("rank") is not None or done.get("energy") is not None:
            continue
        single = Blend.from_record({**done, "mixture": done["ingredients"]}).single
        if single in runs:
            found[str(candidate["role"])] = runs[str(single)], str(single)
    return found


def tuned_seed(final: Mapping[str, Any]) -> int | None:
    """The tuning seed behind a score of one of several runs of a configuration; None for every other score."""
    if final.get("own"):
        return int(final["seed"])
    candidate = final.get("candidate")
    if final.get("seed") is None and isinstance(candidate, Mapping) and candidate.get("others"):
        return int(str(candidate["run"]).rpartition("-")[2])
    return None


def own_finals(finals: Sequence[Mapping[str, Any]], role: str, metric: str) -> list[Mapping[str, Any]]:
    """What the final step scored of a role's weights that the sweep itself made, one a tuning seed."""
    found = [final for final in finals if final["role"] == role and metric in final["scores"]]
    return [final for final in found if final.get("seed") is None or final.get("own")]


def retrained_finals(finals: Sequence[Mapping[str, Any]], role: str, metric: str) -> list[Mapping[str, Any]]:
    """What it scored of a role's configuration trained again, one a seed of `seeds.test`."""
    found = [final for final in finals if final["role"] == role and metric in final["scores"]]
    return [final for final in found if final.get("seed") is not None and not final.get("own")]


def test_finals(finals: Sequence[Mapping[str, Any]], role: str, metric: str) -> list[Mapping[str, Any]]:
    """What a role is worth on test: trained again with the test seeds where it was, else as the sweep made it."""
    return retrained_finals(finals, role, metric) or own_finals(finals, role, metric)


def leading(state: SweepState) -> RunState:
    """The first single run among the candidates: the winner, or the front's best on the primary metric."""
    return state.runs[next(candidate["run"] for candidate in state.candidates if "run" in candidate)]


def plan(loaded: LoadedSweep, state: SweepState, paths: SweepPaths) -> list[Contender]:
    """What is to be scored on `test`, in the order it is done."""
    lead = leading(state)
    config = state.trials[lead.trial].config
    seeds = loaded.spec.seeds.test
    contenders = []
    for candidate in state.candidates:
        role = candidate["role"]
        if "run" in candidate:
            run = state.runs[candidate["run"]]
            own = state.trials[run.trial].config
            contenders.append(Contender(role, candidate, own, folder=paths.root / candidate["checkpoint"]))
            contenders += [_other(role, candidate, own, state, paths, other) for other in candidate.get("others", ())]
            again = {**own, **run.changes}
            contenders += [Contender(role, candidate, again, seed, trains=run.trial) for seed in seeds]
        elif "config" in candidate and "checkpoint" in candidate and not seeds:
            trained = candidate["config"]
            contenders.append(Contender(role, candidate, trained, folder=paths.root / candidate["checkpoint"]))
            contenders += [
                _other(role, candidate, trained, state, paths, other) for other in candidate.get("others", ())
            ]
        elif "config" in candidate:
            trained = candidate["config"]
            contenders += [Contender(role, candidate, trained, s, trains="baseline") for s in seeds or (None,)]
        elif role == "baseline":
            contenders.append(Contender(role, candidate, config))
        else:
            contenders.append(Contender(role, candidate, config, folder=paths.root / candidate["folder"]))
    return contenders


def _other(
    role: str,
    candidate: Mapping[str, Any],
    config: Mapping[str, Any],
    state: SweepState,
    paths: SweepPaths,
    other: Mapping[str, Any],
) -> Contender:
    """The weights of another tuning seed."""
    place = paths.root / other["checkpoint"]
    return Contender(role, candidate, config, state.runs[other["run"]].seed, place, own=other["run"])


def pairs(state: SweepState) -> list[tuple[str, str]]:
    """Roles to compare: left minus right. A soup that is one of the single runs has no verdict of its own."""
    candidates, same = state.candidates, same_models(state)
    singles = [candidate["role"] for candidate in candidates if "run" in candidate]
    soups = [candidate["role"] for candidate in candidates if "soup" in candidate and candidate["role"] != "soup"]
    found = [("soup", singles[0]), *((single, "baseline") for single in singles), ("soup", "baseline")]
    found += [(soup, other) for soup in soups for other in (singles[0], "baseline")]
    return [(left, right) for left, right in found if left not in same]


def judged_metrics(loaded: LoadedSweep) -> tuple[Metric, ...]:
    """What verdicts are about: the sweep's metrics that are scores, else the soup's; empty when there is none."""
    scored = tuple(metric for metric in loaded.metrics if metric.scored)
    if scored or loaded.spec.soup is None or loaded.spec.soup.metric is None:
        return scored
    bare = soup_metric(loaded.spec, loaded.metrics)
    known = METRICS | known_metrics(loaded.spec.pipeline, loaded.spec.evaluate)
    return (Metric(f"tune/{bare}", known[bare]),) if bare in known else ()
