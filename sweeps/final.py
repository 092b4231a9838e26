"""The final step: candidates frozen, retrained where asked, `test` opened once, everything scored and compared.

Whatever the ledger has is not done again: a killed driver goes on with the next candidate, and `test` counts as opened
once. Later openings (`stockpot soup` on a judged sweep, `evaluate --on test`, the final step after `resume --budget`) are
events of their own. What an earlier final step scored on the same weights and rows is taken from there.

Who is judged, on what and against whom stands in `sweeps.candidates`. With `seeds.test` the configurations of the baseline
and of the winner (or of the front's runs) are trained again with each of these seeds, and their differences from the baseline
are judged on those; the soup is made of the sweep's own runs and is judged against them. With several tuning seeds the sweep's
own runs of a configuration are all judged, and count as one: the mean, with the variance between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evaluators import parse_evaluator
from pipelines.finetune.checkpoint import content_hash, newest_whole
from pipelines.stage import ModelSource
from sweeps.candidates import (
    Contender,
    freeze,
    judged_metrics,
    leading,
    own_finals,
    pairs,
    plan,
    retrained_finals,
    same_runs,
    soup_candidate,
)
from sweeps.engine import Backend, CallFailed
from sweeps.events import Event, Items
from sweeps.fold import fold
from sweeps.ledger import Ledger
from sweeps.metrics import Metric
from sweeps.paths import SweepPaths
from sweeps.retrain import TRAIN, reached
from sweeps.scoring import Say, call, evaluate, has_split, model_source, silent
from sweeps.state import SoupState, SweepState, items_owner
from sweeps.trial import Attempt, Run, canonical
from sweeps.verdicts import Side, family, verdict, with_holm

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

RESOURCE = 0
"""Item scores of the final step are stored at this resource."""
DATA_ONLY = "the intervals cover the data, not training: each candidate was trained once (seeds.test is empty)"

NOTHING = "final step: no run has a result and a whole checkpoint, so there is nothing to judge"


def run_final(
    loaded: LoadedSweep,
    ledger: Ledger,
    paths: SweepPaths,
    backend: Backend,
    soup: SoupState | None,
    progress: Say | None = None,
) -> None:
    """Do what is left of the final step.

    Args:
        loaded: the sweep.
        ledger: open for writing.
        paths: the sweep's paths.
        backend: trains and evaluates.
        soup: the finished one that the sweep file asks for; it matters only where nothing is frozen yet.
        progress: takes lines for people.

    Raises:
        CallFailed: when a worker failed for a reason that is not the candidate's; a resume goes on.
    """
    say = progress or silent
    state = fold(ledger.events())
    if not state.candidates:
        candidates = freeze(loaded, state, paths, soup)
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
        added = [*state.candidates, soup_candidate(soup, soup.id)]
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


def _judge(loaded: LoadedSweep, ledger: Ledger, paths: SweepPaths, backend: Backend, by: str, say: Say) -> None:
    state = fold(ledger.events())
    judged = judged_metrics(loaded)
    evaluators = loaded.timetable.final
    config = state.trials[leading(state).trial].config
    if not judged or not (evaluators or config["type"] == "custom"):
        say("final step: no evaluator runs on test, so nothing was judged")
        return
    scored = {(final["role"], final.get("seed")) for final in state.finals}
    pending = [one for one in plan(loaded, state, paths) if (one.role, one.seed) not in scored]
    same = same_runs(state)
    pending = [one for one in _known(loaded, ledger, paths, state, pending, say) if one.role not in same]
    _baseline_on_tune(loaded, ledger, paths, backend, say)
    if pending:
        if not has_split(loaded, backend, config, "test"):
            custom = config["type"] == "custom"
            section = "questions" if config["type"] == "rag" else "datasets"
            lacks = "the pipeline has no evaluate(job)" if custom else f"pipeline.{section}.test is not given"
            say(f"final step: {lacks}, so test was not opened and nothing judged")
            return
        ready = [contender for one in pending if (contender := _trained(loaded, paths, backend, one, say)) is not None]
        _open_once(loaded, ledger, by, ready, evaluators)
        for contender in ready:
            _score(loaded, ledger, backend, contender, evaluators, say)
    for soup, (single, run) in same.items():
        _take_over(ledger, soup, single, run, say)
    _compare(ledger, judged, say)
    if not loaded.spec.seeds.test and len(loaded.spec.seeds.tune) == 1:
        say(f"final step: {DATA_ONLY}")


def _baseline_on_tune(loaded: LoadedSweep, ledger: Ledger, paths: SweepPaths, backend: Backend, say: Say) -> None:
    """Score the baseline as trials are scored at their ends, once, so that each can be held against it (`compare --by`)."""
    state = fold(ledger.events())
    evaluators = [*loaded.timetable.rung, *loaded.timetable.end]
    done = [(body["candidate"], body["seed"]) for body in state.baselines]
    for one in plan(loaded, state, paths):
        if one.role != "baseline" or (dict(one.candidate), one.seed) in done:
            continue
        testable = one.trains is None or has_split(loaded, backend, one.config, "test")
        if not testable or not has_split(loaded, backend, one.config, "tune"):
            continue
        ready = _trained(loaded, paths, backend, one, say)
        if ready is None:
            continue
        say(f"final step: scoring {ready.label} on tune")
        try:
            scores = evaluate(loaded, backend, ready.config, _source(ready), "tune", evaluators, say)
        except CallFailed as error:
            if error.failure.kind not in ("user", "oom"):
                raise
            say(f"final step: {ready.label} could not be scored on tune: {error.failure.message}")
            continue
        owner = f"tune-{len(state.baselines) + 1}/{ready.label}"
        told = [score.record() for score in scores]
        body = {"candidate": dict(ready.candidate), "seed": ready.seed, "owner": owner, "scores": told}
        ledger.append([Event("baseline_scored", body)], [Items(owner, RESOURCE, score) for score in scores])
        state = fold(ledger.events())


def _known(
    loaded: LoadedSweep,
    ledger: Ledger,
    paths: SweepPaths,
    state: SweepState,
    pending: Sequence[Contender],
    say: Say,
) -> list[Contender]:
    """Take the scores that an earlier final step has of the same weights in the same configuration; the others are left."""
    known: dict[str, dict[str, Any]] = {}
    for earlier in state.earlier:
        before = replace(state, candidates=earlier.candidates)
        finals = {(final["role"], final.get("seed")): final for final in earlier.finals}
        for contender in plan(loaded, before, paths):
            final = finals.get((contender.role, contender.seed))
            if final is not None:
                known[_identity(contender)] = final
    left = []
    for contender in pending:
        final = known.get(_identity(contender))
        if final is None:
            left.append(contender)
            continue
        say(f"final step: {contender.label} was scored on test before")
        ledger.append([_copied(final, contender.role, contender.candidate, contender.seed, contender.own)])
    return left


def _copied(
    final: Mapping[str, Any], role: str, candidate: Mapping[str, Any], seed: int | None, own: str | None = None
) -> Event:
    """Scores that the ledger has already, as those of another candidate with the same weights."""
    scores = [score.record() for score in final["scores"].values()]
    body = {"role": role, "candidate": dict(candidate), "scores": scores, "seed": seed, "owner": items_owner(final)}
    return Event("final_scored", body if own is None else {**body, "own": own})


def _take_over(ledger: Ledger, soup: str, single: str, run: str, say: Say) -> None:
    """Give a soup that is one run alone that run's scores, once."""
    state = fold(ledger.events())
    finals = {
        final.get("own") or final["candidate"].get("run"): final
        for final in state.finals
        if final["role"] == single and (final.get("seed") is None or final.get("own"))
    }
    if any(final["role"] == soup for final in state.finals) or run not in finals:
        return
    say(f"final step: the {'soup' if soup == 'soup' else f'soup {soup}'} is the {single} itself, and takes its scores")
    candidate = next(one for one in state.candidates if one["role"] == soup)
    ledger.append([_copied(finals[run], soup, candidate, None)])


