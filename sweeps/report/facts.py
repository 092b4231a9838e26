"""The data behind the scores, and everything that it takes to make the sweep again."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from evaluators.base import summarise
from sweeps.events import StoredItems
from sweeps.ledger import number
from sweeps.paths import SweepPaths
from sweeps.report.redact import redact
from sweeps.report.source import Source, spec_of
from sweeps.state import items_owner

POWER = 1.959964 + 0.841621
"""z(0.975) + z(0.8): so many errors of a difference are shown, at 5 %, in 4 of 5 draws of the rows."""


def data_facts(source: Source, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """`files` as the spec names them, and for every split with scores its rows, groups and smallest difference."""
    spec = _inner(spec_of(source))
    splits = []
    for split, metric, pairs in (_tune(source, trials), _select(source), _test(source)):
        if metric is None:
            continue
        errors = [error for left, right in pairs if (error := _error(left, right)) is not None]
        first = next((one for pair in pairs for one in pair), None)
        splits.append(
            {
                "split": split,
                "metric": metric,
                "rows": None if first is None else len(first.item_set.ids),
                "groups": None if first is None else len(set(first.item_set.groups or first.item_set.ids)),
                "smallest": number(POWER * float(np.median(errors))) if errors else None,
                "pairs": len(errors),
            }
        )
    files = redact((spec.get("pipeline") or {}).get("datasets") or {})
    return {"files": files, "splits": splits, "train_rows": _train_rows(source)}


Pairs = list[tuple[StoredItems, StoredItems]]


def _tune(source: Source, trials: list[dict[str, Any]]) -> tuple[str, str | None, Pairs]:
    """The best trials at the first one's rung, each against the first."""
    metric = source.plan.metric
    split, _, name = metric.partition("/")
    ranked = [trial for trial in trials if trial["rank"] is not None and trial["rung"] is not None and trial["seeds"]]
    found = [
        source.ledger.items(f"{trial['id']}/seed-{trial['seeds'][0]}", trial["rung"], name, split)
        for trial in [t for t in ranked if t["rung"] == ranked[0]["rung"]][:9]
    ]
    whole = [items for items in found if items is not None]
    return split, metric if whole else None, _against_first(whole)


def _select(source: Source) -> tuple[str, str | None, Pairs]:
    found, metric = [], None
    for soup in source.state.soups.values():
        for body in soup.scored:
            split, _, name = soup.metric.partition("/")
            items = source.ledger.items(f"soup/{soup.id}/{body['step']}", 0, name, split)
            if items is not None:
                metric = soup.metric
                found.append(items)
    return "select", metric, _against_first(found[:9])


def _test(source: Source) -> tuple[str, str | None, Pairs]:
    metric = f"test/{source.plan.metric.partition('/')[2]}"
    found = []
    for final in source.state.finals:
        items = (
            source.ledger.items(items_owner(final), 0, metric.partition("/")[2], "test")
            if metric in final["scores"]
            else None
        )
        if items is not None:
            found.append(items)
    return "test", metric if found else None, _against_first(found[:9])


def _against_first(found: list[StoredItems]) -> Pairs:
    if len(found) == 1:
        return [(found[0], found[0])]
    return [(found[0], other) for other in found[1:] if other.item_set.ids == found[0].item_set.ids]


def _error(left: StoredItems, right: StoredItems) -> float | None:
    """Standard error of the mean difference, clustered; None for a candidate against itself or its like."""
    with np.errstate(invalid="ignore"):
        difference = left.values.astype(np.float64) - right.values.astype(np.float64)
    score = summarise("d", "tune", "minimize", left.item_set, difference)
    return score.se if math.isfinite(score.se) and score.se > 0 else None


def _train_rows(source: Source) -> int | None:
    """Rows of `train`, from how far through them the newest reports are; None where that was not told."""
    for run in source.state.runs.values():
        config = source.state.trials[run.trial].config
        report = run.newest
        epoch = None if report is None else report.telemetry.get("train/epoch")
        micro, times = config.get("micro_batch_size"), config.get("gradient_accumulation_steps", 1)
        if report is not None and epoch and micro and times and math.isfinite(epoch):
            workers = source.state.driver.get("workers") or 1
            return round(report.resource * micro * times * workers / epoch)
    return None


