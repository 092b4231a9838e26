"""What `init` asks for, and what a starter gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

QUESTION_PARTS = ("question", "answer", "spans", "documents", "id")
"""What `pipeline.questions.field_...` names, and `--field-...` of `init rag`."""


@dataclass(frozen=True)
class Request:
    """What the user asks `init` for.

    Attributes:
        data: path or hub id, as given; of `rag` the corpus.
        output: the file to be written, absolute.
        base_model: as given; None for the default.
        type: `--type`.
        fields: `--field-PART` -> column.
        questions: of `rag`, as given.
    """

    data: str
    output: Path
    base_model: str | None = None
    type: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    questions: str | None = None


@dataclass(frozen=True)
class Starter:
    """A sweep file, and what was found on the way.

    Attributes:
        text: the file.
        found: sentences for the user: what the data are, what was chosen.
    """

    text: str
    found: tuple[str, ...]


COLUMN = 40
"""Where comments begin."""


def laid_out(what: str, lines: Sequence[tuple[str, str]]) -> str:
    """The text of a file: a head that says what it is, and lines with their comments in one column.

    Args:
        what: the file is, such as `A sweep of supervised fine-tunes`.
        lines: (code, what it is for; empty for no comment).
    """
    head = (
        f"# {what}, written by `stockpot init`. `stockpot explain KEY` says what a key means;\n"
        "# `stockpot schema --help` how an editor completes and checks this file.\n"
    )
    return head + "".join((f"{code.ljust(COLUMN)} # {said}" if said else code) + "\n" for code, said in lines)
