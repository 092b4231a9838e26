"""The JSON Schema of a sweep file, for editors: what pydantic says of the spec, with the file's short forms and `parameters`.

It accepts every file that `stockpot check` accepts, and refuses unknown keys, words and kinds of value. Rules between keys,
paths and data are `check`'s alone. Draft 7, the newest that editors' YAML servers know in full.

Example:
    >>> file_schema()["properties"]["name"]["pattern"]
    '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from evaluators.benchmark_config import LMEvalConfig
from evaluators.config import default_entries, name_of
from pipelines.config import PIPELINE_CONFIGS
from sweeps.complaints import BARE
from sweeps.fields import take_apart, type_names
from sweeps.parameters import CONTINUOUS, FIXED
from sweeps.soup_spec import DEFAULT
from sweeps.spec import METRICS_AT_MOST, SweepSpec

DRAFT = "http://json-schema.org/draft-07/schema#"
TITLE = "A Stockpot sweep file"
Schema = dict[str, Any]


def file_schema() -> Schema:
    """The schema of a whole file, JSON."""
    schema = SweepSpec.model_json_schema()
    _tidy(schema)
    definitions: dict[str, Schema] = schema["$defs"]
    properties: dict[str, Schema] = schema["properties"]
    _need_types(definitions, properties)
    _soups(properties["soup"], definitions)
    for section, key in BARE.items():
        if section != "metric":
            _short_form(properties[section], definitions, key)
    settled = {name_of(type(entry)) for entry in default_entries()}
    _short_form(properties["evaluate"]["items"], definitions, "type", settled)
    _short_form(properties["track"]["items"], definitions, "type")
    properties["track"] = _one_or_several(properties["track"])
    tasks = definitions[LMEvalConfig.__name__]["properties"]["tasks"]
    tasks["items"] = {"anyOf": [{"type": "string"}, tasks["items"]]}
    _short_form(definitions["DPOConfig"]["properties"]["loss"], definitions, "type")
    _metrics(properties["metric"])
    optional = _free_required(definitions)
    spaces = _Spaces(definitions)
    properties["parameters"] |= {"$ref": spaces.space(PIPELINE_CONFIGS)}
    properties["parameters"].pop("additionalProperties")
    named = [form for form in properties["baseline"]["anyOf"] if form.get("type") == "string"]
    properties["baseline"]["anyOf"] = [*named, {"$ref": spaces.changes(PIPELINE_CONFIGS)}, {"type": "null"}]
    schema["allOf"] = [_required_unless_swept(kind, keys) for kind, keys in optional.items()]
    head = {"$schema": DRAFT, "title": TITLE, "description": "One sweep; see `stockpot explain`."}
    return {**schema, **head}


def _tidy(value: Any) -> None:
    """Drop the titles that pydantic makes of names, and what only pydantic reads."""
    if isinstance(value, dict):
        for key in ("title", "discriminator"):
            if not isinstance(value.get(key), dict) or key == "discriminator":
                value.pop(key, None)
        for inner in value.values():
            _tidy(inner)
    elif isinstance(value, list):
        for inner in value:
            _tidy(inner)


def _forms(union: Schema) -> list[Schema]:
    forms: list[Schema] = union["oneOf"] if "oneOf" in union else union["anyOf"]
    return forms


def _members(union: Schema, definitions: Mapping[str, Schema]) -> list[Schema]:
    """The named variants of a union."""
    return [definitions[one["$ref"].rpartition("/")[2]] for one in _forms(union) if "$ref" in one]


def _need_types(definitions: Mapping[str, Schema], properties: Mapping[str, Schema]) -> None:
    """Variants are told apart by `type`, so it must stand there, whatever its default."""
    told_apart = [properties[name] for name in ("pipeline", "method", "early_terminate")]
    for union in (*told_apart, properties["evaluate"]["items"], properties["track"]["items"]):
        for member in _members(union, definitions):
            member["required"] = sorted({*member.get("required", ()), "type"})


def _soups(union: Schema, definitions: Mapping[str, Schema]) -> None:
    """Recipes are told apart by `method`, which one of them can do without; their merge methods by `type`."""
    nested = next(form for form in union.pop("anyOf") if "oneOf" in form)
    union["anyOf"] = [*nested["oneOf"], {"type": "null"}]
    for member in _members(union, definitions):
        if member["properties"]["method"]["const"] != DEFAULT:
            member["required"] = sorted({*member.get("required", ()), "method"})
        for method in _members(member["properties"].get("merge", {"oneOf": []}), definitions):
            method["required"] = sorted({*method.get("required", ()), "type"})


def _short_form(
    union: Schema, definitions: Mapping[str, Schema], key: str, among: Collection[str] | None = None
) -> None:
    """Let a bare word stand for the variant that needs nothing else; `among` these, where it is given."""
    words: list[str] = []
    for member in _members(union, definitions):
        about = member["properties"][key]
        if set(member.get("required", ())) <= {key}:
            words += about.get("enum", [about["const"]] if "const" in about else [])
    _forms(union).insert(0, {"enum": [word for word in words if among is None or word in among]})


def _one_or_several(several: Schema) -> Schema:
    """Let one entry of a list stand without the list."""
    about: Schema = {key: several.pop(key) for key in ("description", "default") if key in several}
    return {"anyOf": [several["items"], several], **about}


def _metrics(schema: Schema) -> None:
    one = [{"type": "string"}, {"$ref": "#/$defs/MetricConfig"}]
    several = {"type": "array", "items": {"oneOf": one}, "minItems": 1, "maxItems": METRICS_AT_MOST}
    schema["oneOf"] = [*one, several]


def _free_required(definitions: Mapping[str, Schema]) -> dict[str, list[str]]:
    """Take from the pipelines what may come from `parameters` instead: type -> the keys."""
    freed: dict[str, list[str]] = {}
    for model in PIPELINE_CONFIGS:
        schema = definitions[model.__name__]
        kind = str(model.model_fields["type"].default)
        freed[kind] = [key for key in schema["required"] if key not in FIXED]
        schema["required"] = [key for key in schema["required"] if key in FIXED]
    for name in ("Datasets", "DataFile", "Fraction"):
        definitions[name].pop("required", None)
    return freed


def _required_unless_swept(kind: str, keys: Sequence[str]) -> Schema:
    """The keys of a pipeline that must be given, where `parameters` can't have set them."""
    elsewhere = f"^((pipeline\\.)?({'|'.join(keys)})(\\..*)?|pipeline|together)$"
    unswept = {"properties": {"parameters": {"propertyNames": {"not": {"pattern": elsewhere}}}}}
    this = {"properties": {"pipeline": {"properties": {"type": {"const": kind}}, "required": ["type"]}}}
    needed = {"properties": {"pipeline": {"required": list(keys)}}}
    return {"if": {"allOf": [unswept, this]}, "then": needed}


