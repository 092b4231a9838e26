"""The report's record: everything that its page shows, folded from the ledger. JSON, no secrets, no file but the sweep's.

Keys: name, phase, metric, metrics, cards, also, direction, unit, headline, totals, milestones, axes, trials (in the leaderboard's
order), importance, front, verdicts, finals, gaps, openings, checklist, soups, timeline, data, reproduction, notes, etag. Times are seconds since
the epoch, durations seconds, unknown numbers null, infinite ones the texts `inf` and `-inf`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.soups.base import Blend
from sweeps.board import Leaderboard
from sweeps.board_text import ENERGY
from sweeps.candidates import tuned_seed
from sweeps.cards import card_line, cards_of
from sweeps.costs import energy_sentences
from sweeps.describe import describe
from sweeps.leaderboard import leaderboard
from sweeps.load import LoadedSweep
from sweeps.paths import SweepPaths
from sweeps.report.axes import axes_of, same
from sweeps.report.checklist import checklist
from sweeps.report.facts import data_facts, reproduction
from sweeps.report.importance import importance
from sweeps.report.redact import redact
from sweeps.report.source import Source, opened
from sweeps.report.timeline import timeline
from sweeps.report.trials import trial_records
from sweeps.report.words import headline, verdict_records
from sweeps.state import SoupState
from sweeps.words import unit_of

FORMAT = 1
ENDED = ("finished", "stopped")


def report_record(paths: SweepPaths) -> dict[str, Any]:
    """Fold a sweep, in any state, into what the page shows.

    Raises:
        LedgerError: when there is no ledger, or it can't be read.
    """
    with opened(paths) as source:
        return build_record(source)


def build_record(source: Source) -> dict[str, Any]:
    """The record of an opened sweep."""
    state, plan = source.state, source.plan
    driven = source.driver is not None and state.finished is None
    board = leaderboard(state, source.ledger, plan, also=plan.also if isinstance(plan, LoadedSweep) else ())
    trials = trial_records(state, board, plan.milestones, driven)
    space = plan.space if isinstance(plan, LoadedSweep) else None
    axes = axes_of(space, [trial["parameters"] for trial in trials])
    facts = reproduction(source)
    record = {
        "format": FORMAT,
        "etag": f"{state.seq}-{source.phase}",
        "name": state.name or source.paths.name,
        "phase": source.phase,
        "driver": None if source.driver is None else dict(source.driver),
        "metric": plan.metric,
        "direction": plan.direction,
        "metrics": [{"name": metric.name, "direction": metric.direction} for metric in plan.metrics],
        "cards": _cards(source),
        "also": list(board.also),
        "front": None if board.front is None else {**board.front.record(), "lines": board.front.lines()},
        "unit": unit_of(plan.spec.pipeline.type if isinstance(plan, LoadedSweep) else "custom"),
        "alpha": board.alpha,
        "headline": _headline(source, board),
        "totals": _totals(source, trials),
        "milestones": list(plan.milestones),
        "axes": axes,
        "trials": trials,
        "importance": _importance(trials, axes),
        "verdicts": verdict_records(board),
        "finals": _finals(board),
        "gaps": [gap.record() for gap in board.gaps],
        "openings": board.test_openings,
        "checklist": checklist(source, board, axes, facts),
        "soups": [_soup(soup) for soup in state.soups.values()],
        "timeline": timeline(source.events, driven),
        "data": data_facts(source, trials),
        "reproduction": {},
        "notes": facts["warnings"],
    }
    text = facts.pop("yaml")
    shown: dict[str, Any] = redact(record)
    shown["reproduction"] = {**redact(facts), "yaml": text}
    return shown


def _headline(source: Source, board: Leaderboard) -> dict[str, Any]:
    """What can be decided, and what of the energy may be claimed."""
    found = headline(source.state, board, source.phase)
    return {**found, "lines": [*found["lines"], *energy_sentences(source.state, source.plan)]}


CARD = ("label", "spearman", "spearman_interval", "ceiling", "n", "coverage", "made_at")
"""What the page shows of a metric card."""


def _cards(source: Source) -> list[dict[str, Any]]:
    """How well the sweep's metrics agree with people, where that was measured."""
    if not isinstance(source.plan, LoadedSweep):
        return []
    return [
        {
            "metric": card["subject"]["metric"],
            **{key: card[key] for key in CARD},
            "file": card["data"]["file"],
            "line": card_line(card),
        }
        for card in cards_of(source.plan, source.paths.root.parent)
    ]


