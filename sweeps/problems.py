"""A user's mistakes: what each one says, where it stands, and the one error that carries them all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN = 12
"""Legal values listed at most when a close match was found."""


@dataclass(frozen=True)
class Problem:
    """One mistake.

    Attributes:
        place: dotted path in the file: `method.type`, `parameters.lora_r`.
        message: the value, what is legal, the mend, in one line.
        line: counts from 1; None where the file has no place for it.
        column: counts from 1.
        via: `--set budget.trials=x` when the command line, not the file, holds the value.
    """

    place: str
    message: str
    line: int | None = None
    column: int | None = None
    via: str | None = None

    def __str__(self) -> str:
        where = self.via or (f"line {self.line}, column {self.column}" if self.line is not None else "")
        head = f"{self.place} ({where})" if self.place and where else (self.place or where)
        return f"{head}: {self.message}" if head else self.message


class SpecError(RuntimeError):
    """Everything that is wrong with a sweep file, at once; `str()` is the message to print.

    Attributes:
        problems: in the file's order.
        file: the file as the user named it.
    """

    def __init__(self, problems: Iterable[Problem], file: str = "") -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems), key=_order))
        self.file = file
        super().__init__(self.problems, file)

    def __str__(self) -> str:
        count = len(self.problems)
        head = (
            f"{self.file or 'the sweep file'}: {count} {'mistake' if count == 1 else 'mistakes'}; nothing was written"
        )
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


def _order(problem: Problem) -> tuple[bool, int, int]:
    return problem.line is None, problem.line or 0, problem.column or 0


def show(value: Any) -> str:
    """A value as it is quoted in a message: YAML's words, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, dict):
        body = ", ".join(f"{key}: {show(item)}" for key, item in list(value.items())[:3])
        return "{" + body + (", ..." if len(value) > 3 else "") + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(show(item) for item in value[:4]) + (", ...]" if len(value) > 4 else "]")
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def close(word: str, legal: Iterable[str]) -> str | None:
    """The legal word that was probably meant, or None."""
    words = {name.lower(): name for name in legal}
    found = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    return words[found[0]] if found else None


def unknown(word: str, legal: Sequence[str], mend: str | None = None) -> str:
    """`'tpee' is unknown; did you mean 'tpe'? (grid, random, tpe)`.

    Args:
        word: what stands in the file.
        legal: every word that may stand there.
        mend: a better sentence than did-you-mean, when one is known.
    """
    names = sorted(legal)
    guess = None if mend else close(word, names)
    if len(names) <= SHOWN or not (mend or guess):
        listed = ", ".join(names)
    else:
        near = [] if mend else difflib.get_close_matches(word, names, n=4, cutoff=0.4)
        listed = ", ".join([*near, "..."]) if near else ""
    middle = mend or (f"did you mean '{guess}'?" if guess else "")
    return f"{show(word)} is unknown" + (f"; {middle}" if middle else "") + (f" ({listed})" if listed else "")
