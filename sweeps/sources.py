"""`sweep://NAME/{best|soup|TRIAL}`: weights that another sweep made, as a path and a hash.

The other sweep's ledger is folded, never written. NAME is a name under the storage, or a folder.

Example:
    >>> resolve_source("sweep://gsm8k-lora/soup", storage=Path("stockpot-runs"), folder=Path("."))
    Source(path='/.../stockpot-runs/gsm8k-lora/soups/...', hash='9f86...')
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.local import SWEEP
from sweeps.paths import SweepPaths
from sweeps.problems import close, show

if TYPE_CHECKING:
    from sweeps.state import RunState, SweepState


@dataclass(frozen=True)
class Source:
    """Weights on disk.

    Attributes:
        path: absolute folder of a PEFT adapter or a model.
        hash: SHA-256 over its safetensors files, names and contents.
    """

    path: str
    hash: str


class SourceError(ValueError):
    """A `sweep://` name that leads nowhere; the message says what there is."""


def resolve_source(text: str, storage: Path, folder: Path) -> Source:
    """Path and hash of what `sweep://NAME/WHAT` means now.

    Args:
        text: the name.
        storage: where the sweeps lie.
        folder: what a relative NAME that is a folder is relative to.

    Raises:
        SourceError: if there is no such sweep, or it has no such weights (yet).
    """
    name, _, what = text.removeprefix(SWEEP).rstrip("/").rpartition("/")
    if not text.startswith(SWEEP) or not name or not what:
        raise SourceError(f"{show(text)} is not sweep://NAME/best, sweep://NAME/soup or sweep://NAME/TRIAL")
    paths = _find(name, storage, folder)
    state = _read(paths)
    if what == "soup":
        place = _soup(paths, state)
    elif what == "best":
        place = _checkpoint(paths, _best(paths, state))
    else:
        place = _checkpoint(paths, _trial(paths, state, what))
    if not place.is_dir():
        raise SourceError(f"{text} means {place}, which is not there any more")
    return Source(str(place), weights_hash(place))


def _find(name: str, storage: Path, folder: Path) -> SweepPaths:
    places = (SweepPaths.of(storage, name), SweepPaths((folder / Path(name).expanduser()).resolve()))
    for paths in places:
        if paths.resolved_spec.is_file():
            return paths
    names = [entry.name for entry in storage.iterdir() if entry.is_dir()] if storage.is_dir() else []
    guess = close(name, names)
    mend = f"did you mean '{guess}'? " if guess else ""
    raise SourceError(f"there is no sweep '{name}' under {storage}; {mend}NAME is a sweep's name or its folder")


def _read(paths: SweepPaths) -> SweepState:
    from sweeps.ledger import Ledger, LedgerError
    from sweeps.state import fold

    try:
        ledger = Ledger.read(paths.root)
    except LedgerError as error:
        raise SourceError(str(error)) from None
    try:
        return fold(ledger.events())
    finally:
        ledger.close()


def _soup(paths: SweepPaths, state: SweepState) -> Path:
    done = [soup.finished for soup in state.soups.values() if soup.finished is not None]
    if not done:
        raise SourceError(f"the sweep '{paths.name}' has no finished soup; stockpot soup {paths.name} makes one")
    place = Path(done[-1]["folder"])
    return place if place.is_absolute() else paths.root / place


def _best(paths: SweepPaths, state: SweepState) -> RunState:
    from sweeps.load import load_resolved

    loaded = load_resolved(paths.resolved_spec)
    sign = 1.0 if loaded.direction == "minimize" else -1.0
    ranked: list[tuple[int, float, int, RunState]] = []
    for run in state.runs.values():
        scored = {
            resource: sign * report.scores[loaded.metric].value
            for resource, report in run.reports.items()
            if loaded.metric in report.scores and math.isfinite(report.scores[loaded.metric].value)
        }
        if scored and run.phase != "failed":
            rung = max(scored)
            ranked.append((-rung, scored[rung], run.order, run))
    if not ranked:
        raise SourceError(f"the sweep '{paths.name}' has no scored run yet")
    return min(ranked, key=lambda row: row[:3])[3]


def _trial(paths: SweepPaths, state: SweepState, what: str) -> RunState:
    found = [run for run in state.runs.values() if run.trial == what or run.trial.split("-")[0] == what]
    if not found:
        guess = close(what, {run.trial for run in state.runs.values()} | {"best", "soup"})
        mend = f"; did you mean '{guess}'?" if guess else "; write best, soup, or a trial of stockpot show"
        raise SourceError(f"the sweep '{paths.name}' has no trial '{what}'{mend}")
    return min(found, key=lambda run: (-max(run.reports, default=0), run.seed))


def _checkpoint(paths: SweepPaths, run: RunState) -> Path:
    from sweeps.trial import Attempt, Run

    kept = [report for report in run.reports.values() if report.checkpoint is not None and not report.deleted]
    if not kept:
        raise SourceError(f"no checkpoint of {run.id} in the sweep '{paths.name}' was kept")
    newest = max(kept, key=lambda report: report.resource)
    return paths.attempt(Attempt(Run(run.trial, run.seed), newest.attempt)) / str(newest.checkpoint)


def weights_hash(folder: Path) -> str:
    """SHA-256 (hex) over the model's safetensors files of a folder, names and contents; optimizer state is no weights."""
    digest = hashlib.sha256()
    files = sorted(path for path in folder.glob("*.safetensors") if path.name != "optimizer.safetensors")
    if not files:
        raise SourceError(f"{folder} holds no safetensors weights")
    for path in files:
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
