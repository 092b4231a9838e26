"""What pydantic found, in the words of the file's author: the value, what is legal, the mend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from evaluators.field_texts import description
from pipelines.config import PIPELINE_CONFIGS
from pipelines.fields import CLASS_PATTERN, HASH_PATTERN, URL_PATTERN
from sweeps.fields import Models, lookup, model_at, type_names
from sweeps.foreign import VALUES, key_answer
from sweeps.problems import close, show, unknown
from sweeps.spec import NAME_PATTERN, SweepSpec
from sweeps.track_spec import PROJECT_PATTERN
from sweeps.yaml_source import Place

BARE = {"method": "type", "early_terminate": "type", "metric": "name", "soup": "method"}
"""Sections that may be one word -> the key it is."""
_INIT = {
    **dict.fromkeys(("datasets", "train"), "stockpot init sft DATA"),
    **dict.fromkeys(("corpus", "questions"), "stockpot init rag CORPUS QUESTIONS"),
}
"""A missing key -> the command that writes a file with it."""
_PATTERNS = {
    NAME_PATTERN: "a name: up to 100 letters, digits, '.', '_' and '-', starting with a letter or digit",
    PROJECT_PATTERN: "a project's name: up to 128 characters without / \\ # ? % :",
    CLASS_PATTERN: "'module:Class'",
    HASH_PATTERN: "a SHA-256 in hex",
    URL_PATTERN: "an address that begins with http:// or https://",
}


@dataclass(frozen=True)
class Complaint:
    """One mistake in a part of the file.

    Attributes:
        path: keys and indexes below the part that was validated.
        kind: pydantic's error type; `rule` for our own cross-field rules.
        message: value, what is legal, mend.
        on_key: whether the key is at fault, not its value.
    """

    path: Place
    kind: str
    message: str
    on_key: bool = False


def complaints(error: ValidationError, data: Any, root: Models, top: str = "") -> list[Complaint]:
    """Every mistake once, where it stands in `data`.

    Args:
        error: what validating `data` raised.
        data: what was validated.
        root: the models it was validated by.
        top: the section of the file that `data` is; empty for the whole file.
    """
    groups: dict[tuple[Place, bool], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        path = _path(detail, data)
        groups.setdefault((path, detail["type"] in ("extra_forbidden", "missing")), []).append(detail)
    found = [_complaint(path, details, data, root, top) for (path, _), details in groups.items()]
    renamed = [other for other in found if other.on_key]
    return [one for one in found if one.kind != "missing" or not any(_renames(other, one) for other in renamed)]


def _renames(other: Complaint, missing: Complaint) -> bool:
    """Whether the mend of an unknown key beside it gives what is missing."""
    name = missing.path[-1]
    return other.path[:-1] == missing.path[:-1] and (f"`{name}" in other.message or f"'{name}'?" in other.message)


def _path(detail: ErrorDetails, data: Any) -> Place:
    """Pydantic's `loc` without the names of union members, which the file does not hold."""
    path: list[str | int] = []
    loc = detail["loc"]
    for index, part in enumerate(loc):
        if isinstance(data, Mapping) and part in data:
            path.append(part)
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            path.append(part)
            data = data[part]
        elif detail["type"] == "missing" and index == len(loc) - 1:
            path.append(part)
    kind = detail["type"]
    if kind == "rule":
        path += str(detail.get("ctx", {}).get("field", "")).split(".")
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        path.append("method" if path == ["soup"] else "type")
    return tuple(path)


def _complaint(path: Place, details: list[ErrorDetails], data: Any, root: Models, top: str) -> Complaint:
    first = details[0]
    kind = first["type"]
    if kind == "extra_forbidden":
        return Complaint(path, kind, unknown_key(path, data, root, top), on_key=True)
    if kind == "missing":
        return Complaint(path, kind, _missing(path, data, root))
    if kind == "rule":
        return Complaint(path, kind, str(first["ctx"]["message"]))
    if kind == "union_tag_not_found":
        return Complaint(path, kind, f"is missing; give one of {_tags(first, root, data, path)}")
    if kind == "union_tag_invalid":
        word = str(first["ctx"]["tag"])
        section = str(next((part for part in reversed(path[:-1]) if isinstance(part, str)), top))
        mend = VALUES.get(section, {}).get(word)
        return Complaint(path, kind, unknown(word, _tags(first, root, data, path).split(", "), mend))
    if kind == "value_error":
        return Complaint(path, kind, str(first["ctx"]["error"]))
    if kind == "json_invalid":
        return Complaint(path, kind, "is not text that can be stored; retype it")
    return Complaint(path, kind, _value(first["input"], path, details))


