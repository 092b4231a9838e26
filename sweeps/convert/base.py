"""What `convert` asks for and gives, and the book in which every key of a foreign file is entered once."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.data.files import is_hub_id
from sweeps.convert.write import line_of
from sweeps.problems import show
from sweeps.starter.naming import free_name, written_path

Kind = Literal["carried", "changed", "left"]


@dataclass(frozen=True)
class Foreign:
    """A file of another tool.

    Attributes:
        name: as the user named it.
        data: its top mapping.
    """

    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What the user asks `convert` for.

    Attributes:
        config: the file.
        output: the sweep file to be written, absolute.
        sweep: Axolotl's `--sweep` file.
        base_model: to be used whatever the file says.
        data: likewise, for train.
        type: of the rows; None: seen.
        fields: part of a row -> its column.
        import_path: `module:Class` of a pipeline of the user's own.
        total: resource of a whole run of that pipeline.
    """

    config: Foreign
    output: Path
    sweep: Foreign | None = None
    base_model: str | None = None
    data: str | None = None
    type: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    import_path: str | None = None
    total: int | None = None


@dataclass(frozen=True)
class Entry:
    """What became of a key of the foreign file.

    Attributes:
        file: which file, as the user named it.
        key: its dotted path there.
        value: what it was given.
        kind: carried as it is, changed in meaning, or left out.
        ours: what the sweep file says instead; None when nothing needs to be said.
        why: the difference or the reason; may be empty for what was carried.
    """

    file: str
    key: str
    value: Any
    kind: Kind
    ours: str | None
    why: str

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"file": self.file, "key": self.key, "value": self.value, "ours": self.ours, "why": self.why}


@dataclass(frozen=True)
class Addition:
    """A line of the sweep file that the foreign file does not have."""

    ours: str
    why: str


@dataclass(frozen=True)
class Conversion:
    """A sweep file, and what became of what it was made from.

    Attributes:
        data: the sweep file's content.
        entries: every leaf of the foreign files that says something, once.
        added: what the sweep file says beyond that.
        advice: what to do by hand next.
    """

    data: dict[str, Any]
    entries: tuple[Entry, ...]
    added: tuple[Addition, ...]
    advice: tuple[str, ...] = ()


class Book:
    """Entries of one foreign file. Each leaf that says something is entered exactly once; `close` enters the others."""

    def __init__(self, foreign: Foreign) -> None:
        self.file = foreign.name
        self.leaves = dict(leaves(foreign.data))
        self.entries: dict[str, Entry] = {}

    def enter(self, key: str, kind: Kind, ours: str | None = None, why: str = "") -> None:
        """Enter a leaf, or all leaves below a key, with what became of it.

        Raises:
            RuntimeError: if one is entered twice: a fault of the converter.
        """
        for leaf in [leaf for leaf in self.leaves if within(leaf, key)]:
            if leaf in self.entries:
                raise RuntimeError(f"{self.file}: {leaf} is entered twice")
            self.entries[leaf] = Entry(self.file, leaf, self.leaves[leaf], kind, ours, why)

    def carried(self, key: str, ours: str | None = None, why: str = "") -> None:
        """The sweep file says the same, or need not say it."""
        self.enter(key, "carried", ours, why)

    def changed(self, key: str, ours: str | None, why: str) -> None:
        """The sweep file says something like it."""
        self.enter(key, "changed", ours, why)

    def left(self, key: str, why: str) -> None:
        """The sweep file can't say it."""
        self.enter(key, "left", None, why)

    def carried_rest(self, key: str, ours: str | None = None, why: str = "") -> None:
        """`carried`, for what is not entered yet of the leaves below a key."""
        for leaf in self.open(key):
            self.carried(leaf, ours, why)

    def changed_rest(self, key: str, ours: str | None, why: str) -> None:
        """`changed`, for what is not entered yet of the leaves below a key."""
        for leaf in self.open(key):
            self.changed(leaf, ours, why)

    def open(self, key: str = "") -> list[str]:
        """Leaves at or below a key that are not entered yet."""
        return [leaf for leaf in self.leaves if leaf not in self.entries and within(leaf, key)]

    def close(self, why: Callable[[str, Any], str]) -> tuple[Entry, ...]:
        """Enter what nobody has entered as left out; entries in the file's order."""
        for leaf in self.open():
            self.left(leaf, why(leaf, self.leaves[leaf]))
        return tuple(self.entries[leaf] for leaf in self.leaves)


def within(leaf: str, key: str) -> bool:
    """Whether a dotted path is a key, or lies below it."""
    return not key or leaf == key or leaf.startswith((f"{key}.", f"{key}["))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything that is said; a list of plain values is one leaf, an empty value none."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    elif value is not None and value != []:
        yield path, value


def said(value: Any) -> Any:
    """A foreign file's value as the tool reads it: YAML 1.1, in which `yes`, `On` and `True` are booleans."""
    if isinstance(value, Mapping):
        return {key: said(item) for key, item in value.items()}
    if isinstance(value, list):
        return [said(item) for item in value]
    if isinstance(value, str):
        word = value.lower()
        if value in (word, word.capitalize(), word.upper()):
            return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(
                word, None if word == "null" else value
            )
    return value


def sweep_name(file: str) -> str:
    """A name for the sweep that no other has, after the file it is made from."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(file).name.rsplit(".", 1)[0]).strip("-._")
    return free_name(stem[:80] or "converted")


def near(path: str, output: Path) -> str:
    """A path as the sweep file writes it where something lies there; a hub id, or what is not here, stays."""
    whole = os.path.abspath(os.path.expanduser(path))
    if os.path.isabs(path) or not (os.path.exists(whole) or glob.glob(whole, recursive=True)):
        return path
    relative = written_path(whole, output.parent)
    return f"./{relative}" if is_hub_id(relative) else relative


def says(path: str, value: Any) -> str:
    """A key and its value as one line of the sweep file."""
    return f"{path}: {line_of(value)}"


def brief(value: Any) -> str:
    """A foreign value for people."""
    return value if isinstance(value, str) and len(value) <= 60 else show(value)
