"""The contract of a tracker: told by one process, in the order of the ledger; everything it raises is waited out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Value = bool | int | float | str


@dataclass(frozen=True)
class SweepFacts:
    """The sweep, as trackers may know it; texts hold no secret.

    Attributes:
        name: its name.
        key: of this one sweep, the same after every resume.
        folder: the sweep's, absolute; what a tracker keeps on the disk goes there.
        metrics: full names of what is optimised.
        parameters: dotted paths of what is swept.
        settings: pipeline, method, budget and the like, for reading.
    """

    name: str
    key: str
    folder: str
    metrics: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts:
    """One run.

    Attributes:
        id: `<trial>/seed-<s>`.
        trial: its trial.
        seed: its seed.
        parameters: dotted path -> value, of what is swept.
    """

    id: str
    trial: str
    seed: int
    parameters: Mapping[str, Value] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A name fit for a folder: `<trial>-seed-<s>`."""
        return self.id.replace("/", "-")


class Tracker(Protocol):
    """Where numbers go. `notes` is kept from driver to driver: a tracker puts there what it must find again (JSON)."""

    def open(self, sweep: SweepFacts, notes: dict[str, Any]) -> None:
        """Connect. With notes of an earlier process the sweep goes on where that one was."""
        ...

    def began(self, run: RunFacts, time: float) -> None:
        """A run has its first lease, or goes on. Said again for one that was said before, it makes nothing twice.

        Args:
            run: it.
            time: seconds since the epoch.
        """
        ...

    def reported(self, run: RunFacts, resource: int, values: Mapping[str, float], time: float) -> None:
        """Numbers of a run at a resource, by full name (`tune/loss`, `tune/loss.se`, `train/loss`, `cost/seconds`)."""
        ...

    def ended(self, run: RunFacts, state: str, reason: str, time: float) -> None:
        """A run is over: `finished`, `stopped` or `failed`."""
        ...

    def told(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Numbers of the whole sweep; `step` counts trials that have a result."""
        ...

    def concluded(self, state: str, time: float) -> None:
        """The driver has ended: `finished`, `interrupted`, `aborted`; nothing follows but what a resume brings."""
        ...

    def flush(self) -> None:
        """Bring everything said so far to where it goes; raises where that is not possible."""
        ...

    def close(self) -> None:
        """Let go."""
        ...
