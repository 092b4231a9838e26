"""`soup`: make and judge a soup from what a finished or stopped sweep has."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from sweeps.commands.places import UsageError, find_sweep

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep
    from sweeps.spec import SoupConfig


def soup(arguments: argparse.Namespace) -> int:
    """Make a soup, judge it on `test` (counted as an opening), and tell its story."""
    from sweeps.commands.tables import print_sweep, sweep_record
    from sweeps.final import judge_soup
    from sweeps.ledger import Ledger
    from sweeps.load import load_resolved
    from sweeps.progress import ProgressView
    from sweeps.soup import make_soup

    paths = find_sweep(arguments.name, arguments.storage)
    loaded = load_resolved(paths.resolved_spec)
    config = _config(arguments, loaded)
    ledger = Ledger.open(paths.root)
    try:
        with ProgressView(sys.stderr if arguments.json else sys.stdout) as view:
            from sweeps.runner import RayBackend

            backend = RayBackend(loaded, paths, arguments.address, view.on_message)
            try:
                made = make_soup(loaded, ledger, paths, backend, config, view.on_message)
                if made is not None:
                    judge_soup(loaded, ledger, paths, backend, made, view.on_message)
            finally:
                backend.close()
    finally:
        ledger.close()
    arguments.status = 0 if made is not None else 1
    if arguments.json:
        record = {"status": arguments.status, "soup": made.id if made is not None else None, **sweep_record(paths)}
        print(json.dumps(record, indent=2, allow_nan=False))
    elif made is not None:
        print_sweep(paths)
    return int(arguments.status)


def _config(arguments: argparse.Namespace, loaded: LoadedSweep) -> SoupConfig:
    """The file's `soup` section with what the command line changes.

    Raises:
        UsageError: for an unknown method or fewer than two runs.
    """
    from pipelines.soups import SOUPS
    from sweeps.problems import unknown
    from sweeps.spec import SoupConfig

    config = loaded.spec.soup or SoupConfig()
    if arguments.method is not None and arguments.method not in SOUPS:
        raise UsageError(f"--method: {unknown(arguments.method, list(SOUPS))}")
    if arguments.top is not None and arguments.top < 2:
        raise UsageError(f"--top must be at least 2 to make a soup, but got {arguments.top}")
    changes = {"method": arguments.method, "top": arguments.top}
    return config.model_copy(update={key: value for key, value in changes.items() if value is not None})
