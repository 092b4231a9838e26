"""Folders that ride to remote storage whole or not at all: the checkpoints and soups that a ledger's events speak of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.finetune.checkpoint import COMPLETE
from sweeps.ledger import Ledger
from sweeps.paths import SweepPaths
from sweeps.trial import Attempt, Run

SOUP = "soup.json"


@dataclass(frozen=True)
class Bundle:
    """A folder that rides whole or not at all.

    Attributes:
        folder: relative to the sweep's.
        marker: the file that goes last, and is removed first.
        gone: whether it was deleted instead.
    """

    folder: str
    marker: str
    gone: bool = False

    @property
    def mark(self) -> str:
        """The marker's name below the sweep's folder."""
        return f"{self.folder}/{self.marker}"


def bundles(kind: str, body: Mapping[str, Any], paths: SweepPaths) -> Iterator[Bundle]:
    """The folders that an event speaks of, made or deleted."""
    if kind == "phase":
        yield from bundles(body["kind"], body["body"], paths)
    elif kind == "soup_finished" and body.get("folder"):
        yield Bundle(body["folder"], SOUP)
    elif kind in ("reported", "decided") and body.get("checkpoint"):
        attempt = Attempt(Run.parse(body["run"]), body.get("checkpoint_attempt", body["attempt"]))
        yield Bundle(_below(paths, paths.attempt(attempt) / body["checkpoint"]), COMPLETE)
    elif kind == "checkpoint_deleted":
        folder = paths.checkpoint(Attempt(Run.parse(body["run"]), body["attempt"]), body["resource"])
        yield Bundle(_below(paths, folder), COMPLETE, gone=True)


def told_of(paths: SweepPaths) -> list[Bundle]:
    """What has become of every folder that a ledger speaks of.

    Raises:
        LedgerError: when the ledger can't be read.
    """
    ledger = Ledger.read(paths.root)
    try:
        found = {
            bundle.folder: bundle for event in ledger.events() for bundle in bundles(event.kind, event.body, paths)
        }
    finally:
        ledger.drop()
    return list(found.values())


def _below(paths: SweepPaths, folder: Path) -> str:
    return folder.relative_to(paths.root).as_posix()


def files_in(folder: Path) -> list[Path]:
    """Files of a bundle's folder, below it, that are no left-overs; sorted."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    return sorted(path for path in found if ".work" not in path.relative_to(folder).parts)
