"""Every path of a sweep. Nobody else joins strings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sweeps.trial import Attempt, Run

DEFAULT_STORAGE = "./stockpot-runs"


@dataclass(frozen=True)
class SweepPaths:
    """Where a sweep keeps things: `<storage>/<name>/`.

    Attributes:
        root: the sweep's folder.
        phase: the phase of a soup whose soups are meant, `sparse-1/phase-2`; empty for the sweep's own.
    """

    root: Path
    phase: str = ""

    @classmethod
    def of(cls, storage: str | os.PathLike[str], name: str) -> SweepPaths:
        """The sweep `name` under `storage`, absolute."""
        return cls(Path(storage).expanduser().resolve() / name)

    @property
    def name(self) -> str:
        """The sweep's name: its folder's."""
        return self.root.name

    @property
    def resolved_spec(self) -> Path:
        """The spec as read and resolved; a sweep can be repeated from it alone."""
        return self.root / "sweep.resolved.json"

    @property
    def ledger(self) -> Path:
        """The live ledger (SQLite)."""
        return self.root / "ledger.sqlite"

    @property
    def segments(self) -> Path:
        """Folder of immutable numbered ledger segments."""
        return self.root / "ledger"

    @property
    def lock(self) -> Path:
        """Held by the one driver."""
        return self.root / "driver.lock"

    @property
    def stop_request(self) -> Path:
        """Its existence asks the driver to stop."""
        return self.root / "stop.request"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    @property
    def checklist(self) -> Path:
        """The reproducibility checklist."""
        return self.root / "checklist.md"

    @property
    def logs(self) -> Path:
        """Folder of logs."""
        return self.root / "logs"

    def log(self, trial: str) -> Path:
        """A trial's own log; `driver` for the driver's."""
        return self.logs / f"{trial}.log"

    def run(self, run: Run) -> Path:
        """Folder of a run."""
        return self.root / "trials" / run.trial / f"seed-{run.seed}"

    def attempt(self, attempt: Attempt) -> Path:
        """Folder of an attempt."""
        return self.run(attempt.run) / f"attempt-{attempt.n}"

    def checkpoint(self, attempt: Attempt, resource: int) -> Path:
        """Folder of a checkpoint."""
        return self.attempt(attempt) / checkpoint_name(resource)

    def soup(self, soup: str) -> Path:
        """Folder of a soup: its weights and `soup.json`."""
        return self.root / "soups" / self.phase / soup

    def samples(self, owner: str) -> Path:
        """Folder of what benchmarks keep of their documents in the final step; a trial's are in its attempt's folder."""
        return self.root / "samples" / owner

    @property
    def memo(self) -> Path:
        """The memo shared by the sweeps of one storage."""
        return self.root.parent / ".memo"

    @property
    def cards(self) -> Path:
        """Metric cards, shared by the sweeps of one storage."""
        return self.root.parent / ".cards"


def checkpoint_name(resource: int) -> str:
    """`checkpoint-<resource>`."""
    return f"checkpoint-{resource}"


def cache_dir() -> Path:
    """Converted models and folded adapters: `$STOCKPOT_CACHE`, else `$XDG_CACHE_HOME/stockpot`, else `~/.cache/stockpot`."""
    own = os.environ.get("STOCKPOT_CACHE")
    if own:
        return Path(own).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stockpot"
