"""What lies beside a soup's weights: `soup.json` with every ingredient's provenance, and a short model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import yaml

from evaluators.base import Score
from pipelines.soups.base import Blend
from sweeps.markdown import code, escaped, row
from sweeps.state import SoupState, SweepState

if TYPE_CHECKING:
    from sweeps.soup_plan import Plan

VERSIONED = ("stockpot", "torch", "peft", "transformers", "safetensors")
"""Distributions whose versions `soup.json` keeps."""


def soup_record(
    sweep: str,
    state: SweepState,
    soup: SoupState,
    blend: Blend,
    score: Score,
    made: Mapping[str, Any],
    alike: Mapping[str, Any],
    plan: Plan,
) -> dict[str, Any]:
    """What `soup.json` holds: the merge, and every ingredient's run, hashes, configuration, score on `select`, decision.

    `delta_cosines` holds how alike the changes of the ingredients are (`pipelines.soups.cosines.measure`).
    """
    weights = dict(blend.mixture)
    alone = [(Blend.from_record(body).single, body["score"]) for body in soup.scored]
    singles = {run: record for run, record in alone if run is not None}
    decisions = {body["run"]: body for body in soup.decisions}
    configs = {i["run"]: state.trials[state.runs[i["run"]].trial].config for i in soup.ingredients}
    common = shared([flat(config) for config in configs.values()])
    ingredients = []
    for ingredient in soup.ingredients:
        run = ingredient["run"]
        decision = decisions[run]
        own = {key: value for key, value in flat(configs[run]).items() if key not in common}
        ingredients.append(
            {
                **{key: ingredient[key] for key in ("run", "checkpoint", "resource", "hash", "parameters")},
                "config_diff": own,
                "tune": ingredient["score"],
                "select": singles.get(run),
                "decision": decision["decision"],
                "score_with_it": decision["score"],
                "reason": decision["reason"],
                "weight": weights.get(run, 0.0),
            }
        )
    config = configs[soup.ingredients[0]["run"]]
    merge = blend.record()
    merge.pop("mixture")
    return {
        "format": 2,
        "soup": soup.id,
        "sweep": sweep,
        "method": soup.method,
        "settings": soup.settings,
        "merge": {"method": json.loads(blend.method), **merge},
        "metric": soup.metric,
        "direction": score.direction,
        "base_model": config.get("base_model"),
        "base_model_hash": config.get("base_model_hash"),
        "chose": score.record(),
        "weights": dict(made),
        "ingredients": ingredients,
        "delta_cosines": dict(alike),
        "config": common,
        "data": data_hashes(config),
        "notes": soup.notes,
        "versions": _versions(),
    }


def flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """A configuration by dotted path."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        here = f"{path}.{key}" if path else key
        found |= flat(value, here) if isinstance(value, Mapping) and value else {here: value}
    return found


def shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all configurations have alike."""
    first = configs[0]
    return {key: first[key] for key in first if all(key in one and one[key] == first[key] for one in configs)}


def data_hashes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Split -> path and hash (or revision) of its file; a split taken from train by share has its share."""
    found = {}
    for split, data in (config.get("datasets") or {}).items():
        if isinstance(data, Mapping):
            keys = ("path", "content_hash", "revision", "fraction")
            found[split] = {key: data[key] for key in keys if data.get(key) is not None}
    return found


VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be."""


def model_card(record: Mapping[str, Any]) -> str:
    """A short `README.md` for the soup's folder."""
    adapter = record["weights"]["kind"] == "adapter"
    kind = f"a LoRA adapter of rank {record['weights']['rank']}" if adapter else "a whole model"
    head = {"library_name": "peft" if adapter else "transformers", "tags": ["model-soup", "stockpot"]}
    score, rows = record["chose"], []
    for entry in record["ingredients"]:
        single = (entry["select"] or {}).get("value")
        rows.append(row([entry["run"], shown(single), entry["decision"], f"{entry['weight']:.4g}"]))
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
            "",
            f"# {escaped(record['sweep'])}: {escaped(record['soup'])}",
            "",
            f"A {escaped(record['method'])} soup, {kind} for {code(str(record['base_model']))}, made by Stockpot from "
            f"{sum(1 for entry in record['ingredients'] if entry['weight'])} of {len(record['ingredients'])} runs of one "
            f"sweep. {escaped(record['metric'])} chose it: {shown(score['value'])} ± {shown(score['se'])} (n={score['n']}), "
            "a number that flatters it for that reason. What it is worth on rows that chose nothing, "
            f"{code('stockpot show ' + record['sweep'])} tells. `soup.json` holds every ingredient's hash, score and decision.",
            "",
            *usage(record, adapter),
            "",
            row(["run", f"{record['metric']} alone", "decision", "weight"]),
            "|---|---|---|---|",
            *rows,
            "",
            *_alike(record["delta_cosines"]),
        ]
    )


def _alike(alike: Mapping[str, Any]) -> list[str]:
    """The cosines between the ingredients' changes, as a table."""
    if "missing" in alike:
        return []
    names = [run.partition("-")[0] for run in alike["runs"]]
    rows = [
        row([run, shown(norm), *("?" if value is None else f"{value:.2f}" for value in cosines)])
        for run, norm, cosines in zip(alike["runs"], alike["norms"], alike["cosines"], strict=True)
    ]
    return [
        "How alike the ingredients' changes of the base are (cosines of Δ = θ - θ₀):",
        "",
        row(["run", "‖Δ‖", *names]),
        f"|---|---|{'---|' * len(names)}",
        *rows,
        "",
    ]


def usage(record: Mapping[str, Any], adapter: bool) -> list[str]:
    """How to load it, as a model card shows it."""
    if not adapter:
        return ["```python", "model = AutoModelForCausalLM.from_pretrained(FOLDER)", "```"]
    return [
        "```python",
        f"model = AutoModelForCausalLM.from_pretrained({record['base_model']!r})",
        "model = PeftModel.from_pretrained(model, FOLDER)",
        "```",
        "",
        *vllm(record["weights"].get("rank")),
    ]


def vllm(rank: int | None) -> list[str]:
    """What vLLM asks of an adapter: LoRA without DoRA or trained modules, and `--max-lora-rank` of at least its rank."""
    allowed = next((size for size in VLLM_RANKS if rank is not None and size >= rank), None)
    if rank is None:
        return []
    if allowed is None:
        return [
            f"vLLM serves adapters of rank {VLLM_RANKS[-1]} at most; this one has {rank}: set `soup.rank` to compact it."
        ]
    return [f"With vLLM: `--enable-lora --max-lora-rank {allowed}`."]


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