def unknown_key(path: Place, data: Any, root: Models, top: str) -> str:
    """The message for a key that no configuration has."""
    word = str(path[-1])
    models = model_at(root, data, path[:-1])
    legal = sorted({name for model in models for name in model.model_fields})
    section = top or str(path[0] if len(path) > 1 else "")
    in_pipeline = section in ("pipeline", "parameters", "baseline")
    mend = None if word in legal else key_answer(word, in_pipeline, legal)
    if mend is None and section == "" and lookup(PIPELINE_CONFIGS, [word]).leaves:
        mend = "it belongs under pipeline:"
    elif mend is None and section == "" and word in ("together", "choose"):
        mend = "it belongs under parameters:"
    elif mend is None and in_pipeline and word in SweepSpec.model_fields:
        mend = "it belongs at the top of the file, outside pipeline:"
    return unknown(word, legal, mend)


def _missing(path: Place, data: Any, root: Models) -> str:
    for model in model_at(root, data, path[:-1]):
        text = description(model, str(path[-1]))
        if text:
            command = _INIT.get(str(path[-1]))
            mend = f"; `{command}` writes a file for your data" if command else ""
            return f"is missing: {text.splitlines()[0].rstrip('.')}{mend}"
    return "is missing"


def _tags(detail: ErrorDetails, root: Models, data: Any, path: Place) -> str:
    given = str(detail["ctx"].get("expected_tags", "")).replace("'", "")
    if given:
        return given
    models = model_at(root, data, path[:-1])
    return ", ".join(sorted({name for model in models for name in type_names(model)}))


_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "none_required": "left out",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _value(value: Any, path: Place, details: Sequence[ErrorDetails]) -> str:
    legal: list[str] = []
    words: list[str] = []
    for detail in details:
        kind, context = detail["type"], detail.get("ctx", {})
        if kind == "literal_error":
            words += [word.strip(" '") for word in str(context["expected"]).replace(" or ", ", ").split(",")]
        elif kind in _BOUNDS:
            word, key = _BOUNDS[kind]
            legal.append(f"{word} {context[key]:g}" if isinstance(context[key], float) else f"{word} {context[key]}")
        elif kind in ("too_short", "too_long"):
            legal.append("a list with at least one entry" if kind == "too_short" else "a shorter list")
        elif kind == "string_pattern_mismatch":
            legal.append(pattern_words(str(context["pattern"])))
        else:
            legal.append(_KINDS.get(kind, detail["msg"][:1].lower() + detail["msg"][1:]))
    legal = list(dict.fromkeys(legal))
    key = str(next((part for part in reversed(path) if isinstance(part, str)), ""))
    mend = VALUES.get(key, {}).get(value) if isinstance(value, str) else None
    if words and isinstance(value, str) and (mend is not None or not legal):
        return unknown(value, words, mend)
    if len(path) == 1 and path[0] in BARE and legal == ["a mapping (key: value)"]:
        legal = ["a word or a mapping (key: value)"]
    wanted = " or ".join([*legal, *(f"'{word}'" for word in words)])
    if value is None:
        return f"is empty; give {wanted}, or delete the line"
    return f"{show(value)} is not {wanted}{_mend(value, legal, words)}"


def _mend(value: Any, legal: list[str], words: list[str]) -> str:
    if "true or false" in legal and isinstance(value, str):
        yes = value.lower() in ("yes", "on", "true", "y", "1")
        no = value.lower() in ("no", "off", "false", "n", "0")
        return f"; write {'true' if yes else 'false'}" if yes or no else ""
    if "text" in legal and isinstance(value, int | float):
        return f'; put it in quotes: "{show(value)}"'
    if "a whole number" in legal and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"; write {int(value)}"
    if "a list" in legal and not isinstance(value, dict | list):
        return f"; write [{value if isinstance(value, str) else show(value)}]"
    if words and isinstance(value, str) and (guess := close(value, words)):
        return f"; did you mean '{guess}'?"
    return ""


def pattern_words(pattern: str) -> str:
    """What text a pattern of the spec asks for."""
    return _PATTERNS.get(pattern, f"text that matches {pattern}")