def _identity(contender: Contender) -> str:
    """What makes two contenders of different final steps the same: weights, configuration, seed."""
    weights = {key: value for key, value in contender.candidate.items() if key not in ("role", "reason")}
    return canonical([weights, contender.config, contender.seed])


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
            "checkpoint_seconds": loaded.spec.checkpoint_seconds,
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
    """Record the opening, unless the one that a killed driver recorded was for these, under the present budget."""
    labels = [contender.label for contender in ready]
    opened: list[set[str]] = []
    for event in ledger.events():
        if event.kind == "test_opened":
            opened.append(set(event.body["candidates"]))
        elif event.kind == "budget_changed":
            opened.clear()
    if not labels or any(before >= set(labels) for before in opened):
        return
    names = [name for entry in evaluators for name in parse_evaluator(entry).reports()]
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
    rounds = len(fold(ledger.events()).earlier)
    owner = f"final-{rounds + 1}/{contender.label}" if rounds else f"final/{contender.label}"
    samples = loaded.paths.samples(owner)
    try:
        scores = evaluate(loaded, backend, contender.config, model, "test", evaluators, say, samples)
    except CallFailed as error:
        if error.failure.kind not in ("user", "oom"):
            raise
        say(f"final step: {contender.label} could not be scored: {error.failure.message}")
        return
    if samples.is_dir():
        say(f"final step: what {contender.label} answered is in {samples}")
    body = {
        "role": contender.role,
        "candidate": dict(contender.candidate),
        "scores": [score.record() for score in scores],
        "seed": contender.seed,
        "owner": owner,
        **({} if contender.own is None else {"own": contender.own}),
    }
    ledger.append([Event("final_scored", body)], [Items(owner, RESOURCE, score) for score in scores])
    ledger.ship()


