"""What every key of a sweep file means, read from the spec: its text, type, bounds, default, and where it stands.

Example:
    >>> find("eta")[0].keys[0].type
    'whole number, at least 2'
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from evaluators.field_texts import description
from sweeps.complaints import BARE, pattern_words
from sweeps.fields import tag_key, take_apart, type_names
from sweeps.parameters import DISTRIBUTION_NAMES, FIXED
from sweeps.schema import Schema
from sweeps.soup_spec import DEFAULT
from sweeps.spec import SweepSpec

NEVER_WRITTEN = ("base_model_hash", "teacher_hash", "content_hash")
"""Keys that `submit` fills in."""
UNSET = "unset"
"""The default of a key that may be left out and then means nothing, or what its text says."""


Match = Callable[[str], bool]


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        path: dotted, from the top of the file.
        type: what may stand there: kind, bounds, words.
        default: as YAML shows it; None where the key must be given.
        text: its documentation, one line.
        swept: whether it may stand under `parameters`.
    """

    path: str
    type: str
    default: str | None
    text: str
    swept: bool = False

    @property
    def name(self) -> str:
        """The last word of the path."""
        return self.path.rpartition(".")[2]


@dataclass(frozen=True)
class Section:
    """A mapping of the file, or one variant of it.

    Attributes:
        path: where it stands; empty for the top of the file.
        also: other places of the same section.
        variant: its word of `type`, or of `method` for a soup; empty for a section without variants.
        text: its documentation, one line.
        keys: in the spec's order.
    """

    path: str
    also: tuple[str, ...]
    variant: str
    text: str
    keys: tuple[Key, ...]

    @property
    def told_by(self) -> str:
        """The key that the variant is a word of."""
        return "method" if self.path == "soup" else "type"

    @property
    def title(self) -> str:
        """`method, type: tpe`."""
        kind = f", {self.told_by}: {self.variant}" if self.variant else ""
        return f"{self.path or 'top of the file'}{kind}"

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


_DISTRIBUTION = (
    "`uniform` evenly from min to max (the default); `log_uniform_values` evenly by their logarithm; `int_uniform` whole "
    "numbers, both ends among them; `q_uniform` and `q_log_uniform_values` in steps of q from min on; `categorical` goes "
    "with values, `constant` with value."
)
_DOMAIN = {
    "values": ("list", "One of these; a list in place of the mapping is the same."),
    "value": ("anything", "Always this."),
    "min": ("number", "Smallest value of a range."),
    "max": ("number", "Largest value of a range."),
    "distribution": (" | ".join(DISTRIBUTION_NAMES), _DISTRIBUTION),
    "q": ("number, more than 0", "Step of a range."),
    "choose": (
        "mapping of words to parameters",
        "The key is one of these words, and each opens parameters of its own.",
    ),
}
_PARAMETERS = (
    Section(
        "parameters", (), "", "The search space: keys of `pipeline` with what they may be. Paths may be dotted or nested.",
        (
            Key("parameters.KEY", "list or mapping", UNSET, "A key of `pipeline` and its values."),
            Key("parameters.together", "mapping of names to lists of mappings", UNSET, "Keys that move as a group: each mapping sets the same keys, one mapping is drawn."),
        ),
    ),
    Section(
        "parameters.KEY", (), "", "What one key may be: a list of values, or a mapping of these words.",
        tuple(Key(f"parameters.KEY.{word}", kind, UNSET, text) for word, (kind, text) in _DOMAIN.items()),
    ),
)  # fmt: skip
"""`parameters:` is free in the spec, so its words are written down here; a test holds them against the parser's."""


@functools.cache
def sections() -> tuple[Section, ...]:
    """Every section in the order of the file, each variant on its own."""
    found: dict[type[BaseModel], Section] = {}
    waiting: list[tuple[str, str, type[BaseModel]]] = [("", "", SweepSpec)]
    below: list[tuple[str, str, type[BaseModel]]] = []
    while waiting:
        path, variant, model = waiting.pop(0)
        if model in found:
            found[model] = replace(found[model], also=(*found[model].also, path))
            continue
        found[model] = Section(path, (), variant, _line(model.__doc__), tuple(_keys(model, path)))
        below += _below(model, path)
        if not waiting or waiting[0][0] != path:
            waiting, below = [*below, *waiting], []
    whole = list(found.values())
    place = next(index for index, section in enumerate(whole) if section.path == "method")
    return (*whole[:place], *_PARAMETERS, *whole[place:])


def _below(model: type[BaseModel], path: str) -> Iterator[tuple[str, str, type[BaseModel]]]:
    """(path, variant, model) of the sections of a section."""
    for name, info in model.model_fields.items():
        below = [leaf for leaf in _leaves(info.annotation) if isinstance(leaf, type) and issubclass(leaf, BaseModel)]
        told_apart = len(below) > 1 and all(len(type_names(one)) == 1 for one in below)
        for one in dict.fromkeys(below):
            yield f"{path}.{name}" if path else name, type_names(one)[0] if told_apart else "", one


