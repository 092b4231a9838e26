"""`check`: validate a sweep file and say what it would run."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sweeps.commands.places import sweep_file

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep


def check(arguments: argparse.Namespace) -> int:
    """Validate a sweep file and say what it would run; nothing is written."""
    from sweeps.data import check_data
    from sweeps.load import describe, load_file

    loaded = load_file(sweep_file(arguments), arguments.sets, fetch=arguments.data)
    rows = None
    if arguments.data:
        loaded = check_data(loaded)
        rows = _rows(loaded)
    told = describe(loaded)
    if arguments.data:
        told["rows"] = rows
    if arguments.json:
        print(json.dumps(told, indent=2, allow_nan=False))
        return 0
    print(_describe(told))
    print(f"next: stockpot submit {shlex.join([arguments.file, *(f'--set={text}' for text in arguments.sets)])}")
    return 0


def _rows(loaded: LoadedSweep) -> dict[str, int] | None:
    """Rows a split, for a pipeline that has datasets."""
    from pipelines.config import SFTConfig
    from pipelines.splits import load_splits

    config = loaded.spec.pipeline
    if not isinstance(config, SFTConfig):
        return None
    splits = load_splits(config.datasets, config.seed_data)
    return {name: len(splits.rows(name)) for name in ("train", "tune", "select", "test")}


def _describe(told: Mapping[str, Any]) -> str:
    """What `check` prints for people."""
    unit = "steps" if told["pipeline"] == "sft" else "units"
    trials = "trials until the hours are up" if told["trials"] is None else _count(told["trials"], "trial")
    seeds = "" if told["seeds"] == 1 else f", {told['seeds']} seeds each"
    space = "" if told["configurations"] is None else f" ({_count(told['configurations'], 'configuration')})"
    hours = "" if told["hours"] is None else f", at most {told['hours']:g} h"
    lines = [
        f"{told['name']}: no mistakes",
        f"  trials   {trials}{seeds}{hours}, {told['method']} over {_count(told['parameters'], 'parameter')}{space}",
        f"  metric   {', '.join('{name} ({direction})'.format(**metric) for metric in told['metrics'])}",
    ]
    if told["covers"] is not None:
        parts = (f"{' '.join(names)} by {model}" for model, names in told["covers"].items() if names)
        lines.append(f"  search   {'; '.join(parts)}")
    if told["rungs"] is not None:
        rungs = ", ".join(f"{_count(rung['runs'], 'run')} to {rung['resource']}" for rung in told["rungs"])
        lines.append(f"  runs     {rungs} {unit}: about {told['resource']} {unit} in all")
    if told["soup"] is not None:
        lines.append(f"  soup     {told['soup']['method']}, over the best {told['soup']['top']}")
    if "rows" in told:
        rows = told["rows"]
        said = "the pipeline reads its own" if rows is None else ", ".join(f"{k} {n}" for k, n in rows.items())
        lines.append(f"  rows     {said}")
    lines.append(f"  folder   {told['folder']}")
    lines += [f"  warning  {warning}" for warning in told["warnings"]]
    return "\n".join(lines)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