def _source(contender: Contender) -> ModelSource:
    content = contender.content
    if contender.trains is not None and contender.folder is not None:
        content = content_hash(contender.folder)
    return model_source(contender.config, contender.folder, content)


def _compare(ledger: Ledger, judged: Sequence[Metric], say: Say) -> None:
    """The verdicts that are not in the ledger yet, metric by metric, in one transaction."""
    state = fold(ledger.events())
    done = {(body["left"], body["right"], body["metric"]) for body in state.verdicts}
    singles = {candidate["role"] for candidate in state.candidates if "run" in candidate}
    bodies = []
    for metric in judged:
        name = f"test/{metric.bare}"
        for left, right in pairs(state):
            retrained = left in singles and right == "baseline"
            sides = [_side(ledger, state, role, name, retrained) for role in (left, right)]
            if (left, right, name) not in done and all(one.scores for one in sides):
                bodies.append(verdict(sides[0], sides[1], name, metric.direction))
    if bodies:
        earlier = [body for done in state.earlier for body in done.verdicts]
        adjusted = with_holm(family(earlier, [*state.verdicts, *bodies])[: -len(bodies)], bodies)
        ledger.append([Event("verdict", body) for body in adjusted])
        names = dict.fromkeys(body["metric"] for body in bodies)
        say(f"final step: {len(bodies)} verdict{'s' if len(bodies) != 1 else ''} on {' and '.join(names)}")


def _side(ledger: Ledger, state: SweepState, role: str, metric: str, retrained: bool) -> Side:
    """A role's scores of a metric: those of `seeds.test` where these are asked for and there, else the sweep's own."""
    own, again = own_finals(state.finals, role, metric), retrained_finals(state.finals, role, metric)
    chosen = again if again and (retrained or not own) else own
    split, _, name = metric.partition("/")
    repeated = len(chosen) > 1 or chosen == again
    return Side(
        role,
        tuple(final["scores"][metric] for final in chosen),
        tuple(ledger.items(items_owner(final), RESOURCE, name, split) for final in chosen),
        tuple(seed for final in chosen if (seed := _trained_with(state, final)) is not None) if repeated else (),
    )


def _trained_with(state: SweepState, final: Mapping[str, Any]) -> int | None:
    """The training seed behind a score."""
    if final.get("seed") is not None:
        return int(final["seed"])
    run = state.runs.get(str(final["candidate"].get("run")))
    return None if run is None else run.seed
