"""Typed failures of trials, each with its own budget and answer."""

from __future__ import annotations

import traceback as tb
from dataclasses import dataclass
from typing import Literal

FailureKind = Literal["user", "oom", "nan", "node", "stall", "unknown"]


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended without a result.

    Attributes:
        kind: decides the answer: `user` is never retried; `oom` halves the micro batch; `nan` stops the trial; `node` and
            `stall` go again from the newest whole checkpoint within `max_restarts`; `unknown` is retried once.
        message: one line for the tables.
        traceback: for the ledger and `stockpot logs`.
    """

    kind: FailureKind
    message: str
    traceback: str = ""

    @property
    def signature(self) -> str:
        """What makes two failures the same error, for `abort_after_same_error`."""
        return f"{self.kind}: {self.message}"


def classify(error: BaseException) -> Failure:
    """The failure an exception stands for.

    Reads `pipelines.stage`'s own classes, torch's and Python's out-of-memory errors by name (without importing torch),
    and Ray's actor deaths; everything else is `unknown`.
    """
    names = {cls.__name__ for cls in type(error).__mro__}
    text = "".join(tb.format_exception(error))
    lines = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
    low = str(error).lower()
    kind: FailureKind = "unknown"
    if "UserError" in names:
        kind, message = "user", lines[0] if lines else message
    elif "Diverged" in names:
        kind, message = "nan", lines[0] if lines else message
    elif names & {"OutOfMemory", "OutOfMemoryError", "MemoryError"} or (
        "RuntimeError" in names and ("out of memory" in low or "can't allocate memory" in low)
    ):
        kind = "oom"
    elif names & {"RayActorError", "ActorDiedError", "ActorUnavailableError", "WorkerCrashedError", "NodeDiedError"}:
        kind = "node"
    elif names & {"ImportError", "ModuleNotFoundError", "AttributeError", "TypeError", "NameError", "KeyError"}:
        kind = "user"
    return Failure(kind, message[:500], text)
