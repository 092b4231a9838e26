"""`track`: tell a sweep's trackers what they were not told, from the ledger: after an outage, or long after the sweep."""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from typing import TYPE_CHECKING

from sweeps.commands.places import UsageError, find_sweep, word_for

if TYPE_CHECKING:
    from sweeps.paths import SweepPaths
    from sweeps.spec import SweepSpec
    from sweeps.track_spec import TrackConfig


def track(arguments: argparse.Namespace) -> int:
    """Send everything that a tracker lacks; what it has already is not sent again."""
    from sweeps.load import load_resolved
    from sweeps.track_rules import destination, missing
    from sweeps.tracking import environment

    paths = find_sweep(arguments.name, arguments.storage)
    spec = load_resolved(paths.resolved_spec).spec
    entries = _entries(spec, paths, arguments.to)
    if not entries:
        raise UsageError(
            f"{paths.name} names no tracker; `stockpot track {word_for(paths)} --to tensorboard` sends it to one"
        )
    for entry in entries:
        if (message := missing(entry.type)) is not None:
            raise UsageError(message)
    os.environ.update(environment())
    status = 0
    for entry in entries:
        count, failure = _send(entry, spec, paths)
        where = f"{entry.type}: {destination(entry, paths)}"
        print(
            f"{where}: {failure}"
            if failure
            else f"{where}: {count} things told"
            if count
            else f"{where}: knows everything"
        )
        status = 1 if failure else status
    return status


def _entries(spec: SweepSpec, paths: SweepPaths, kind: str | None) -> list[TrackConfig]:
    """The file's trackers; the one of a kind, with its defaults where the file does not name it."""
    from pydantic import TypeAdapter

    from sweeps.track_rules import EXPOSED, URI_VARIABLE, exposed, placed
    from sweeps.track_spec import TrackConfig

    if kind is None:
        return list(spec.track)
    named = [entry for entry in spec.track if entry.type == kind]
    if not named and kind == "mlflow" and exposed(os.environ):
        raise UsageError(f"{URI_VARIABLE} in the environment {EXPOSED}")
    adapter: TypeAdapter[TrackConfig] = TypeAdapter(TrackConfig)
    return named or [
        adapter.validate_python(entry) for entry in placed([adapter.validate_python({"type": kind})], paths.root, paths)
    ]


def _send(entry: TrackConfig, spec: SweepSpec, paths: SweepPaths) -> tuple[int, str]:
    """How many things were told, and what went wrong, in a line."""
    from sweeps.ledger import Ledger, LedgerError
    from sweeps.lock import LockHeld
    from sweeps.secret_values import Masks, values_of
    from sweeps.trackers import build_tracker
    from sweeps.trackers.sender import Sender, alone, described

    masks = Masks(values_of(spec.env))
    try:
        with alone(paths, entry.type, 0.0), closing(Ledger.read(paths.root)) as ledger:
            sender = Sender(paths, entry, build_tracker(entry), masks)
            count = sender.send(ledger)
            sender.conclude()
            return count, ""
    except LockHeld:
        return 0, "its driver is telling it already"
    except LedgerError:
        raise
    except Exception as error:  # whatever a tracker's package raises is told, not shown as ours
        return 0, f"failed, and can be tried again: {described(error, masks)}"
