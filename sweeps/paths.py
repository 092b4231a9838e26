"""Every path of a sweep. Nobody else joins strings."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from sweeps.trial import Attempt, Run

DEFAULT_STORAGE = "./stockpot-runs"


@dataclass(frozen=True)
class SweepPaths:
    """Where a sweep keeps things: `<storage>/<name>/`.

    Attributes:
        root: the sweep's folder; of a sweep in remote storage its working folder on this machine, or a reader's copy.
        phase: the phase of a soup whose soups are meant, `sparse-1/phase-2`; empty for the sweep's own.
        url: where a sweep in remote storage lies, `s3://bucket/prefix/name`; empty for one in a folder.
    """

    root: Path
    phase: str = ""
    url: str = ""

    @classmethod
    def of(cls, storage: str | os.PathLike[str], name: str) -> SweepPaths:
        """The sweep `name` under `storage`, absolute; of remote storage where this machine works on it."""
        url = f"{str(storage).rstrip('/')}/{name}" if is_remote(storage) else ""
        return cls(storage_folder(storage) / name, url=url)

    @property
    def place(self) -> str:
        """Where the sweep lies, for people: its folder, or its URL."""
        return self.url or str(self.root)

    @property
    def working(self) -> SweepPaths:
        """Where this machine drives the sweep: itself, unless it is a reader's copy."""
        return SweepPaths.of(*self.url.rsplit("/", 1)) if self.url else self

    def placed(self, path: Path) -> str:
        """Where something of the sweep lies, for people."""
        return f"{self.url}/{path.relative_to(self.root).as_posix()}" if self.url else str(path)

    @property
    def read_copy(self) -> SweepPaths:
        """Where this machine keeps what it read of a sweep in remote storage that it does not drive."""
        return SweepPaths(cache_dir() / "storage" / slug(self.url.rpartition("/")[0]) / self.name, url=self.url)

    @property
    def lease(self) -> Path:
        """Which lease of remote storage the newest driver of this working folder held; see `sweeps.storage_lease`."""
        return self.root / "lease.json"

    @property
    def storage_lock(self) -> Path:
        """Held on this machine by whoever drives a sweep in remote storage."""
        return self.root / "storage.lock"

    @property
    def unsent(self) -> Path:
        """What of the working folder is not in remote storage yet, as its last driver left it; see `sweeps.riding`."""
        return self.root / "unsent.json"

    @property
    def seen(self) -> Path:
        """Beside a reader's copy: who drives the sweep, as remote storage said when it was last asked."""
        return self.root / "driver.json"

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

    @property
    def trackers(self) -> Path:
        """Folder of what trackers were told already."""
        return self.root / "trackers"

    def tracker(self, kind: str) -> Path:
        """What a tracker was told already; its process holds the `.lock` beside it."""
        return self.trackers / f"{kind}.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files, where the file names no other folder."""
        return self.root / "tensorboard"

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


def is_remote(storage: str | os.PathLike[str]) -> bool:
    """Whether a storage, or a NAME, is a URL."""
    return "://" in str(storage)


def storage_folder(storage: str | os.PathLike[str]) -> Path:
    """The folder of a storage on this machine, absolute: itself, or where work goes on for remote storage."""
    if is_remote(storage):
        return work_dir() / slug(str(storage).rstrip("/"))
    return Path(storage).expanduser().resolve()


def slug(url: str) -> str:
    """A folder's name for a URL: readable, and another one for another URL."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", url).strip("-.")[:60]
    return f"{words}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def work_dir() -> Path:
    """Working folders of sweeps in remote storage: `$STOCKPOT_WORK`, else `~/.stockpot/work`."""
    own = os.environ.get("STOCKPOT_WORK")
    return Path(own).expanduser().resolve() if own else Path.home() / ".stockpot" / "work"


def cache_dir() -> Path:
    """Converted models and folded adapters: `$STOCKPOT_CACHE`, else `$XDG_CACHE_HOME/stockpot`, else `~/.cache/stockpot`."""
    own = os.environ.get("STOCKPOT_CACHE")
    if own:
        return Path(own).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stockpot"
