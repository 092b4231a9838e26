"""`show` and `compare`, and what a driver's end prints."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from sweeps.commands.places import UsageError, find_sweep, word_for
from sweeps.paths import SweepPaths

if TYPE_CHECKING:
    from sweeps.leaderboard import Leaderboard
    from sweeps.state import SweepState


def show(arguments: argparse.Namespace) -> int:
    """The leaderboard, the soup's story and the verdicts."""
    from sweeps.leaderboard import to_csv

    paths = find_sweep(arguments.name, arguments.storage)
    if arguments.top is not None and arguments.top < 1:
        raise UsageError(f"--top must be at least 1, but got {arguments.top}")
    if arguments.json:
        print(json.dumps(sweep_record(paths, arguments.top), indent=2, allow_nan=False))
    elif arguments.csv:
        print(to_csv(_read(paths, arguments.top)[1]), end="")
    else:
        print_sweep(paths, arguments.top)
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Each sweep's best runs against the best of all, paired on stored item scores."""
    from sweeps.commands.comparison import compare_sweeps, comparison_text

    if arguments.top < 2:
        raise UsageError(f"--top must be at least 2 to compare anything, but got {arguments.top}")
    sweeps = [find_sweep(name, arguments.storage) for name in arguments.names]
    if len({paths.root for paths in sweeps}) < len(sweeps):
        raise UsageError("the same sweep is named twice")
    comparison = compare_sweeps(sweeps, arguments.top)
    if arguments.json:
        record = {
            "metric": comparison.metric,
            "direction": comparison.direction,
            "rows": [row.record() for row in comparison.rows],
        }
        print(json.dumps(record, indent=2, allow_nan=False))
    else:
        print(comparison_text(comparison))
    return 0
