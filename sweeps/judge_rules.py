"""What the door says about `judge:`: judged metrics need one, and may have to show that people agree with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evaluators.config import EvaluatorConfig, name_of
from pipelines.config import DPOConfig, RagConfig
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
    if draft.sound("pipeline") and not isinstance(draft.spec.pipeline, RagConfig | DPOConfig):
        kind = draft.spec.pipeline.type
        draft.wrong(("judge",), f"a judge grades answers of rag and dpo, and {kind} asks none; delete judge")
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
        why = (
            f"has no card of this judge under {storage}; make one"
            if card is None
            else _shortfall(card, judge.min_spearman)
        )
        if why is not None:
            make = f"stockpot evaluate-judge --metric {metric.bare} --on LABELS.jsonl --judge SWEEP.yaml"
            found.append(f"{metric.bare} {why}: {make}")
    return found


def _shortfall(card: Mapping[str, Any], least: float) -> str | None:
    """What a card lacks of the agreement that is asked for, and the mend; None where it has it."""
    number, data = card["spearman"], f"n={card['n']}, {card['data']['file']}"
    low, high = card["spearman_interval"]
    better = "rank by another metric, or take a better judge and measure it"
    if number is None:
        return f"by this judge has no Spearman with people ({card['coverage']:.0%} of the answers scored, {data}); {better}"
    by = f"by this judge agrees with people by Spearman {number:.2f}"
    if number < least:
        return f"{by} ({data}), below {least:g}; {better}"
    if low is None or low <= 0:
        interval = "no interval" if low is None else f"{low:.2f} to {high:.2f}"
        return f"{by} ({interval}, {data}), which so few answers do not show; rank by another metric, or measure it on more"
    return None
