"""What a data set's columns mean: a shape of row (`type`) and the keys that name its parts. Pure: rows in, answer out.

A shape is guessed from the columns' names and held against the rows themselves, so that a guess which the rows do not
bear is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.config import DataFile
from pipelines.data.base import BadRow
from pipelines.data.examples import Row, build_row

MESSAGES = ("messages", "conversation", "conversations", "chat", "dialog", "dialogue")
PROMPTS = ("prompt", "instruction", "question", "query", "input", "problem", "source", "request", "user", "q")
COMPLETIONS = ("completion", "response", "output", "answer", "target", "solution", "assistant", "reply", "summary", "a")
TEXTS = ("text", "content", "document", "body")
FIELDS = {
    "chat": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "preference": ("chosen", "rejected", "prompt"),
    "unpaired_preference": ("label", "completion", "prompt"),
}
"""`type` -> what `field_...` names of it."""
KNOWN = {"messages": MESSAGES, "prompt": PROMPTS, "completion": COMPLETIONS, "text": TEXTS}
MOSTLY = 0.5
"""A shape that fewer rows than this bear is none."""


@dataclass(frozen=True)
class Shape:
    """A shape of row and the columns that fill it.

    Attributes:
        type: as `DataFile.type`.
        fields: `field_...` settings that differ from their defaults.
    """

    type: str
    fields: Mapping[str, str] = field(default_factory=dict)

    def data(self, path: str, ds_type: str | None = None) -> DataFile:
        """The data set of this shape."""
        return DataFile.model_validate({"path": path, "ds_type": ds_type, "type": self.type, **self.fields})

    @property
    def columns(self) -> dict[str, str]:
        """Part of a row -> its column."""
        return {part: self.fields.get(f"field_{part}", part) for part in FIELDS[self.type]}


@dataclass
class Fit:
    """How rows bear a shape.

    Attributes:
        rows: those that do.
        bad: places and reasons of the first that don't.
        broken: how many don't.
    """

    rows: list[Row] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    broken: int = 0

    @property
    def share(self) -> float:
        """Sound rows, of all."""
        whole = len(self.rows) + self.broken
        return len(self.rows) / whole if whole else 0.0


class NoShape(ValueError):
    """No shape fits; the message says why and what to do."""


def fit(shape: Shape, records: Sequence[tuple[str, Mapping[str, Any] | BadRow]]) -> Fit:
    """Hold rows against a shape.

    Args:
        shape: the guess.
        records: (place for people, the row or why it can't be read).
    """
    data = shape.data("data")
    found = Fit()
    for place, values in records:
        try:
            if isinstance(values, BadRow):
                raise values
            found.rows.append(build_row(values, data))
        except BadRow as error:
            found.broken += 1
            if len(found.bad) < 3:
                found.bad.append(f"{place}: {error}")
    return found


def recognise(columns: Sequence[str], records: Sequence[tuple[str, Mapping[str, Any] | BadRow]]) -> tuple[Shape, Fit]:
    """The first shape that the columns' names suggest and most rows bear.

    Raises:
        NoShape: if there is none.
    """
    best: Fit | None = None
    for shape in _guesses(columns, records):
        found = fit(shape, records)
        if found.share >= MOSTLY:
            _refuse_lost_input(shape, columns, records)
            return shape, found
        if best is None or found.share > best.share:
            best = found
    raise NoShape(_explain(columns, records, best))


def _guesses(columns: Sequence[str], records: Sequence[tuple[str, Any]]) -> Iterator[Shape]:
    lists = [name for name in columns if _mostly(records, name, _is_messages)]
    for name in (*_named(MESSAGES, columns), *lists):
        yield _shape("chat", messages=name)
    texts = [name for name in columns if _mostly(records, name, _is_text)]
    for prompt in _named(PROMPTS, texts):
        for completion in _named(COMPLETIONS, texts):
            yield _shape("prompt_completion", prompt=prompt, completion=completion)
    for name in _named(TEXTS, texts):
        yield _shape("text", text=name)
    if len(columns) == 1 and texts:
        yield _shape("text", text=texts[0])


def _shape(kind: str, **columns: str) -> Shape:
    return Shape(kind, {f"field_{part}": name for part, name in columns.items() if name != part})


def _named(known: Sequence[str], columns: Sequence[str]) -> list[str]:
    """The columns of these names, the most usual name first; case and blanks around do not count."""
    plain: dict[str, list[str]] = {}
    for name in columns:
        plain.setdefault(name.strip().lower(), []).append(name)
    return [name for word in known for name in plain.get(word, [])]


def _mostly(records: Sequence[tuple[str, Any]], column: str, test: Any) -> bool:
    values = [row[column] for _, row in records if isinstance(row, Mapping) and column in row]
    return sum(map(test, values)) > MOSTLY * len(values) if values else False


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_messages(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith("[{") and '"role"' in value
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]


def _refuse_lost_input(shape: Shape, columns: Sequence[str], records: Sequence[tuple[str, Any]]) -> None:
    """Alpaca's `input` is a part of the prompt: without it most of its instructions can't be followed."""
    if shape.columns.get("prompt", "").lower() != "instruction":
        return
    for name in _named(("input",), columns):
        if name in shape.columns.values():
            continue
        filled = sum(_is_text(row.get(name)) for _, row in records if isinstance(row, Mapping))
        if filled:
            raise NoShape(
                f"these are Alpaca's columns, and {name!r} is filled in {filled} of the {len(records)} rows looked at; a "
                f"prompt is one column here: write instruction and input into one named 'prompt', or leave {name!r} out "
                f"with {_how('prompt_completion', prompt=shape.columns['prompt'], completion=shape.columns['completion'])}"
            )


def _how(kind: str, **columns: str) -> str:
    import shlex

    return shlex.join([f"--type={kind}", *(f"--field-{part}={name}" for part, name in columns.items())])


def _explain(columns: Sequence[str], records: Sequence[tuple[str, Any]], best: Fit | None) -> str:
    """What was seen, what is wanted, and the way out."""
    if best is not None and best.bad:
        return f"{len(best.rows)} of the {len(records)} rows looked at can be used; {'; '.join(best.bad)}"
    broken = [f"{place}: {value}" for place, value in records if isinstance(value, BadRow)]
    if broken and len(broken) > MOSTLY * len(records):
        return f"{len(broken)} of the {len(records)} rows looked at are broken; {'; '.join(broken[:3])}"
    counts = Counter(name for _, row in records if isinstance(row, Mapping) for name in row)
    names = [name for name in columns if counts[name] or not records]
    seen = ", ".join(map(repr, names[:20])) + (f", ... {len(names)} in all" if len(names) > 20 else "")
    wanted = "\n".join(f"    {part + ':':<12}{', '.join(words)}" for part, words in KNOWN.items())
    lower = {name.strip().lower() for name in names}
    if {"chosen", "rejected"} <= lower:
        hint = (
            "chosen and rejected are preference pairs: stockpot init dpo DATA; to fine-tune on the chosen answers alone:\n    "
            + _how("preference", chosen="chosen", rejected="rejected")
        )
    elif _sharegpt(records):
        hint = "ShareGPT's {from, value} is not read; write messages as {role, content}"
    else:
        ways = [_how("prompt_completion", prompt="COLUMN", completion="COLUMN")]
        ways += [_how("chat", messages="COLUMN"), _how("text", text="COLUMN")]
        hint = "say what the columns are, with one of\n    " + "\n    ".join(ways)
    return (
        f"its columns can't be told apart\n  there are: {seen or 'none'}\n  names that are known, in any case:\n"
        f"{wanted}\n  {hint}"
    )


def _sharegpt(records: Sequence[tuple[str, Any]]) -> bool:
    values = [value for _, row in records if isinstance(row, Mapping) for value in row.values()]
    return any(
        isinstance(v, list) and v and isinstance(v[0], Mapping) and {"from", "value"} <= set(v[0]) for v in values
    )
