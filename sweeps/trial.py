"""Identity: trial (one configuration), run (trial, seed), attempt (run, n), lease (what a backend executes)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, integral floats kept apart from integers.

    Raises:
        ValueError: on NaN or infinity, which no configuration may hold.
        TypeError: on anything JSON has no form for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def trial_id(order: int, config: Mapping[str, Any]) -> str:
    """`<4-digit order>-<8 hex of the configuration's canonical JSON>`."""
    return f"{order:04d}-{config_hash(config)[:8]}"


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the configuration's canonical JSON."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()


@dataclass(frozen=True, order=True)
class Run:
    """A trial with a seed."""

    trial: str
    seed: int

    @property
    def id(self) -> str:
        """`<trial>/seed-<s>`: what ledgers, soups and tables call a run."""
        return f"{self.trial}/seed-{self.seed}"

    @classmethod
    def parse(cls, text: str) -> Run:
        """The inverse of `id`."""
        trial, _, seed = text.partition("/seed-")
        return cls(trial, int(seed))


@dataclass(frozen=True, order=True)
class Attempt:
    """One try at a run; reports of any attempt but the newest are dropped."""

    run: Run
    n: int

    @property
    def id(self) -> str:
        """`<trial>/seed-<s>/attempt-<n>`."""
        return f"{self.run.id}/attempt-{self.n}"


@dataclass(frozen=True)
class Lease:
    """What a backend executes once: an attempt from a checkpoint towards its milestones.

    Attributes:
        id: unique in the sweep, `<trial>-s<seed>-a<attempt>-l<n>`, fit for a Ray Tune trial id and a file name.
        attempt: the attempt that owns the folder.
        config: the trial's resolved pipeline configuration.
        from_resource: resource of the start checkpoint, 0 to begin.
        from_checkpoint: absolute folder of the start checkpoint.
        milestones: ascending resources still ahead, up to the pipeline's total.
        replay: the start checkpoint's own report never reached the ledger: report it first.
        changes: what a retry changed against the file (halved micro batch), shown in the tables.
    """

    id: str
    attempt: Attempt
    config: Mapping[str, Any]
    milestones: tuple[int, ...]
    from_resource: int = 0
    from_checkpoint: str | None = None
    replay: bool = False
    changes: Mapping[str, Any] | None = None


def finite(value: float | None) -> bool:
    """Whether a number is there and finite."""
    return value is not None and math.isfinite(value)
