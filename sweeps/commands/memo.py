"""`memo stats` and `memo prune`: what is stored of model calls, what it saved, and how to make it smaller."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sweeps.commands.places import UsageError
from sweeps.paths import SweepPaths

GIGABYTE = 1e9
DAY = 86400.0


def memo(arguments: argparse.Namespace) -> int:
    """`stats` or `prune`."""
    folder = SweepPaths.of(arguments.storage, "any").memo
    return _prune(arguments, folder) if arguments.action == "prune" else _stats(arguments, folder)


def _stats(arguments: argparse.Namespace, folder: Path) -> int:
    """What lies in it by kind, and what it has saved since it was made."""
    from pipelines.memo import FILE, LocalMemo

    kinds: dict[str, dict[str, Any]] = {}
    if (folder / FILE).is_file():
        with LocalMemo(folder) as opened:
            kinds = {kind: asdict(stats) for kind, stats in opened.kinds().items()}
    if arguments.kind:
        kinds = {kind: stats for kind, stats in kinds.items() if kind in arguments.kind}
    if arguments.json:
        print(json.dumps({"folder": str(folder), "kinds": kinds}, indent=2, allow_nan=False))
        return 0
    if not kinds:
        print(f"nothing is stored in {folder}")
        return 0
    rows: list[tuple[str, ...]] = [
        ("kind", "entries", "size", "oldest", "cost", "reused", "saved", "tokens saved", "price saved")
    ]
    rows += [_row(kind, stats) for kind, stats in kinds.items()]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        first, *others = row
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print("  ".join(cells).rstrip())
    print(f"in {folder}; cost and saved are computing time")
    return 0


def _row(kind: str, stats: Mapping[str, Any]) -> tuple[str, ...]:
    from sweeps.footprint import gigabytes
    from sweeps.words import duration

    saved = stats["saved"]
    return (
        kind,
        f"{stats['entries']:,}",
        gigabytes(stats["bytes"]),
        duration(time.time() - stats["oldest"]) if stats["oldest"] else "",
        duration(stats["cost"]["seconds"]),
        f"{stats['hits']:,}",
        duration(saved["seconds"]),
        f"{saved['tokens']:,}" if saved["tokens"] else "",
        f"{saved['price']:.2f}" if saved["price"] else "",
    )


def _prune(arguments: argparse.Namespace, folder: Path) -> int:
    """Delete by age, size or kind; refused while a sweep uses the memo."""
    from pipelines.upkeep import prune
    from sweeps.footprint import gigabytes

    if arguments.older_than is None and arguments.max_gb is None and not arguments.kind:
        raise UsageError(
            "memo prune: say what may go: --older-than DAYS, --max-gb N, --kind KIND (stockpot memo stats shows what there is)"
        )
    gone = prune(
        folder,
        older_than=None if arguments.older_than is None else arguments.older_than * DAY,
        most_bytes=None if arguments.max_gb is None else int(arguments.max_gb * GIGABYTE),
        kinds=tuple(arguments.kind),
    )
    if arguments.json:
        print(json.dumps({"folder": str(folder), **asdict(gone)}, indent=2))
    else:
        print(f"{gone.entries:,} entries of {gigabytes(gone.bytes)} are gone, {gigabytes(gone.left)} stay in {folder}")
    return 0
