"""Reading a sweep file: plain values, with the line and column of every key and value.

YAML as people expect it, not all that YAML can do: `1e-4` is a number, only `true` and `false` are booleans (`no` and
`on` stay text), nothing is a date, keys are always text. Duplicate keys, tabs, tags and anchors that loop are mistakes.
PyYAML scans and composes; values are made here from its nodes, so that one bad part does not hide the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from sweeps.problems import Problem, show

Place = tuple[str | int, ...]
"""Keys and list indexes from the top."""

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
MAX_DEPTH = 60

_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?\Z")


@dataclass(frozen=True)
class Position:
    """Line and column, counting from 1, or the command-line argument that a value came from."""

    line: int | None
    column: int | None
    via: str | None = None


@dataclass
class Document:
    """What a file says.

    Attributes:
        data: mappings, lists, text, numbers, booleans, None.
        values: where each value stands.
        keys: where each mapping's key stands.
        problems: mistakes found while reading; `data` holds the sound parts.
    """

    data: Any = None
    values: dict[Place, Position] = field(default_factory=dict)
    keys: dict[Place, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def at(self, path: Sequence[str | int], key: bool = False) -> Position:
        """Where a value (or its key) stands; the nearest enclosing one when the file does not hold it."""
        path = tuple(path)
        if key and path in self.keys:
            return self.keys[path]
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, Position(None, None))

    def problem(self, path: Sequence[str | int], message: str, key: bool = False, place: str | None = None) -> Problem:
        """A mistake at a path."""
        where = self.at(path, key)
        return Problem(dotted(path) if place is None else place, message, where.line, where.column, where.via)

    def override(self, path: Place, value: Any, via: str) -> None:
        """Forget the file's places under `path`: its value now comes from `via`."""
        for table in (self.values, self.keys):
            for known in [p for p in table if p[: len(path)] == path]:
                del table[known]
        for known in _paths(value, path):
            self.values[known] = self.keys[known] = Position(None, None, via)


def _paths(value: Any, path: Place) -> list[Place]:
    found = [path]
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += _paths(item, (*path, key))
    return found


def dotted(path: Sequence[str | int]) -> str:
    """`parameters.lora_r[2]`; the leading `pipeline.` of a parameter is not printed."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text.replace("parameters.pipeline.", "parameters.", 1)


class _Composer(yaml.SafeLoader):
    """PyYAML's node composer; notes tags, which it would otherwise hide in the node."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tags: list[tuple[str, yaml.Mark]] = []
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.tags.append((tag, event.start_mark))
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read(source: bytes) -> Document:
    """Read one YAML document. Mistakes come back in `problems`; nothing is raised."""
    document = Document()
    try:
        text = source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = source[: error.start].count(b"\n") + 1
        document.problems.append(Problem("", f"byte {error.start} is not UTF-8; save the file as UTF-8", line, 1))
        return document
    if len(text) > MAX_BYTES:
        document.problems.append(Problem("", f"{len(text):,} characters; a sweep file has at most {MAX_BYTES:,}"))
        return document
    try:
        composer = _Composer(text)
        node = composer.get_single_node()
    except yaml.MarkedYAMLError as error:
        document.problems.append(_syntax(error, text))
        return document
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        message = f"the character U+{_code(error.character):04X} may not stand in a YAML file; delete it"
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        document.problems.append(Problem("", message, line, column))
        return document
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        document.problems.append(Problem("", f"not YAML: {error}"))
        return document
    for tag, mark in composer.tags:
        shown = tag.replace("tag:yaml.org,2002:", "!!")
        mend = "the YAML tag " + show(shown) + " is not allowed; delete it (put text in quotes to keep it text)"
        document.problems.append(Problem("", mend, mark.line + 1, mark.column + 1))
    if node is not None:
        document.data = _Walk(document).value(node, (), ())
    return document


def _code(character: Any) -> int:
    return ord(character) if isinstance(character, str) else int(character)