def reproduction(source: Source) -> dict[str, Any]:
    """Spec, versions, seeds, hashes, drivers, ledger, and the command that runs the sweep again."""
    spec = spec_of(source)
    inner = _inner(spec)
    shown = redact(inner)
    created = next((event.body for event in source.events if event.kind == "sweep_created"), {})
    name = source.state.name or source.paths.name
    return {
        "folder": source.paths.place,
        "spec": shown,
        "yaml": yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=100) if shown else "",
        "versions": dict(created.get("versions") or {}),
        "seeds": _seeds(inner),
        "hashes": _hashes(source, spec),
        "drivers": _drivers(source),
        "ledger": _ledger(source),
        "commands": _commands(source.paths, name),
        "warnings": [str(warning) for warning in source.plan.warnings],
    }


def _inner(record: Mapping[str, Any]) -> Mapping[str, Any]:
    spec = record.get("spec", record)
    return spec if isinstance(spec, Mapping) else {}


def _commands(paths: SweepPaths, name: str) -> list[dict[str, str]]:
    spec = shlex.quote(str(paths.resolved_spec))
    folder = shlex.quote(paths.place)
    return [
        {"what": "run it again, under another name", "command": f"stockpot submit {spec} --set name={name}-again"},
        {"what": "the same numbers as text", "command": f"stockpot show {folder}"},
        {"what": "pair by pair", "command": f"stockpot compare {folder}"},
        {"what": "logs and tracebacks", "command": f"stockpot logs {folder}"},
        {"what": "this page", "command": f"stockpot report {folder}"},
    ]


def _seeds(spec: Mapping[str, Any]) -> dict[str, Any]:
    method, seeds, pipeline = (spec.get(key) or {} for key in ("method", "seeds", "pipeline"))
    found = {
        f"search ({method.get('type', '?')})": method.get("seed"),
        "tuning": seeds.get("tune"),
        "final step": seeds.get("test"),
        "data": pipeline.get("seed_data"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _hashes(source: Source, record: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    file = source.paths.resolved_spec
    if file.is_file():
        rows.append({"what": file.name, "hash": hashlib.sha256(file.read_bytes()).hexdigest()})
    for name, origin in (record.get("sources") or {}).items():
        rows.append({"what": f"base model {name}", "hash": str(origin.get("hash") or "unknown")})
    for candidate in source.state.candidates:
        if candidate.get("hash"):
            what = candidate.get("run") or candidate.get("soup") or ""
            rows.append({"what": f"{candidate['role']} {what}".strip(), "hash": str(candidate["hash"])})
    for soup in source.state.soups.values():
        rows += [
            {"what": f"ingredient {ingredient['run']} of {soup.id}", "hash": str(ingredient["hash"])}
            for ingredient in soup.ingredients
            if ingredient.get("hash")
        ]
    return [{"what": str(redact(row["what"])), "hash": row["hash"]} for row in rows]


def _drivers(source: Source) -> list[dict[str, Any]]:
    drivers: list[dict[str, Any]] = []
    for event in source.events:
        if event.kind == "driver_started":
            known = {key: event.body.get(key) for key in ("host", "pid", "version")}
            drivers.append({**known, "start": event.time, "end": None, "how": None, "last": event.time})
        elif drivers:
            drivers[-1]["last"] = event.time
            if event.kind == "driver_ended":
                drivers[-1].update(end=event.time, how=event.body.get("reason"))
    for place, driver in enumerate(drivers):
        if driver["how"] is None:
            driver["how"] = "at work" if source.driver and place == len(drivers) - 1 else "was killed"
    return drivers


def _ledger(source: Source) -> dict[str, Any]:
    kinds = Counter(event.kind for event in source.events)
    deleted = [event.body for event in source.events if event.kind == "checkpoint_deleted"]
    segments = source.paths.segments
    openings = [event for event in source.events if event.kind == "test_opened"]
    return {
        "events": len(source.events),
        "last": source.state.seq,
        "kinds": dict(kinds),
        "segments": len(list(segments.iterdir())) if segments.is_dir() else 0,
        "first_at": source.events[0].time if source.events else None,
        "last_at": source.events[-1].time if source.events else None,
        "deleted_checkpoints": len(deleted),
        "deleted_bytes": sum(body.get("bytes") or 0 for body in deleted),
        "openings": [
            {
                "by": event.body.get("by"),
                "time": event.time,
                "candidates": event.body.get("candidates") or [],
                "metrics": event.body.get("metrics") or [],
            }
            for event in openings
        ],
    }
