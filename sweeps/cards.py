"""Metric cards: how well a metric agrees with people, measured by `stockpot evaluate-judge`, one JSON file each.

A card is about its *subject*: the metric with its settings, the judge and the embedding behind it, and the version of the
prompts. Another judge, or the same one under other prompts, is another subject. Of several cards of one subject the newest
counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.config import EvaluatorConfig
from evaluators.judge import VERSION
from pipelines.config import RagConfig
from sweeps.metrics import owner
from sweeps.paths import SweepPaths
from sweeps.spec import SweepSpec
from sweeps.trial import canonical

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

FORMAT = 1
JUDGE_FIELDS = ("type", "base_model", "base_model_hash", "precision", "base_url", "model")
"""What of `judge:` changes its verdicts; how often it is asked again and what it costs does not."""
NO_SETTINGS = ("type", "when", "limit")


def subject_of(metric: str, entry: EvaluatorConfig, spec: SweepSpec | None, embedding: Any = None) -> dict[str, Any]:
    """What a card is about (JSON).

    Args:
        metric: without its split.
        entry: its `evaluate` entry.
        spec: a sweep as loaded, paths absolute; None for a metric outside any sweep.
        embedding: outside any sweep, what `pipeline.answer_embedding` would be.
    """
    judge = None if spec is None or spec.judge is None else spec.judge.model_dump(mode="json")
    if spec is not None and isinstance(spec.pipeline, RagConfig):
        embedding = spec.pipeline.model_dump(mode="json")["answer_embedding"]
    return {
        "metric": metric,
        "settings": entry.model_dump(mode="json", exclude=set(NO_SETTINGS)),
        "judge": {key: judge[key] for key in JUDGE_FIELDS if key in judge} if judge and entry.judged else None,
        "embedding": embedding if entry.embeds else None,
        "prompts": VERSION if entry.judged else None,
    }


def write_card(storage: Path, card: Mapping[str, Any]) -> Path:
    """Write a card whole or not at all; one of the same subject and data is replaced."""
    folder = SweepPaths.of(storage, "any").cards
    folder.mkdir(parents=True, exist_ok=True)
    key = canonical([card["subject"], card["data"]["hash"], card["data"]["limit"]])
    place = folder / f"{card['subject']['metric']}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
    aside = place.with_suffix(f".{os.getpid()}.part")
    aside.write_text(json.dumps(card, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, place)
    return place


def newest_card(storage: Path, subject: Mapping[str, Any]) -> dict[str, Any] | None:
    """The newest card about a subject; one that can't be read is left out, with a warning."""
    newest: dict[str, Any] | None = None
    for place in sorted(SweepPaths.of(storage, "any").cards.glob(f"{subject['metric']}-*.json")):
        try:
            card = json.loads(place.read_text(encoding="utf-8"))
            fits = card["format"] == FORMAT and card["subject"] == subject
            if fits and (newest is None or card["made_at"] >= newest["made_at"]):
                newest = card
        except (OSError, ValueError, KeyError, TypeError) as error:
            logging.getLogger(__name__).warning("the card %s can't be read: %s", place, error)
    return newest


def cards_of(loaded: LoadedSweep, storage: Path) -> list[dict[str, Any]]:
    """The newest card of every metric that has one: of those that the sweep decides by first, then of what it reports.

    Args:
        loaded: the sweep.
        storage: the folder of its folder; its own where the sweep was not moved.
    """
    decides = [metric.bare for metric in loaded.metrics if metric.scored]
    found = []
    for name in dict.fromkeys([*decides, *(name for entry in loaded.spec.evaluate for name in entry.reports())]):
        entry = owner(name, loaded.spec)
        card = None if entry is None else newest_card(storage, subject_of(name, entry, loaded.spec))
        found += [] if card is None else [card]
    return found


def card_line(card: Mapping[str, Any]) -> str:
    """One line about a card, for people."""
    low, high = card["spearman_interval"]
    number = "no Spearman" if card["spearman"] is None else f"Spearman {card['spearman']:.2f}"
    error = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    ceiling = "" if card["ceiling"] is None else f", people among themselves {card['ceiling']:.2f}"
    return (
        f"{card['subject']['metric']} against people: {number}{error}{ceiling}, n={card['n']}, "
        f"{card['coverage']:.0%} scored ({card['data']['file']}, {card['label']})"
    )