def _leaves(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; of a list's as well."""
    found: list[Any] = []
    for leaf in take_apart(annotation):
        found += _leaves(get_args(leaf)[0]) if get_origin(leaf) in (tuple, list) else [leaf]
    return tuple(found)


def _keys(model: type[BaseModel], path: str) -> Iterator[Key]:
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for name, about in schema["properties"].items():
        if name in NEVER_WRITTEN:
            continue
        whole = f"{path}.{name}" if path else name
        inside = whole.removeprefix("pipeline.")
        told_apart = name == tag_key(model) and "const" in about
        text = _line(description(model, name)) or ("Says which section this is." if told_apart else "")
        default = None if told_apart or name in schema.get("required", ()) else _default(about)
        default = DEFAULT if told_apart and path == "soup" else default
        yield Key(
            whole,
            _type(about, definitions, bare=not path and name in BARE),
            default,
            text,
            inside != whole and inside not in FIXED,
        )


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(about: Schema) -> str:
    """A default as the file would say it."""
    value = about.get("default")
    if value is None:
        return UNSET
    if isinstance(value, dict) and all(item is None for item in value.values()):
        return UNSET
    return _yaml(value)


def _yaml(value: Any) -> str:
    if isinstance(value, dict):
        inner = {key: item for key, item in value.items() if item is not None}
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in inner.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value) if value == "" or value.strip() != value or "\n" in value else value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _type(about: Schema, definitions: Mapping[str, Schema], *, bare: bool = False) -> str:
    """What a value may be, in words."""
    if "$ref" in about:
        return "section"
    if "enum" in about:
        return " | ".join(map(str, about["enum"]))
    if "const" in about:
        return str(about["const"])
    if members := about.get("anyOf") or about.get("oneOf"):
        members = [inner for one in members for inner in one.get("oneOf", [one])]
        words = dict.fromkeys(_type(one, definitions) for one in members if one.get("type") != "null")
        kinds = [definitions[one["$ref"].rpartition("/")[2]] for one in members if "$ref" in one]
        for key in ("type", "method"):
            tags = [kind["properties"].get(key, {}).get("const") for kind in kinds]
            if len(tags) > 1 and all(tags):
                return f"section with {key}: {' | '.join(tags)}" + (", or that word" if bare else "")
        return " or ".join(words) + (", or a word" if bare else "")
    if about.get("type") == "array":
        return f"list of {_plural(_type(about.get('items', {}), definitions))}"
    if about.get("type") == "object":
        inner = about.get("additionalProperties")
        return "mapping of names to " + (_plural(_type(inner, definitions)) if isinstance(inner, dict) else "values")
    kinds_of_number = {"integer": "whole number", "number": "number"}
    if about.get("type") in kinds_of_number:
        return ", ".join([kinds_of_number[about["type"]], *_bounds(about)])
    if about.get("type") == "string":
        return pattern_words(about["pattern"]) if "pattern" in about else "text"
    return {"boolean": "true | false"}.get(about.get("type", ""), "anything")


def _plural(kind: str) -> str:
    head, comma, rest = kind.partition(",")
    plural = {"whole number": "whole numbers", "number": "numbers", "text": "texts", "section": "sections"}.get(head)
    return f"{plural or head}{comma}{rest}"


def _bounds(about: Schema) -> list[str]:
    words = {
        "exclusiveMinimum": "more than",
        "minimum": "at least",
        "exclusiveMaximum": "less than",
        "maximum": "at most",
    }
    return [
        f"{word} {about[key]:g}" if about[key] < 1e6 else f"{word} {about[key]}"
        for key, word in words.items()
        if key in about
    ]


def find(word: str) -> list[Section]:
    """What a word means: sections with just the keys meant, then whole ones; empty when it means nothing.

    Args:
        word: dotted (`pipeline.learning_rate`, `early_terminate.asha.eta`) or bare (`eta`, `soup`, `tpe`).
    """
    path = word.strip()
    if path in DISTRIBUTION_NAMES:
        path = "parameters.KEY.distribution"
    below = path.removeprefix("parameters.").removeprefix("pipeline.")
    for match in (_is(path), _is(f"pipeline.{below}"), _ends(f".{path}")):
        found = [part for section in sections() if (part := _only(section, match))]
        whole = [section for section in sections() if section.path and any(map(match, (section.path, *section.also)))]
        if found or whole:
            return [*found, *whole]
    variants = [section for section in sections() if section.variant]
    named = [section for section in variants if path in (section.variant, f"{section.path}.{section.variant}")]
    return named or [part for section in variants if (part := _only(section, _variant(section, path)))]


def _is(path: str) -> Match:
    return lambda other: other == path


def _ends(path: str) -> Match:
    return lambda other: other.endswith(path)


def _variant(section: Section, path: str) -> Match:
    """`early_terminate.asha.eta` means `eta` of the variant asha."""
    head = f"{section.path}.{section.variant}."
    return lambda other: path.startswith(head) and other == f"{section.path}.{path.removeprefix(head)}"


def _only(section: Section, match: Match) -> Section | None:
    """A section with the keys that match; a key of another place of it is shown at that place."""
    for place in (section.path, *section.also):
        places = [(key, place + key.path.removeprefix(section.path)) for key in section.keys]
        if keys := tuple(replace(key, path=path) for key, path in places if match(path)):
            return replace(section, path=place, also=(), keys=keys)
    return None


def others(word: str, found: Sequence[Section]) -> list[str]:
    """Keys of the same name as a bare word, beside those found."""
    there = {key.path for section in found for key in section.keys}
    return sorted({key.path for section in sections() for key in section.keys if key.name == word} - there)


def words() -> list[str]:
    """Every bare word that `find` knows, for did-you-mean."""
    keys = [key.name for section in sections() for key in section.keys]
    variants = [section.variant for section in sections() if section.variant]
    return list(dict.fromkeys([*keys, *variants]))
