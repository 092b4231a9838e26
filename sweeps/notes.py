"""Which sweeps were submitted to a backend from here: one small file each under `~/.stockpot/detached/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sweeps.records import write_aside

NOTES = Path("~/.stockpot/detached")


@dataclass(frozen=True)
class Note:
    """A sweep that was submitted to a backend from here.

    Attributes:
        name: the sweep's.
        address: the backend's; empty is this machine.
        storage: folder of sweeps there.
        job: the newest job that drives it.
        machines: what a backend that raises clusters was asked for (`sweeps.commands.backends.Machines`).
    """

    name: str
    address: str
    storage: str
    job: str
    machines: Mapping[str, Any] = field(default_factory=dict)


def read_note(name: str) -> Note | None:
    """The note of a sweep; None where it was not submitted from here."""
    if not name or "/" in name or name in (".", ".."):
        return None
    try:
        record: dict[str, Any] = json.loads((NOTES.expanduser() / f"{name}.json").read_text(encoding="utf-8"))
        return Note(**record)
    except (OSError, ValueError, TypeError, RuntimeError):
        return None


def forget_note(name: str) -> None:
    """As if a sweep had not been submitted from here."""
    (NOTES.expanduser() / f"{name}.json").unlink(missing_ok=True)


def write_note(note: Note) -> None:
    """Note a sweep; an older note of the name is replaced."""
    folder = NOTES.expanduser()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_aside(folder / f"{note.name}.json", json.dumps(asdict(note), indent=1))
