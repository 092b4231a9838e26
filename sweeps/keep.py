"""Which checkpoints stay: `keep:`, across the sweep.

* Protected whatever the disk says: the newest checkpoint of every run that waits, runs or will go again, and of the best
  runs at the highest rung (finalists and soup ingredients). Runs go by their configuration's mean over its seeds, all seeds
  of a finalist are protected, and a run goes on living while another seed of its configuration does, or is still to begin.
* A baseline's that is a trial is protected as well, for the final step.
* With several metrics the runs of the Pareto front that the final step would judge are protected as well.
* Kept while there is room: the newest of the best `keep.best` ended runs, and one older checkpoint of runs that go on, in
  case the newest is torn.
* Everything else goes. Past `disk_gb` what is kept only while there is room goes too: older ones first, then the worst runs'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sweeps.checkpoints import Checkpoint, Checkpoints
from sweeps.metrics import FRONT, ingredient_metric
from sweeps.pareto import representatives
from sweeps.standings import Standings
from sweeps.state import RunState
from sweeps.trial import Run, finite

if TYPE_CHECKING:
    from sweeps.spec import SweepSpec

GIGABYTE = 1e9


@dataclass(frozen=True)
class Sized:
    """A checkpoint and its bytes."""

    checkpoint: Checkpoint
    bytes: int


@dataclass(frozen=True)
class Holding:
    """A run's checkpoints.

    Attributes:
        found: newest first.
        live: whether the run, or another seed of its trial, waits, runs or will go again.
        finished: whether it reached the highest rung.
        rank: sort key among ended runs, smaller is better.
        order: its trial's order, the tie-break.
        vector: with several metrics, where it finished: all of them, smaller is better.
        front: whether it is protected as one of the front.
        baseline: whether it is the baseline's.
    """

    found: tuple[Sized, ...]
    live: bool
    finished: bool = False
    rank: tuple[float, ...] = ()
    order: int = 0
    vector: tuple[float, ...] | None = None
    front: bool = False
    baseline: bool = False


def surplus(holdings: Iterable[Holding], best: int, protected: int, limit: float | None) -> list[Sized]:
    """The checkpoints to delete.

    Args:
        holdings: all runs that have any.
        best: ended runs whose newest checkpoint is kept while there is room.
        protected: runs at the highest rung whose newest is kept in any case.
        limit: bytes at most, None without a limit.
    """
    gone: list[Sized] = []
    firm: list[Sized] = []
    spare: list[Sized] = []
    ended: list[Holding] = []
    for holding in holdings:
        if not holding.found:
            continue
        if holding.baseline and holding.finished:
            firm.append(holding.found[0])
            gone += holding.found[1:]
        elif holding.live:
            firm.append(holding.found[0])
            spare += holding.found[1:2]
            gone += holding.found[2:]
        else:
            ended.append(holding)
            gone += holding.found[1:]
    ended.sort(key=lambda holding: (holding.rank, holding.order))
    kept: list[Sized] = []
    for place, holding in enumerate(ended):
        newest = holding.found[0]
        if holding.finished and (place < protected or holding.front):
            firm.append(newest)
        elif place < best:
            kept.append(newest)
        else:
            gone.append(newest)
    if limit is not None:
        room = limit - sum(sized.bytes for sized in firm)
        for sized in [*kept, *spare]:
            room -= sized.bytes
            if room < 0:
                gone.append(sized)
    return gone


def with_front(holdings: Sequence[Holding]) -> list[Holding]:
    """The same, those of the Pareto front marked: at most `FRONT`, one a trial, as the final step takes them."""
    ended = [(holding.vector, holding.order, i) for i, holding in enumerate(holdings) if holding.vector is not None]
    ended.sort()
    chosen = representatives([vector for vector, _, _ in ended], [order for _, order, _ in ended], FRONT)
    members = {ended[k][2] for k in chosen}
    return [replace(holding, front=i in members) for i, holding in enumerate(holdings)]


class Keeper:
    """Watches which runs changed, and says what to delete.

    Args:
        spec: the sweep file.
        finalists: trials guaranteed to reach the total.
        standings: the sweep as the ledger has it.
        checkpoints: where they lie.
    """

    def __init__(self, spec: SweepSpec, finalists: int, standings: Standings, checkpoints: Checkpoints) -> None:
        soup = spec.soup.top if spec.soup is not None else 1
        guaranteed = finalists if spec.early_terminate.type != "none" else 1
        self._protected = max(soup, guaranteed * len(spec.seeds.tune))
        self._best = max(spec.keep.best or soup, 1)
        self._limit = None if spec.keep.disk_gb is None else spec.keep.disk_gb * GIGABYTE
        self._ranked_by = standings.metrics.index(ingredient_metric(spec, standings.metrics))
        self._standings = standings
        self._checkpoints = checkpoints
        self._changed: set[str] = set(standings.state.runs)
        self._held: dict[str, Holding] = {}
        self._sizes: dict[str, int] = {}
        self._torn: set[str] = set()

    def changed(self, run: str) -> None:
        """A run reported a checkpoint or changed its phase."""
        self._changed.add(run)

    def torn(self, checkpoint: Checkpoint) -> None:
        """This one was found torn: it protects nothing."""
        self._torn.add(checkpoint.folder)
        self._changed.add(checkpoint.run)

    def due(self) -> list[Sized]:
        """What to delete now, given all changes since the last call."""
        if not self._changed:
            return []
        runs = self._standings.state.runs
        if len(self._standings.seeds) > 1:
            changed = {runs[run].trial for run in self._changed}
            self._changed |= {run for run in self._held if runs[run].trial in changed}
        for run in self._changed:
            self._look(runs[run])
        all_of_them = self._limit is not None
        holdings = [h for run, h in self._held.items() if all_of_them or not h.live or run in self._changed]
        self._changed.clear()
        if self._standings.several:
            holdings = with_front(holdings)
        gone = surplus(holdings, self._best, self._protected, self._limit)
        for sized in gone:
            run = sized.checkpoint.run
            left = tuple(other for other in self._held[run].found if other.checkpoint != sized.checkpoint)
            self._sizes.pop(sized.checkpoint.folder, None)
            self._held[run] = replace(self._held[run], found=left)
            if not left:
                del self._held[run]
        return gone

    def _look(self, run: RunState) -> None:
        listed = [c for c in self._checkpoints.listed(Run(run.trial, run.seed)) if c.folder not in self._torn]
        if listed:
            self._held[run.id] = self._holding(
                run, [Sized(checkpoint, self._size(checkpoint)) for checkpoint in listed]
            )
        else:
            self._held.pop(run.id, None)

    def _size(self, checkpoint: Checkpoint) -> int:
        if checkpoint.folder not in self._sizes:
            self._sizes[checkpoint.folder] = self._checkpoints.size(checkpoint)
        return self._sizes[checkpoint.folder]

    def _holding(self, run: RunState, found: Sequence[Sized]) -> Holding:
        live = self._standings.unsettled(run.trial)
        rung = self._standings.rung(run)
        vector = None if rung is None else self._standings.vector(run, rung)
        broken = vector is None or any(value != value for value in vector)
        oriented = None if vector is None or broken else self._standings.oriented_vector(vector)
        whole = oriented is not None and all(map(finite, oriented))
        baseline = self._standings.is_baseline(run.trial)
        return Holding(
            found=tuple(found),
            live=live,
            finished=run.phase == "finished",
            rank=self._rank(run, rung, oriented),
            order=run.order,
            vector=oriented if self._standings.several and run.phase == "finished" and whole and not baseline else None,
            baseline=baseline,
        )

    def _rank(self, run: RunState, rung: int | None, oriented: tuple[float, ...] | None) -> tuple[float, ...]:
        """By rung, how many seeds are there, their mean, trial, and the run's own value."""
        if rung is None or oriented is None:
            return (0.0, 0.0, math.inf, run.order, math.inf)
        mean, seeds = self._standings.seed_mean(run.trial, rung, self._ranked_by)
        own = oriented[self._ranked_by]
        return (-self._standings.level(run.trial, rung), -seeds, mean, run.order, own)
