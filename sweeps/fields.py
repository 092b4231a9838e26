"""What a path of the sweep file leads to: read from the typed configuration, so that no second list of keys exists."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

Models = Sequence[type[BaseModel]]


@dataclass(frozen=True)
class Target:
    """What a dotted path leads to.

    Attributes:
        leaves: the types a value may have, unions taken apart; empty when the path is unknown.
        unknown: the part of the path that no configuration has.
        legal: the keys that may stand in its place.
    """

    leaves: tuple[Any, ...] = ()
    unknown: str | None = None
    legal: tuple[str, ...] = ()

    @property
    def anything(self) -> bool:
        """Nothing is known of the value: `kwargs` of a pipeline of your own."""
        return Any in self.leaves

    @property
    def whole(self) -> bool:
        """Numbers here are whole numbers."""
        return int in self.leaves and float not in self.leaves

    @property
    def number(self) -> bool:
        """Numbers may stand here."""
        return self.anything or int in self.leaves or float in self.leaves

    @property
    def list_typed(self) -> bool:
        """A list is a value here."""
        return any(get_origin(leaf) in (tuple, list) for leaf in self.leaves)

    def takes(self, value: Any) -> bool:
        """Whether a word or number is a value here as it is, no part of a list."""
        return value in self.literals or type(value) in self.leaves

    @property
    def models(self) -> tuple[type[BaseModel], ...]:
        """The sections that may stand here."""
        return tuple(leaf for leaf in self.leaves if _is_model(leaf))

    @property
    def literals(self) -> tuple[Any, ...]:
        """The fixed words that may stand here."""
        return tuple(word for leaf in self.leaves if get_origin(leaf) is Literal for word in get_args(leaf))


def take_apart(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, `Annotated` unwrapped."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return take_apart(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(leaf for member in get_args(annotation) for leaf in take_apart(member))
    return (annotation,)


def lookup(models: Models, path: Sequence[str]) -> Target:
    """What `path` leads to below any of the models."""
    leaves: tuple[Any, ...] = tuple(models)
    for part in path:
        below: list[Any] = []
        for leaf in leaves:
            if leaf is Any:
                below.append(Any)
            elif get_origin(leaf) is dict:
                below += take_apart(get_args(leaf)[1])
            elif _is_model(leaf) and part in leaf.model_fields:
                below += take_apart(leaf.model_fields[part].annotation)
        if not below:
            legal = dict.fromkeys(key for leaf in leaves if _is_model(leaf) for key in leaf.model_fields)
            return Target(unknown=part, legal=tuple(legal))
        leaves = tuple(dict.fromkeys(below)) if all(_hashable(leaf) for leaf in below) else tuple(below)
    return Target(leaves)


def model_at(root: Models, data: Any, path: Sequence[str | int]) -> tuple[type[BaseModel], ...]:
    """The sections that stand at `path` of a file: one where its `type` tells, else all candidates."""
    candidates: tuple[Any, ...] = tuple(root)
    for part in (*path, None):
        found = [leaf for leaf in candidates if _is_model(leaf)]
        found = _chosen(found, data)
        if part is None:
            return tuple(found)
        below: list[Any] = []
        for leaf in candidates if isinstance(part, int) else found or candidates:
            if _is_model(leaf) and part in leaf.model_fields:
                below += take_apart(leaf.model_fields[str(part)].annotation)
            elif get_origin(leaf) in (tuple, list):
                below += take_apart(get_args(leaf)[0])
        candidates = tuple(below)
        data = _step(data, part)
    return ()


def _step(data: Any, part: str | int) -> Any:
    if isinstance(data, Mapping):
        return data.get(part)
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return None


def _chosen(models: list[type[BaseModel]], data: Any) -> list[type[BaseModel]]:
    if len(models) < 2 or not isinstance(data, Mapping):
        return models
    by_type = [model for model in models if data.get(tag_key(model)) in type_names(model)]
    if by_type:
        return by_type
    if any(type_names(model) for model in models):
        return models
    return [max(models, key=lambda model: (len(model.model_fields.keys() & data.keys()), -len(model.model_fields)))]


def tag_key(model: type[BaseModel]) -> str:
    """The key that tells a model from its siblings: `type`, or `method` of a soup."""
    return str(getattr(model, "told_by", "type"))


def type_names(model: type[BaseModel]) -> tuple[str, ...]:
    """The words of that key that stand for a model; empty for one without."""
    info = model.model_fields.get(tag_key(model))
    return () if info is None else tuple(str(word) for word in Target(take_apart(info.annotation)).literals)


def arms(target: Target) -> dict[str, type[BaseModel]]:
    """The variants of a section that are told apart by `type`."""
    if len(target.models) < 2:
        return {}
    return {name: model for model in target.models for name in type_names(model)}


def _is_model(leaf: Any) -> bool:
    return isinstance(leaf, type) and issubclass(leaf, BaseModel)


def _hashable(leaf: Any) -> bool:
    try:
        hash(leaf)
    except TypeError:
        return False
    return True


def overlay(base: Mapping[str, Any], parameters: Mapping[str, Any], models: Models) -> dict[str, Any]:
    """A configuration with the values of dotted paths put in.

    A `<section>.type` that differs from the base's starts the section anew with the keys that the new type has as well. A
    section that is a bare word (`loss: kto`) is written out where a key below it is set.

    Args:
        base: a pipeline's configuration, JSON.
        parameters: dotted path -> value.
        models: the configuration classes the base may be of.
    """
    config: dict[str, Any] = _copied(base)
    for path in sorted(parameters, key=lambda path: (not path.endswith(".type"), path.count("."))):
        *parents, last = path.split(".")
        place = config
        for depth, parent in enumerate(parents, 1):
            inner = place.get(parent)
            if not isinstance(inner, dict):
                word = isinstance(inner, str) and inner in arms(lookup(models, parents[:depth]))
                inner = place[parent] = {"type": inner} if word else {}
            place = inner
        if last == "type" and parents and place.get("type") != parameters[path]:
            _change_type(place, lookup(models, parents), str(parameters[path]))
        place[last] = _copied(parameters[path])
    return config


def _copied(value: Any) -> Any:
    """A copy of JSON, several times faster than `deepcopy`, which a dry run does hundreds of times."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _change_type(section: dict[str, Any], target: Target, name: str) -> None:
    known: Iterable[str] = ()
    variants = arms(target)
    if name in variants:
        known = variants[name].model_fields
    elif target.models:
        return
    for key in [key for key in section if key not in known]:
        del section[key]
