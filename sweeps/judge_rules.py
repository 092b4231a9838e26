"""What the door says about `judge:`: judged metrics need one, and may have to show that people agree with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evaluators.config import EvaluatorConfig, name_of
from pipelines.config import RagConfig
from pipelines.rag.models import LocalJudge
from sweeps.cards import newest_card, subject_of
from sweeps.draft import Draft
from sweeps.local import model_problem
from sweeps.metrics import owner
from sweeps.yaml_source import Place

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

WRITE = "judge: {type: openai, base_url: http://127.0.0.1:8000/v1, model: NAME}"


def asks_a_judge(draft: Draft, entry: EvaluatorConfig, place: Place) -> None:
    """A judged evaluator has a judge."""
    if entry.judged and draft.sound("judge") and draft.spec.judge is None:
        draft.wrong(place, f"'{name_of(type(entry))}' asks a judge; write {WRITE}")


def check_judge(draft: Draft) -> None:
    """There is something to judge, and the judge is there."""
    judge = draft.spec.judge
    if judge is None or not draft.sound("judge"):
        return
    if draft.sound("pipeline") and not isinstance(draft.spec.pipeline, RagConfig):
        kind = draft.spec.pipeline.type
        draft.wrong(("judge",), f"a judge grades answers to questions, and {kind} gives none; delete judge")
    elif isinstance(judge, LocalJudge) and (message := model_problem(judge.base_model, draft.folder)):
        draft.wrong(("judge", "base_model"), message)


def unearned(loaded: LoadedSweep) -> list[str]:
    """Why the sweep may not be decided by its judged metrics: `min_spearman` is given, and a card is missing or below it."""
    judge = loaded.spec.judge
    if judge is None or judge.min_spearman is None:
        return []
    storage = loaded.paths.root.parent
    found = []
    for metric in loaded.metrics:
        entry = owner(metric.bare, loaded.spec) if metric.scored else None
        if entry is None or not entry.judged:
            continue
        card = newest_card(storage, subject_of(metric.bare, entry, loaded.spec))
        make = f"stockpot evaluate-judge --metric {metric.bare} --on LABELS.jsonl --judge SWEEP.yaml"
        if card is None:
            found.append(f"{metric.bare} has no card of this judge under {storage}; make one: {make}")
        elif card["spearman"] is None or card["spearman"] < judge.min_spearman:
            number = "none" if card["spearman"] is None else f"{card['spearman']:.2f}"
            found.append(
                f"{metric.bare} by this judge agrees with people by Spearman {number} (n={card['n']}, {card['data']['file']}), "
                f"below {judge.min_spearman:g}; rank by another metric, or take a better judge and measure it: {make}"
            )
    return found
