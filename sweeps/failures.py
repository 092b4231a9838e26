"""Typed failures of trials, each with its own budget and answer."""

from __future__ import annotations

import errno
import re
import traceback as tb
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sweeps.secret_values import masked

if TYPE_CHECKING:
    from sweeps.spec import OnFailure

FailureKind = Literal["user", "oom", "nan", "node", "stall", "unknown"]

INFRASTRUCTURE: frozenset[FailureKind] = frozenset({"node", "stall"})
"""Kinds that are no fault of the trial; they share a budget."""
_LOST = {
    "ActorDiedError",
    "ActorPlacementGroupRemoved",
    "ActorUnschedulableError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectLostError",
    "ObjectStoreFullError",
    "OutOfDiskError",
    "RayActorError",
    "RpcError",
    "WorkerCrashedError",
    "WorkerLost",
}
"""Errors, Ray's and ours, where a process, a node or its object store is at fault, by name; what derives from them counts too."""
_FULL_DISK = re.compile(r"no space left|disk quota|disk is full|\[Errno (28|122)\]|os error (28|122)\b", re.IGNORECASE)
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended without a result.

    Attributes:
        kind: decides the answer: `user` is never retried; `oom` halves the micro batch; `nan` stops the trial; `node` and
            `stall` go again from the newest whole checkpoint within `max_restarts`; `unknown` is retried once. What one
            kind has used up is not taken from another.
        message: one line for the tables.
        traceback: for the ledger and `stockpot logs`.
    """

    kind: FailureKind
    message: str
    traceback: str = ""

    @property
    def signature(self) -> str:
        """What makes two failures the same error, for `abort_after_same_error`: numbers and addresses don't count."""
        return f"{self.kind}: {_NUMBERS.sub('#', self.message)}"


def full_disk(failure: Failure) -> bool:
    """Whether a failure is a disk, or a quota, that is full; Python, Rust's libraries and SQLite each say it their way."""
    return failure.kind == "unknown" and _FULL_DISK.search(failure.message) is not None


def classify(error: BaseException) -> Failure:
    """The failure an exception stands for.

    Reads `pipelines.stage`'s own classes, torch's and Python's out-of-memory errors by name (without importing torch),
    and Ray's actor deaths; errors in names, types and imports are the user's code; everything else is `unknown`.
    Message and traceback are without the secrets that this process knows: a failure travels into the ledger.
    """
    told = getattr(error, "failure", None)
    if isinstance(told, Failure):  # another worker's
        return told
    names, whole = {cls.__name__ for cls in type(error).__mro__}, error
    if "RayTaskError" in names and isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause  # what the task raised; the error around it begins with the process
        names = {cls.__name__ for cls in type(error).__mro__}
    said = str(error)
    lines = masked(said).strip().splitlines()
    message = f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
    low = said.lower()
    kind: FailureKind = "unknown"
    if "OutOfDiskError" in names:  # Ray names the object, and nothing else
        message = "OutOfDiskError: the object store of a node is full, and so is the disk that it spills to"
    if "UserError" in names:
        kind, message = "user", lines[0] if lines else message
    elif "Diverged" in names:
        kind, message = "nan", lines[0] if lines else message
    elif (
        names & {"OutOfMemory", "OutOfMemoryError", "MemoryError"}
        or ("RuntimeError" in names and ("out of memory" in low or "can't allocate memory" in low))
        or getattr(error, "errno", None) == errno.ENOMEM
        or "NODE_OUT_OF_MEMORY" in said  # Ray ended the worker, as its node had hardly any left
    ):
        kind = "oom"
    elif names & _LOST:
        kind = "node"
    elif names & {"ImportError", "ModuleNotFoundError", "AttributeError", "TypeError", "NameError", "KeyError"}:
        kind = "user"
    return Failure(kind, message[:500], masked("".join(tb.format_exception(whole))))


@dataclass(frozen=True)
class Remedy:
    """What follows a failure.

    Attributes:
        retry: whether the run goes again, from its newest whole checkpoint.
        changes: what the next attempt's configuration changes against the file, earlier changes included.
    """

    retry: bool
    changes: Mapping[str, Any] | None = None


def remedy(failure: Failure, policy: OnFailure, earlier: Sequence[Failure], config: Mapping[str, Any]) -> Remedy:
    """The answer to a failure of a run.

    Args:
        failure: what happened.
        policy: the file's `on_failure`.
        earlier: the run's failures before this one, each of which it was restarted after.
        config: the failed attempt's configuration, changes included.
    """
    budget = INFRASTRUCTURE if failure.kind in INFRASTRUCTURE else {failure.kind}
    if sum(before.kind in budget for before in earlier) >= policy.max_restarts:
        return Remedy(False)
    if failure.kind == "oom" and policy.oom == "halve_micro_batch":
        changes = halved(config)
        return Remedy(changes is not None, changes)
    if failure.kind in INFRASTRUCTURE:
        return Remedy(policy.node == "retry")
    if failure.kind == "unknown":
        return Remedy(not any(before.kind == "unknown" for before in earlier))
    return Remedy(False)


def halved(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Half the micro batch with the accumulation that keeps rows a step the same; None at micro batch 1 or without one."""
    micro = config.get("micro_batch_size")
    if not isinstance(micro, int) or micro <= 1:
        return None
    rows = micro * int(config.get("gradient_accumulation_steps", 1))
    half = next(size for size in range(micro // 2, 0, -1) if rows % size == 0)
    return {"micro_batch_size": half, "gradient_accumulation_steps": rows // half}


class SameError:
    """Whether the first trials to end all failed with the same error, and nothing was ever scored.

    Args:
        bound: so many failures in a row from the start are too many.
        scored: whether there is a result already.
    """

    def __init__(self, bound: int, scored: bool) -> None:
        self._bound = bound
        self._signatures: list[str] | None = None if scored else []

    def scored(self) -> None:
        """There is a result: the sweep as such works."""
        self._signatures = None

    def too_many(self, failure: Failure) -> bool:
        """Count a run's last failure; True when the sweep should stop."""
        if self._signatures is None:
            return False
        self._signatures.append(failure.signature)
        if len(set(self._signatures)) > 1:
            self._signatures = None
            return False
        return len(self._signatures) >= self._bound
