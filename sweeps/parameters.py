"""From `parameters:` as written to a search space: W&B's words, list shorthand, nesting, branches and pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sweeps.fields import Models, Target, arms, lookup
from sweeps.foreign import DISTRIBUTIONS, domain_answer, key_answer
from sweeps.problems import show, unknown
from sweeps.ranges import Range
from sweeps.space import Axis, Branch, Choice, Domain, Group, Interval, Space
from sweeps.spec import SweepSpec
from sweeps.yaml_source import Document, Place

DOMAIN_WORDS = ("distribution", "max", "min", "q", "value", "values")
RESERVED = (*DOMAIN_WORDS, "choose", "together")
CONTINUOUS = ("uniform", "log_uniform_values", "int_uniform", "q_uniform", "q_log_uniform_values")
DISTRIBUTION_NAMES = (*CONTINUOUS, "categorical", "constant")
FIXED = ("type", "import_path", "metrics", "seed_data", "base_model_hash", "teacher_hash")
"""Keys that all trials must share."""


@dataclass(frozen=True)
class Leaf:
    """One value that some configuration holds, to be validated where it stands.

    Attributes:
        path: dotted path in the pipeline.
        value: as written.
        choices: what must be chosen for the value to be drawn.
        source: where it stands in the file.
    """

    path: str
    value: Any
    choices: Mapping[str, Any]
    source: Place


@dataclass
class Parsed:
    """What `parameters:` amounts to.

    Attributes:
        space: the sound parts.
        leaves: every value to validate: all choices, both ends of a range.
        origins: dotted path -> where in the file it is set.
    """

    space: Space = field(default_factory=Space)
    leaves: list[Leaf] = field(default_factory=list)
    origins: dict[str, Place] = field(default_factory=dict)


@dataclass(frozen=True)
class _Level:
    """Where the parser stands: place in the file, path in the pipeline, and inside which arms."""

    source: Place
    path: tuple[str, ...] = ()
    prefix: str = ""
    choices: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Parts:
    axes: list[Axis] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)

    def space(self) -> Space:
        return Space(tuple(self.axes), tuple(self.groups), tuple(self.branches))


def parse(document: Document, raw: Any, models: Models) -> Parsed:
    """Read the section; mistakes go to `document.problems`.

    Args:
        document: the file, for places.
        raw: the value of `parameters:`.
        models: configuration classes of the pipeline; several when its type is unknown.
    """
    parser = _Parser(document, models)
    if isinstance(raw, Mapping):
        parts = _Parts()
        parser.section(raw, _Level(("parameters",)), parts)
        parser.parsed.space = parts.space()
    return parser.parsed


class _Parser:
    def __init__(self, document: Document, models: Models) -> None:
        self.document = document
        self.models = models
        self.parsed = Parsed()

    def wrong(self, source: Place, message: str, key: bool = False) -> None:
        self.document.problems.append(self.document.problem(source, message, key=key))

    def section(self, raw: Mapping[str, Any], level: _Level, parts: _Parts) -> None:
        """Every entry of a mapping that is no domain itself."""
        for key, value in raw.items():
            source = (*level.source, key)
            words = key.split(".")
            if not level.path and words[0] == "pipeline":
                words = words[1:]
            if key == "together":
                self.together(value, replace(level, source=source), parts)
                continue
            if not words and isinstance(value, Mapping):
                self.section(value, replace(level, source=source), parts)
                continue
            if not words or not all(words):
                self.wrong(source, f"{show(key)} is no path; write names with single dots between them", key=True)
                continue
            if taken := next((word for word in words if word in RESERVED), None):
                self.wrong(
                    source, f"'{taken}' is reserved for domains ({', '.join(RESERVED)}); rename the key", key=True
                )
                continue
            self.entry(value, replace(level, source=source, path=(*level.path, *words)), parts)

    def entry(self, value: Any, level: _Level, parts: _Parts) -> None:
        """One path: a list, a domain, a branch, or keys below it."""
        target = lookup(self.models, level.path)
        if not target.leaves:
            self.wrong(level.source, self._unknown(target), key=True)
        elif isinstance(value, list):
            if choice := self._choice(value, level.source, target):
                self._axis(choice, level, parts)
        elif value is None:
            self.wrong(level.source, "is empty; write a list of values, or {min: ..., max: ...}")
        elif not isinstance(value, Mapping):
            hint = f"write [{show(value)}] for one value, or {{min: ..., max: ...}} for a range"
            self.wrong(level.source, f"{show(value)} is no domain; {hint}")
        elif not value:
            self.wrong(level.source, "is empty; write a list of values, or {min: ..., max: ...}")
        elif "choose" in value:
            self._branch(value, level, target, parts)
        elif any(word in value for word in DOMAIN_WORDS) or self._plain(value, target):
            if domain := self._domain(value, level, target):
                self._axis(domain, level, parts)
        elif list(value) == ["parameters"]:
            self.wrong((*level.source, "parameters"), "W&B's nesting; put the keys below directly", key=True)
        else:
            self.section(value, level, parts)

    def _plain(self, value: Mapping[str, Any], target: Target) -> bool:
        """Whether a mapping can only be a badly written domain: nothing lies below its key."""
        return not target.models and not target.anything and not any("dict" in str(leaf) for leaf in target.leaves)

    def _unknown(self, target: Target) -> str:
        word = target.unknown or ""
        mend = key_answer(word, inside_pipeline=True, legal=target.legal)
        if mend is None and word in SweepSpec.model_fields and not target.leaves:
            mend = "only keys of pipeline are swept"
        return unknown(word, target.legal, mend)

    def _claim(self, path: str, source: Place) -> bool:
        """Note that `path` is set here; False, with a problem, when it may not be or is set elsewhere already."""
        if path in FIXED:
            self.wrong(source, f"'{path}' is the same in all trials; give it one value under pipeline", key=True)
            return False
        for other, place in self.parsed.origins.items():
            if other == path or other.startswith(f"{path}.") or path.startswith(f"{other}."):
                what = f"'{path}'" if other == path else f"a part of '{min(path, other, key=len)}'"
                self.wrong(source, f"sets {what} again; the first is {self._where(place)}: delete one", key=True)
                return False
        self.parsed.origins[path] = source
        return True

    def _where(self, source: Place) -> str:
        position = self.document.at(source, key=True)
        return f"on line {position.line}" if position.line is not None else f"in {position.via}"

    def _axis(self, domain: Domain, level: _Level, parts: _Parts) -> None:
        path = ".".join(level.path)
        if not self._claim(path, level.source):
            return
        axis = Axis(level.prefix + path, path, domain)
        parts.axes.append(axis)
        for value, source in self._values(domain, level.source):
            self.parsed.leaves.append(Leaf(path, value, {**level.choices, axis.name: value}, source))

    def _values(self, domain: Domain, source: Place) -> Iterator[tuple[Any, Place]]:
        known = self.document.values
        if isinstance(domain, Interval):
            integer = domain.integer
            for word, end in (("min", domain.low), ("max", domain.high)):
                yield (int(end) if integer else end), (*source, word)
            return
        for index, value in enumerate(domain.values):
            places = ((*source, index), (*source, "values", index), (*source, "value"))
            yield value, next((place for place in places if place in known), source)

    def _choice(self, values: list[Any], source: Place, target: Target) -> Choice | None:
        if not values:
            self.wrong(source, "an empty list; name at least one value")
            return None
        scalars = [value for value in values if not isinstance(value, list | dict)]
        if target.list_typed and any(not target.takes(value) for value in scalars):
            flat = ", ".join(value if isinstance(value, str) else show(value) for value in scalars)
            self.wrong(source, f"a list here is a choice between values; write [[{flat}]] for the one list [{flat}]")
            return None
        kept: list[Any] = []
        for index, value in enumerate(values):
            if any(_same(value, other) for other in kept):
                place = next(
                    p for p in ((*source, index), (*source, "values", index), source) if p in self.document.values
                )
                self.wrong(place, f"{show(value)} stands twice; delete one")
            else:
                kept.append(value)
        return Choice(tuple(kept))

    def _domain(self, raw: Mapping[str, Any], level: _Level, target: Target) -> Domain | None:
        sound = True
        for word in raw:
            if word not in DOMAIN_WORDS:
                mend = domain_answer(word)
                self.wrong((*level.source, word), unknown(word, DOMAIN_WORDS, mend), key=True)
                sound = False
        name = raw.get("distribution")
        if name is not None and name not in DISTRIBUTION_NAMES:
            mend = DISTRIBUTIONS.get(name) if isinstance(name, str) else None
            self.wrong((*level.source, "distribution"), unknown(str(name), DISTRIBUTION_NAMES, mend))
            sound = False
        if not sound:
            return None
        forms = [word for word in ("value", "values") if word in raw] + ["min and max"] * ("min" in raw or "max" in raw)
        if len(forms) != 1:
            given = " and ".join(forms) if forms else "none"
            self.wrong(level.source, f"give one of value, values, or min and max, but got {given}")
            return None
        if forms[0] == "min and max":
            return self._interval(raw, level.source, target, name)
        if (name == "constant" and forms[0] != "value") or name in CONTINUOUS or (name and "q" in raw) or "q" in raw:
            wanted = "value" if name == "constant" else "min and max"
            self.wrong(level.source, f"{name or 'q'} goes with {wanted}, but got {forms[0]}")
            return None
        if forms[0] == "value":
            return Choice((raw["value"],))
        if not isinstance(raw["values"], list):
            self.wrong((*level.source, "values"), f"{show(raw['values'])} is not a list; write [{show(raw['values'])}]")
            return None
        return self._choice(raw["values"], (*level.source, "values"), target)

    def _interval(self, raw: Mapping[str, Any], source: Place, target: Target, name: str | None) -> Interval | None:
        found = Range(raw, target, name)
        for word, message in found.problems():
            self.wrong((*source, word) if word in raw else source, message)
            return None
        return found.interval()

    def _branch(self, raw: Mapping[str, Any], level: _Level, target: Target, parts: _Parts) -> None:
        path, source = ".".join(level.path), (*level.source, "choose")
        for extra in (word for word in raw if word != "choose"):
            self.wrong((*level.source, extra), f"'{extra}' stands beside choose; put it inside an arm", key=True)
        chosen = raw["choose"]
        if not isinstance(chosen, Mapping) or not chosen:
            self.wrong(source, f"{show(chosen)} is no choice of arms; write choose: {{ARM: {{...}}, ARM: {{...}}}}")
            return
        variants = arms(target)
        plain = not variants and not target.anything
        legal = list(variants) if variants else [word for word in target.literals if isinstance(word, str)]
        if plain and not legal:
            self.wrong(source, f"'{path}' has no variants to choose from; write a list of values", key=True)
            return
        name, key = level.prefix + path, path if plain else f"{path}.type"
        if not self._claim(key, level.source):
            return
        inside = level.path[:-1] if plain else level.path
        before = dict(self.parsed.origins)
        spaces: dict[str, Space] = {}
        claimed: dict[str, Place] = {}
        for arm, body in chosen.items():
            place = (*source, arm)
            if legal and arm not in legal:
                self.wrong(place, unknown(arm, legal), key=True)
            elif body is not None and not isinstance(body, Mapping):
                self.wrong(place, f"{show(body)} is no mapping; write {{}} for an arm without parameters of its own")
            else:
                choices = {**level.choices, name: arm}
                inner = _Parts()
                self.parsed.origins = dict(before)
                self.parsed.leaves.append(Leaf(key, arm, choices, place))
                self.section(body or {}, _Level(place, inside, f"{name}.{arm}.", choices), inner)
                spaces[arm] = inner.space()
                claimed.update(self.parsed.origins)
        self.parsed.origins = {**before, **claimed}
        if spaces:
            parts.branches.append(Branch(path, spaces, name, key))

    def together(self, raw: Any, level: _Level, parts: _Parts) -> None:
        """`together: {NAME: [{path: value, ...}, ...]}`."""
        if not isinstance(raw, Mapping) or not raw:
            self.wrong(level.source, "together takes named groups: {NAME: [{KEY: VALUE, KEY: VALUE}, ...]}")
            return
        for name, rows in raw.items():
            source = (*level.source, name)
            if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) and row for row in rows):
                self.wrong(source, "a group is a list of mappings, one a pairing: [{KEY: VALUE, KEY: VALUE}, ...]")
                continue
            self._group(level.prefix + name, rows, replace(level, source=source), parts)

    def _group(self, name: str, rows: list[Any], level: _Level, parts: _Parts) -> None:
        flat: list[dict[str, Any]] = []
        places: list[dict[str, Place]] = []
        for index, row in enumerate(rows):
            pairs = list(self._pairs(row, (*level.source, index), level.path))
            flat.append({path: value for path, value, _ in pairs})
            places.append({path: place for path, _, place in pairs})
        sound = True
        for path, place in ((path, place) for row in places for path, place in row.items()):
            target = lookup(self.models, path.split("."))
            if not target.leaves:
                self.wrong(place, self._unknown(target), key=True)
                sound = False
        for index, pairing in enumerate(flat):
            if sound and set(pairing) != set(flat[0]):
                keys = ", ".join(sorted(set(pairing) ^ set(flat[0])))
                self.wrong((*level.source, index), f"every row sets the same keys, but {keys} stands in some rows only")
                sound = False
        claimed = [self._claim(path, place) for path, place in places[0].items()] if sound else []
        if not sound or not all(claimed):
            return
        group = Group(name, tuple(flat))
        parts.groups.append(group)
        for index, row_places in enumerate(places):
            for path, place in row_places.items():
                self.parsed.leaves.append(Leaf(path, flat[index][path], {**level.choices, group.axis: index}, place))

    def _pairs(self, row: Mapping[str, Any], source: Place, path: tuple[str, ...]) -> Iterator[tuple[str, Any, Place]]:
        for key, value in row.items():
            words = tuple(key.split("."))
            if not path and words[0] == "pipeline":
                words = words[1:]
            here = (*path, *words)
            if isinstance(value, Mapping) and (not words or lookup(self.models, here).models):
                yield from self._pairs(value, (*source, key), here)
            else:
                yield ".".join(here), value, (*source, key)


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)
