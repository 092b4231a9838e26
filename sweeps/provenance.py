"""What lies beside a soup's weights: `soup.json` with every ingredient's provenance, and a short model card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from evaluators.base import Score
from pipelines.soups.base import Mixture
from sweeps.state import SoupState

VERSIONED = ("stockpot", "torch", "peft", "transformers", "safetensors")
"""Distributions whose versions `soup.json` keeps."""


def soup_record(
    sweep: str,
    config: Mapping[str, Any],
    soup: SoupState,
    mixture: Mixture,
    score: Score,
    made: Mapping[str, Any],
    tie: str,
) -> dict[str, Any]:
    """What `soup.json` holds: every ingredient's run, checkpoint, hash, score on `select`, decision and weight."""
    weights = dict(mixture)
    singles = {body["mixture"][0][0]: body["score"] for body in soup.scored if len(body["mixture"]) == 1}
    decisions = {body["run"]: body for body in soup.decisions}
    ingredients = []
    for ingredient in soup.ingredients:
        run = ingredient["run"]
        decision = decisions[run]
        ingredients.append(
            {
                **{key: ingredient[key] for key in ("run", "checkpoint", "resource", "hash", "parameters")},
                "tune": ingredient["score"],
                "select": singles.get(run),
                "decision": decision["decision"],
                "score_with_it": decision["score"],
                "reason": decision["reason"],
                "weight": weights.get(run, 0.0),
            }
        )
    return {
        "format": 1,
        "soup": soup.id,
        "sweep": sweep,
        "method": soup.method,
        "tie": tie,
        "metric": soup.metric,
        "direction": score.direction,
        "base_model": config.get("base_model"),
        "score": score.record(),
        "weights": dict(made),
        "ingredients": ingredients,
        "versions": _versions(),
    }


def model_card(record: Mapping[str, Any]) -> str:
    """A short `README.md` for the soup's folder."""
    adapter = record["weights"]["kind"] == "adapter"
    kind = f"a LoRA adapter of rank {record['weights']['rank']}" if adapter else "a whole model"
    score, rows = record["score"], []
    for entry in record["ingredients"]:
        single = (entry["select"] or {}).get("value")
        rows.append(f"| {entry['run']} | {shown(single)} | {entry['decision']} | {entry['weight']:.4g} |")
    return "\n".join(
        [
            "---",
            f"library_name: {'peft' if adapter else 'transformers'}",
            "tags: [model-soup, stockpot]",
            "---",
            "",
            f"# {record['sweep']}: {record['soup']}",
            "",
            f"A {record['method']} soup, {kind} for `{record['base_model']}`, made by Stockpot. It was chosen on "
            f"{record['metric']}: {shown(score['value'])} ± {shown(score['se'])} (n={score['n']}). `soup.json` holds every "
            "ingredient's hash, score and decision.",
            "",
            f"| run | {record['metric']} alone | decision | weight |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def write_text(path: Path, text: str) -> None:
    """Write a file aside, force it to the disk, move it to its place."""
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def shown(value: float | str | None) -> str:
    """A stored number with four digits."""
    return "?" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