class _Spaces:
    """Writes the definitions of `parameters` (domains by path) and of `baseline` (values by path)."""

    def __init__(self, definitions: dict[str, Schema]) -> None:
        self.definitions = definitions
        self.domains: dict[str, str] = {}

    def space(self, models: Sequence[type[BaseModel]], below: str = "") -> str:
        """The reference of a mapping of paths below some models to their domains; with all its nested ones."""
        name = _joined("Parameters", below)
        reference = f"#/$defs/{name}"
        if name in self.definitions:
            return reference
        self.definitions[name] = {}
        values: dict[str, list[Schema]] = {}
        sections: dict[str, list[type[BaseModel]]] = {}
        for path, value, inner in self._paths(models):
            if _joined(below, path) not in FIXED:
                values.setdefault(path, []).append(value)
                sections.setdefault(path, []).extend(inner)
        properties = {
            path: self._named(below, path, options, tuple(dict.fromkeys(sections[path])))
            for path, options in values.items()
        }
        own = self.definitions[name] = self._mapping(properties, top=not below)
        own["properties"]["together"] = self._together(models, below)
        if not below:
            own["properties"]["pipeline"] = {"$ref": reference}
        return reference

    def changes(self, models: Sequence[type[BaseModel]], below: str = "") -> str:
        """The reference of a mapping of paths below some models to values."""
        name = _joined("Changes", below)
        reference = f"#/$defs/{name}"
        if name not in self.definitions:
            self.definitions[name] = {}
            found: dict[str, list[Schema]] = {}
            for path, value, inner in self._paths(models):
                nested = [{"$ref": self.changes(inner, _joined(below, path))}] if inner else []
                found.setdefault(path, []).extend([value, *nested])
            properties = {path: _either(self._different(options)) for path, options in found.items()}
            own = self.definitions[name] = self._mapping(properties, top=not below)
            if not below:
                own["properties"]["pipeline"] = {"$ref": reference}
        return reference

    def _paths(
        self, models: Sequence[type[BaseModel]], prefix: str = ""
    ) -> Iterator[tuple[str, Schema, tuple[type[BaseModel], ...]]]:
        """(dotted path, a reference to the value's schema, the sections below it) of every key."""
        for model in models:
            for key, info in model.model_fields.items():
                leaves = take_apart(info.annotation)
                inner = tuple(leaf for leaf in leaves if isinstance(leaf, type) and issubclass(leaf, BaseModel))
                yield f"{prefix}{key}", {"$ref": f"#/$defs/{model.__name__}/properties/{key}"}, inner
                yield from self._paths(inner, f"{prefix}{key}.")

    def _domain(self, path: str, options: Sequence[Schema], inner: tuple[type[BaseModel], ...]) -> Schema:
        """What may stand at a path that one or several sections have: a list of values, a domain, arms, or keys below."""
        options = self._different(options)
        value = _either(options)
        values: Schema = {"type": "array", "minItems": 1, "items": value}
        forms = [
            values,
            _closed({"values": values, "distribution": {"const": "categorical"}}, "values"),
            _closed({"value": value, "distribution": {"const": "constant"}}, "value"),
        ]
        abouts = [self._about(option) for option in options]
        members = [member for about in abouts for member in _options(about)]
        if any(member.get("type") in ("number", "integer") for member in members):
            number: Schema = {"type": "number"}
            ends = {"distribution": {"enum": list(CONTINUOUS)}, "min": number, "max": number, "q": number}
            forms.append(_closed(ends, "min", "max"))
        if words := [word for member in members for word in member.get("enum", ()) if isinstance(word, str)]:
            arm: Schema = {
                "anyOf": [{"$ref": f"#/$defs/{_joined('Parameters', path.rpartition('.')[0])}"}, {"type": "null"}]
            }
            arms: Schema = {"type": "object", "properties": dict.fromkeys(words, arm), "additionalProperties": False}
            forms.append(_closed({"choose": {**arms, "minProperties": 1}}, "choose"))
        if inner:
            below = {"$ref": self.space(inner, path)}
            forms.append(below)
            if kinds := [word for model in inner for word in type_names(model)]:
                opened = {kind: {"anyOf": [below, {"type": "null"}]} for kind in kinds}
                variants: Schema = {"type": "object", "properties": opened, "additionalProperties": False}
                forms.append(_closed({"choose": {**variants, "minProperties": 1}}, "choose"))
        if any(about.get("additionalProperties") for about in abouts):
            forms.append({"type": "object"})
        texts = [about["description"] for about in abouts if "description" in about]
        return {"anyOf": forms} | ({"description": texts[0]} if texts else {})

    def _different(self, options: Sequence[Schema]) -> list[Schema]:
        """References to different schemas: of keys that several sections share, one."""
        kept: dict[str, Schema] = {}
        for option in options:
            shared = "properties" in option.get("$ref", "")
            kept.setdefault(json.dumps(self._about(option) if shared else option, sort_keys=True), option)
        return list(kept.values())

    def _about(self, reference: Schema) -> Schema:
        owner, key = reference["$ref"].split("/")[2::2]
        about: Schema = self.definitions[owner]["properties"][key]
        return about

    def _together(self, models: Sequence[type[BaseModel]], below: str) -> Schema:
        row = {"allOf": [{"$ref": self.changes(models, below)}], "minProperties": 1}
        group = {"type": "array", "minItems": 1, "items": row}
        return {
            "type": "object",
            "additionalProperties": group,
            "description": "Keys that move as a group: rows of values.",
        }

    def _named(self, below: str, path: str, options: Sequence[Schema], inner: tuple[type[BaseModel], ...]) -> Schema:
        """The reference of a domain; equal ones are written once."""
        domain = self._domain(_joined(below, path), options, inner)
        name = self.domains.setdefault(json.dumps(domain, sort_keys=True), _joined("Domain", below, path))
        self.definitions.setdefault(name, domain)
        return {"$ref": f"#/$defs/{name}"}

    def _mapping(self, properties: Mapping[str, Schema], *, top: bool) -> Schema:
        """A mapping of these paths; at the top each may begin with `pipeline.`, and `kwargs` are anyone's."""
        known = dict(properties)
        schema: Schema = {"type": "object", "properties": known, "additionalProperties": False}
        if top:
            known |= {f"pipeline.{path}": value for path, value in properties.items()}
            schema["patternProperties"] = {r"^(pipeline\.)?kwargs\.": {}}
        return schema


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _closed(properties: Mapping[str, Schema], *required: str) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


def _options(schema: Schema) -> list[Schema]:
    """The members of a union, nested ones taken apart."""
    members = schema.get("anyOf") or schema.get("oneOf")
    return [inner for member in members for inner in _options(member)] if members else [schema]


def _either(options: list[Schema]) -> Schema:
    """One of several schemas, each once."""
    unique = [option for index, option in enumerate(options) if option not in options[:index]]
    return unique[0] if len(unique) == 1 else {"anyOf": unique}
