"""What `init` asks for, and what a starter gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What the user asks `init` for.

    Attributes:
        data: path or hub id, as given.
        output: the file to be written, absolute.
        base_model: as given; None for the default.
        type: `--type`.
        fields: `--field-PART` -> column.
    """

    data: str
    output: Path
    base_model: str | None = None
    type: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Starter:
    """A sweep file, and what was found on the way.

    Attributes:
        text: the file.
        found: sentences for the user: what the data are, what was chosen.
    """

    text: str
    found: tuple[str, ...]