def _totals(source: Source, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row of figures under the headline."""
    state, plan = source.state, source.plan
    states: dict[str, int] = {}
    for trial in trials:
        states[trial["state"]] = states.get(trial["state"], 0) + 1
    costs: dict[str, float] = {}
    unknown = {name for trial in trials for name in ENERGY if trial["cost"].get(name, 0.0) is None}
    for trial in trials:
        for name, value in trial["cost"].items():
            if isinstance(value, int | float) and name not in unknown:
                before = costs.get(name, 0.0)
                costs[name] = max(before, value) if "peak" in name else before + value
    best = next((trial for trial in trials if trial["rank"] == 1), None)
    worked = [trial["seconds"] for trial in trials if isinstance(trial["seconds"], int | float)]
    expected = describe(plan)["resource"] if isinstance(plan, LoadedSweep) else None
    return {
        "trials": len(trials),
        "planned": plan.trials if isinstance(plan, LoadedSweep) else None,
        "states": states,
        "best": None if best is None else {"trial": best["id"], **best["score"], "rung": best["rung"]},
        "tied": sum(trial["tie"] is True for trial in trials),
        "seconds": state.spent + max(0.0, state.updated_at - state.driver_started_at) if state.seq else 0.0,
        "worker_seconds": sum(worked) if worked else None,
        "costs": costs,
        "resource": sum(max(run.reports, default=0) for run in state.runs.values()),
        "expected": expected,
        "started_at": state.started_at or None,
        "updated_at": state.updated_at or None,
    }


def _finals(board: Leaderboard) -> list[dict[str, Any]]:
    return [
        {
            "role": final["role"],
            "seed": final.get("seed") if tuned_seed(final) is None else tuned_seed(final),
            "own": tuned_seed(final) is not None,
            "scores": {key: score.record() for key, score in final["scores"].items()},
        }
        for final in board.finals
    ]


STEP = ("step", "mixture", "method", "scale", "score", "seen", "failed")
"""What the page shows of a scored mixture."""


def _soup(soup: SoupState) -> dict[str, Any]:
    """A soup's story; `steps` are the mixtures as they were scored, with the decision that each led to."""
    alone = [(Blend.from_record(body).single, body["score"]) for body in soup.scored]
    singles = {run: score for run, score in alone if run is not None}
    done = soup.finished
    inside = {} if done is None else {str(run): weight for run, weight in done.get("ingredients") or ()}
    return {
        "id": soup.id,
        "method": soup.method,
        "metric": soup.metric,
        "ingredients": [
            {
                "run": entry["run"],
                "resource": entry.get("resource"),
                "tune": entry.get("score"),
                "select": singles.get(entry["run"]),
                "weight": inside.get(entry["run"], 0.0),
            }
            for entry in soup.ingredients
        ],
        "steps": [{key: body[key] for key in STEP if key in body} for body in soup.scored],
        "notes": soup.notes,
        "decisions": soup.decisions,
        "finished": None
        if done is None
        else {key: done.get(key) for key in ("folder", "score", "hash", "reason", "ingredients")},
    }


def _importance(trials: Sequence[Mapping[str, Any]], axes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the trials that ended with a result, or diverged, ranked as the leaderboard ranks them; equal scores tie."""
    ended = [t for t in trials if (t["state"] in ENDED and t["rank"] is not None) or t["kind"] == "nan"]
    places = {t["id"]: float(i) for i, t in enumerate(ended)}
    for before, after in itertools.pairwise(ended):
        same_place = before["rung"] == after["rung"] and before["score"]["value"] == after["score"]["value"]
        if same_place or before["kind"] == after["kind"] == "nan":
            places[after["id"]] = places[before["id"]]
    columns = {axis["path"]: _column(axis, [t["parameters"] for t in ended]) for axis in axes}
    found = importance(columns, [places[t["id"]] for t in ended]).record()
    found["pruned"] = sum(t["state"] == "stopped" for t in ended)
    return found


def _column(axis: Mapping[str, Any], parameters: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, Any]:
    """A parameter's values as `importance` takes them."""
    values = [each.get(axis["path"]) for each in parameters]
    if axis["kind"] == "category":
        codes = [next((i for i, v in enumerate(axis["values"]) if same(v, value)), -1) for value in values]
        return np.asarray(codes, dtype=np.int64)
    scale = math.log if axis["kind"] == "log" else float
    return np.asarray([math.nan if value is None else scale(value) for value in values], dtype=np.float64)
