"""Checkpoints of runs as the engine sees them: which are whole, how big they are, and away with them.

A run's checkpoints lie in its attempts' folders. A newer attempt may start from an older attempt's checkpoint.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sweeps.paths import SweepPaths
from sweeps.trial import Run

_ATTEMPT = re.compile(r"attempt-(\d+)")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """One that claims to be whole: its `complete.json` is there, its files were not read."""

    run: str
    attempt: int
    resource: int
    folder: str


class Checkpoints(Protocol):
    """What the engine asks of the place where checkpoints lie."""

    def listed(self, run: Run) -> list[Checkpoint]:
        """A run's, the highest resource first, and of equal ones the newest attempt's."""
        ...

    def whole(self, checkpoint: Checkpoint) -> bool:
        """Whether every file has its size and hash."""
        ...

    def size(self, checkpoint: Checkpoint) -> int:
        """Bytes."""
        ...

    def delete(self, checkpoint: Checkpoint) -> None:
        """It is no checkpoint any more when this returns; its files go in the background."""
        ...

    def ended(self, run: Run) -> None:
        """A run will not go on: what it kept for itself between milestones goes in the background."""
        ...

    def close(self) -> None:
        """Wait for what goes in the background."""
        ...


def newest_whole(
    checkpoints: Checkpoints, run: Run, at_most: int, on_torn: Callable[[Checkpoint], None]
) -> Checkpoint | None:
    """The one with the highest resource up to `at_most`; torn ones are passed over, and told to `on_torn`."""
    for checkpoint in checkpoints.listed(run):
        if checkpoint.resource > at_most:
            continue
        if checkpoints.whole(checkpoint):
            return checkpoint
        on_torn(checkpoint)
    return None


class DiskCheckpoints:
    """In the sweep's folder, in the format of `pipelines.finetune.checkpoint`."""

    def __init__(self, paths: SweepPaths) -> None:
        self._paths = paths
        self._remover: ThreadPoolExecutor | None = None

    def listed(self, run: Run) -> list[Checkpoint]:
        """A run's, the highest resource first, and of equal ones the newest attempt's."""
        found = [
            Checkpoint(run.id, attempt, resource, str(folder))
            for attempt, parent in _numbered(self._paths.run(run), _ATTEMPT)
            for resource, folder in _numbered(parent, _CHECKPOINT)
            if (folder / "complete.json").is_file()
        ]
        return sorted(found, key=lambda c: (c.resource, c.attempt), reverse=True)

    def whole(self, checkpoint: Checkpoint) -> bool:
        """Whether every file has its size and hash."""
        from pipelines.finetune.checkpoint import is_whole

        return is_whole(Path(checkpoint.folder))

    def size(self, checkpoint: Checkpoint) -> int:
        """Bytes of its files."""
        total = 0
        for path in Path(checkpoint.folder).rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
        return total

    def delete(self, checkpoint: Checkpoint) -> None:
        """`complete.json` goes at once, the rest in a thread of its own."""
        folder = Path(checkpoint.folder)
        (folder / "complete.json").unlink(missing_ok=True)
        self._later().submit(shutil.rmtree, folder, ignore_errors=True)

    def ended(self, run: Run) -> None:
        """Interim checkpoints go, in a thread of its own."""
        from pipelines.finetune.interim import forget_all

        self._later().submit(forget_all, self._paths.run(run))

    def _later(self) -> ThreadPoolExecutor:
        if self._remover is None:
            self._remover = ThreadPoolExecutor(1, thread_name_prefix="stockpot-remove")
        return self._remover

    def close(self) -> None:
        """Wait for what goes in the background."""
        if self._remover is not None:
            self._remover.shutdown(wait=True)
            self._remover = None


def _numbered(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[int, Path]]:
    if folder.is_dir():
        for path in folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match:
                yield int(match[1]), path
