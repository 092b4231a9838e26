"""What a run keeps between its milestones, so that a lost worker or a stopped driver costs minutes and not the run.

An interim checkpoint is a checkpoint without scores, in the attempt's folder as `interim-<step>`. The driver knows nothing of it
and the ledger names none: a lease begins where the ledger says, and the pipeline itself goes on from what it finds further on.
As a run goes on bit by bit from a checkpoint, what it reports is the same with and without.

A newer attempt takes an older one's by renaming it into its own folder: a process that is cut off and runs on can't remove it any
more. At most one stays in a folder, and none once a milestone is reached or the run has ended.

Example:
    >>> task = gone_on(task, group)  # starts at interim-120 where there is one
    >>> interims = Interims(Path(task.folder), task.checkpoint_seconds)
    >>> if interims.due() and interims.has_room(10_000_000):
    ...     ...  # write interims.folder(step), aside first
    ...     interims.written(step, seconds=0.4)
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.finetune.checkpoint import is_whole
from pipelines.stage import Task

if TYPE_CHECKING:
    from pipelines.finetune.group import Group

PAUSE = 9.0
"""The next one is not begun before so many times what the newest one took: they cost at most a tenth of a run's time."""
ROOM = 2.0
"""None is written where less than so many times its size is free: the disk is for what is reported."""
_log = logging.getLogger(__name__)


class Interims:
    """When a run writes one, and which goes.

    Args:
        folder: the attempt's.
        seconds: of training between two of them; None for none.
    """

    def __init__(self, folder: Path, seconds: float | None) -> None:
        self._folder = folder
        self._seconds = seconds
        self._last = time.monotonic()
        self._took = 0.0
        self._warned = False

    def due(self) -> bool:
        """Whether it is time for one."""
        waited = time.monotonic() - self._last
        return self._seconds is not None and waited >= max(self._seconds, PAUSE * self._took)

    def has_room(self, size: int) -> bool:
        """Whether the disk has room for one of so many bytes; where it has not, the next is due after the same time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free
        if free >= ROOM * size:
            return True
        self.restart()
        if not self._warned:
            self._warned = True
            _log.warning("%.2f GB are free: no checkpoint between milestones, of %.2f GB", free / 1e9, size / 1e9)
        return False

    def restart(self) -> None:
        """Count from now: at the beginning, and after a milestone."""
        self._last = time.monotonic()

    def folder(self, step: int) -> Path:
        """Where the one of a step lies."""
        return self._folder / f"interim-{step}"

    def written(self, step: int, seconds: float) -> None:
        """One is in its place, and it took so long: the others go."""
        self._took = seconds
        self.restart()
        self.forget(but=step)

    def forget(self, but: int | None = None) -> None:
        """Remove this attempt's, all or all but one."""
        _remove(self._folder, but=None if but is None else self.folder(but))


def gone_on(task: Task, group: Group) -> Task:
    """The lease from the newest whole interim checkpoint, where one lies between its start and its next milestone.

    All processes of a group call it and get the same.
    """
    own = taken(task) if group.rank == 0 else 0
    step = int(group.sum([float(own)])[0])
    if not step:
        return task
    if group.rank == 0:
        print(f"going on from step {step}, where a checkpoint was kept on the way", flush=True)
    return replace(task, start=str(Path(task.folder) / f"interim-{step}"), start_resource=step)


def taken(task: Task) -> int:
    """Move the newest whole one of all attempts into the lease's own folder and remove the others; its step, 0 for none."""
    own, best = Path(task.folder), 0
    first = task.milestones[0] if task.milestones else 0
    found = [(int(path.name.removeprefix("interim-")), path) for path in own.parent.glob("*/interim-*")]
    for step, folder in sorted(found, reverse=True):
        if not task.start_resource < step < first:
            continue
        if not best and is_whole(folder) and _moved(folder, own / folder.name):
            best = step
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return best


def forget_all(run: Path) -> None:
    """Remove those of a run that will not go on; `run` has its attempts' folders."""
    for attempt in run.iterdir() if run.is_dir() else ():
        _remove(attempt)


def _remove(attempt: Path, but: Path | None = None) -> None:
    """Remove an attempt's, half-written ones too."""
    for folder in (*attempt.glob("interim-*"), *attempt.glob(".interim-*.tmp")):
        if folder != but:
            shutil.rmtree(folder, ignore_errors=True)


def _moved(folder: Path, place: Path) -> bool:
    """Whether it is at its place now; not where its owner, cut off but running, was faster and removed it."""
    if folder == place:
        return True
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    try:
        folder.rename(place)
    except OSError:
        return False
    return True