_SYNTAX = (
    ("mapping values are not allowed", "a ': ' inside a value; put the value in quotes, or mend the indentation"),
    ("could not find expected ':'", "a key without ': ' after it, or a value that goes on at the wrong indentation"),
    ("expected <block end>", "the indentation does not fit the lines above"),
    ("expected ',' or '}'", "a '{' is not closed, or a ',' is missing"),
    ("expected ',' or ']'", "a '[' is not closed, or a ',' is missing"),
    ("but found '<stream end>'", "a '[' or '{' is not closed"),
    ("while scanning a tag", "text that starts with '!' needs quotes"),
    ("expected the node content", "a value is missing before this"),
    (
        "expected '<document start>'",
        "a line that fits neither the mapping above nor the one below; mend the indentation",
    ),
    ("found undefined alias", "this '*' names an anchor that is not there; put the text in quotes if it is none"),
    ("but found another document", "a second '---' document; a sweep file holds one"),
    ("found unexpected end of stream", "a quote is not closed"),
    ("found duplicate anchor", "this '&' anchor is there already; give it another name"),
    ("nested too deeply", f"nested more than {MAX_DEPTH} levels deep"),
    ("'@'", "text that starts with '@' needs quotes"),
    ("'`'", "text that starts with a backtick needs quotes"),
    ("'%'", "text that starts with '%' needs quotes"),
)


def _syntax(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
    said = " ".join(part for part in (error.context, error.problem) if part)
    row = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    if "'\\t'" in said or (mark and "\t" in row[: mark.column + 1]):
        message = "a tab; indent and separate with blanks only"
    else:
        message = next((mend for clue, mend in _SYNTAX if clue in said), f"not YAML: {said}")
    return Problem("", message, line, column)


class _Walk:
    """Turns nodes into values, noting where they stand."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def value(self, node: yaml.Node, path: Place, above: tuple[int, ...]) -> Any:
        """The value of a node; `above` holds the ids of the nodes it stands in."""
        self.nodes += 1
        position = _position(node)
        self.document.values[path] = position
        if id(node) in above:
            return self._wrong(path, "this alias stands inside its own anchor; write the values out")
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            if self.nodes == MAX_NODES + 1 or len(path) > MAX_DEPTH:
                self._wrong(path, "aliases blow the file up past its limits; write the values out")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*above, id(node)))
        if isinstance(node, yaml.SequenceNode):
            inside = (*above, id(node))
            return [self.value(item, (*path, index), inside) for index, item in enumerate(node.value)]
        self._text(node.value, path, position)
        return scalar(node.value) if isinstance(node, yaml.ScalarNode) and node.style is None else node.value

    def _mapping(self, node: yaml.MappingNode, path: Place, above: tuple[int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._wrong(path, "a key must be text", _position(key_node))
                continue
            key, here = key_node.value, (*path, key_node.value)
            if key == "<<" and key_node.style is None:
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            if key in found:
                first = self.document.keys[here].line
                self._wrong(here, f"stands twice; the first is on line {first}: delete one", _position(key_node))
                continue
            self.document.keys[here] = _position(key_node)
            self._text(key, here, _position(key_node))
            found[key] = self.value(value_node, here, above)
        for other in merged:
            self._merge(other, path, above, found)
        return found

    def _merge(self, node: yaml.Node, path: Place, above: tuple[int, ...], found: dict[str, Any]) -> None:
        if not isinstance(node, yaml.MappingNode) or id(node) in above:
            self._wrong(path, "'<<' takes an alias of a mapping, one that is not around it", _position(node))
            return
        for key_node, value_node in node.value:
            key = key_node.value
            if isinstance(key_node, yaml.ScalarNode) and key != "<<" and key not in found:
                self.document.keys[(*path, key)] = _position(key_node)
                found[key] = self.value(value_node, (*path, key), (*above, id(node)))

    def _text(self, text: str, path: Place, position: Position) -> None:
        odd = next((character for character in text if character == "\0" or "\ud800" <= character <= "\udfff"), None)
        if odd is not None:
            self._wrong(path, f"the character U+{ord(odd):04X} may not stand in text; delete it", position)

    def _wrong(self, path: Place, message: str, position: Position | None = None) -> None:
        where = position or self.document.values[path]
        self.document.problems.append(Problem(dotted(path), message, where.line, where.column))


def _position(node: yaml.Node) -> Position:
    return Position(node.start_mark.line + 1, node.start_mark.column + 1)


def scalar(text: str) -> Any:
    """The value of an unquoted scalar: None, a boolean, a number, else the text itself.

    Integers past 64 bits and floats past double range stay text, and fail later as what they are: no number of ours.
    """
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INT.match(text) and len(text) < 30:
        whole = int(text.replace("_", ""))
        return whole if abs(whole) < 2**63 else text
    if _FLOAT.match(text) and len(text) < 100 and any(mark in text for mark in ".eE"):
        number = float(text.replace("_", ""))
        return number if math.isfinite(number) else text
    return text
