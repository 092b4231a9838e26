"""`check`: validate a sweep file and say what it would run."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from sweeps.commands.places import refuse_idle_insecure, sweep_file
from sweeps.words import unit_of

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

FIRST_SECONDS, LINE_SECONDS = 1.0, 10.0
"""A search for duplicates says how far it is after so long, and this often where no person watches."""


def check(arguments: argparse.Namespace) -> int:
    """Validate a sweep file and say what it would run, and what that needs; nothing is written."""
    from sweeps.data import check_data
    from sweeps.describe import describe
    from sweeps.load import load_file

    refuse_idle_insecure(arguments)
    loaded = load_file(sweep_file(arguments), arguments.sets, fetch=arguments.data)
    if arguments.data:
        loaded = check_data(loaded)
    told = describe(loaded)
    told |= needs(loaded, arguments.address, data=arguments.data, insecure=arguments.insecure)
    told["warnings"] = [*loaded.warnings, *told["warnings"]]
    if arguments.json:
        print(json.dumps(told, indent=2, allow_nan=False))
        return 0
    print(_describe(told, here=arguments.address is None))
    where = [] if arguments.address is None else ["--address", arguments.address]
    where += ["--insecure"] if arguments.insecure else []
    words = [arguments.file, *where, *(f"--set={text}" for text in arguments.sets)]
    print(f"next: stockpot submit {shlex.join(words)}")
    return 0


def needs(loaded: LoadedSweep, address: str | None, *, data: bool, insecure: bool = False) -> dict[str, Any]:
    """The dry run and its `warnings`, as JSON; with `data` also `rows` of each split, and `duplicates`.

    Args:
        loaded: the sweep; its data were read where `data` is given.
        address: a Ray cluster's; None for this machine.
        data: whether to use all rows.
        insecure: also of a cluster that lets everybody in.
    """
    from pipelines.config import DPOConfig, FineTuneConfig, RagConfig

    config = loaded.spec.pipeline
    if isinstance(config, RagConfig) and data:
        from sweeps.rag_data import needs_rag

        return needs_rag(config)
    if not isinstance(config, FineTuneConfig):
        empty: dict[str, Any] = {"memory": None, "disk": None, "splits": None, "warnings": []}
        return empty | ({"rows": None, "duplicates": None} if data else {})
    from sweeps.dryrun import dry_run, machines
    from sweeps.secret_values import names_of

    where = machines(address, names_of(loaded.spec.env), insecure=insecure)
    if not data:
        return dry_run(loaded, where, here=address is None)
    from pipelines.splits import load_splits
    from sweeps.doubles import doubles

    splits = load_splits(config.datasets, config.seed_data)
    found = dry_run(loaded, where, splits, here=address is None)
    found["rows"] = {name: len(splits.rows(name)) for name in ("train", "tune", "select", "test")}
    progress = Compared(sys.stderr)
    found["duplicates"], warnings = doubles(config, splits, progress)
    progress.close()
    found["warnings"] += warnings
    if isinstance(config, DPOConfig):
        from evaluators.preference import longer_chosen

        shares = {name: longer_chosen(splits.rows(name)) for name in ("train", "tune", "select", "test")}
        found["longer_chosen"] = {name: share for name, share in shares.items() if math.isfinite(share)}
    return found


class Compared:
    """Says on a stream how far the search for duplicates is: one line that is written over, or a line now and then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._person = stream.isatty()
        self._next = time.monotonic() + FIRST_SECONDS

    def __call__(self, done: int, total: int) -> None:
        """So many rows of so many."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + (0.5 if self._person else LINE_SECONDS)
            text = f"comparing rows: {done:,} of {total:,}"
            self._stream.write(f"\r{text}" if self._person else f"{text}\n")
            self._stream.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._person:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def _describe(told: Mapping[str, Any], *, here: bool) -> str:
    """What `check` prints for people."""
    unit = unit_of(told["pipeline"])
    trials = "trials until the hours are up" if told["trials"] is None else _count(told["trials"], "trial")
    seeds = "" if told["seeds"] == 1 else f", {told['seeds']} seeds each"
    space = "" if told["configurations"] is None else f" ({_count(told['configurations'], 'configuration')})"
    hours = "" if told["hours"] is None else f", at most {told['hours']:g} h"
    beside = "" if told["baseline"] is None else f" beside the baseline {told['baseline']}"
    lines = [
        f"{told['name']}: no mistakes",
        f"  trials   {trials}{beside}{seeds}{hours}, {told['method']} over {_count(told['parameters'], 'parameter')}{space}",
        f"  metric   {', '.join('{name} ({direction})'.format(**metric) for metric in told['metrics'])}",
    ]
    if told["recipe"] is not None:
        values = ", ".join(f"{key} {value}" for key, value in told["recipe"]["filled"].items())
        lines.append(f"  recipe   {told['recipe']['name']} fills in {values or 'nothing: the file says it all'}")
    if told["covers"] is not None:
        parts = (f"{' '.join(names)} by {model}" for model, names in told["covers"].items() if names)
        lines.append(f"  search   {'; '.join(parts)}")
    if told["rungs"] is not None:
        rungs = ", ".join(f"{_count(rung['runs'], 'run')} to {rung['resource']}" for rung in told["rungs"])
        lines.append(f"  runs     {rungs} {unit}: about {told['resource']} {unit} in all")
    if told["soup"] is not None:
        over = f"over the best {told['soup']['top']}"
        if "phases" in told["soup"]:
            over = "from the best run: {phases} phases of {retrainings} retrainings, to {sparsity:g} zeros".format(
                **told["soup"]
            )
        lines.append(f"  soup     {told['soup']['method']}, {over}")
    if told["splits"] is not None:
        from sweeps.commands.needs import lines as told_needs

        lines += told_needs(told, here=here)
    elif told["pipeline"] == "rag":
        lines.append("  rows     check --data reads corpus and questions")
    elif "rows" in told:
        lines.append("  rows     the pipeline reads its own")
    lines.append(f"  folder   {told['folder']}")
    lines += [f"  track    {each['type']}: {each['sends']}, to {each['to']}" for each in told["track"]]
    lines += [f"  warning  {warning}" for warning in told["warnings"]]
    return "\n".join(lines)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
