"""A sweep file on its way to being one: what was read, what of it is sound, and the configurations it spans."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.config import PIPELINE_ADAPTER, PIPELINE_CONFIGS, AnyPipeline, Config
from pipelines.finetune.recipes import filled
from sweeps.complaints import Complaint, complaints
from sweeps.data import data_problems
from sweeps.fields import Models, model_at, overlay, type_names
from sweeps.local import absolute_path, disk_values, path_problem
from sweeps.parameters import Parsed, parse
from sweeps.paths import is_remote, storage_folder
from sweeps.problems import close, show
from sweeps.space import Choice, Domain, Interval
from sweeps.spec import Resources, SweepSpec
from sweeps.yaml_source import Document, Place

GRID_CHECKED = 4096
DRAWS_CHECKED = 256
_STAND_INS: dict[str, Any] = {
    "name": "sweep",
    "pipeline": {"type": "custom", "import_path": "module:Class", "total": 1},
    "metric": {"name": "loss"},
}


@dataclass
class Draft:
    """What the rules between sections see.

    Attributes:
        document: the file; problems go there.
        folder: the sweep file's.
        spec: typed; the sections in `broken` hold stand-ins.
        broken: sections with mistakes of their own.
        written: the pipeline section as written, JSON.
        parsed: what `parameters:` amounts to.
        models: configuration classes of the pipeline.
        configs: (parameters, typed configuration) of the grid or of seeded draws; empty when one of them is broken.
        fetch: whether hub data sets may be fetched, to count their rows.
        questions: numbers of questions that were counted already.
    """

    document: Document
    folder: Path
    spec: SweepSpec
    broken: frozenset[str]
    written: dict[str, Any]
    parsed: Parsed
    models: Models
    configs: list[tuple[dict[str, Any], AnyPipeline]] = field(default_factory=list)
    fetch: bool = False
    questions: dict[str, int] = field(default_factory=dict)

    @property
    def storage(self) -> Path:
        """Relative to the sweep file where the file names it, else to where the command runs; of remote storage its working folder."""
        if is_remote(self.spec.storage):
            return storage_folder(self.spec.storage)
        named = self.document.at(("storage",)).line is not None and "storage" in self.document.data
        return absolute_path(self.spec.storage, self.folder if named else Path.cwd())

    def sound(self, *sections: str) -> bool:
        """Whether all of these sections are free of mistakes."""
        return not self.broken.intersection(sections)

    def wrong(self, place: Place, message: str) -> None:
        """Note a mistake."""
        self.document.problems.append(self.document.problem(place, message))

    def source(self, path: str) -> Place:
        """Where a dotted path of the pipeline gets its values: under `parameters`, else under `pipeline`."""
        for swept, place in self.parsed.origins.items():
            if path == swept or path.startswith(f"{swept}."):
                return place
        return ("pipeline", *path.split("."))

    def swept(self, path: str) -> bool:
        """Whether `parameters` sets a path, or a part of it."""
        return any(path == other or other.startswith(f"{path}.") for other in self.parsed.origins)


def make_draft(document: Document, folder: Path) -> Draft:
    """Type what is sound, validate every value of the space, and note all mistakes in the document."""
    data: dict[str, Any] = document.data
    written = data.get("pipeline") if isinstance(data.get("pipeline"), Mapping) else {}
    models = tuple(m for m in model_at(PIPELINE_CONFIGS, written, ()) if issubclass(m, Config))
    parsed = parse(document, data.get("parameters"), models)
    before = len(document.problems)
    spec, broken, left = _type_sections(document, data, written or {}, parsed, models)
    draft = Draft(document, folder, spec, broken, written or {}, parsed, models)
    _check_leaves(draft)
    _check_disk(draft)
    if left and not document.problems:
        document.problems += [document.problem(found.path, found.message) for found in left]
    if draft.sound("pipeline") and len(document.problems) == before:
        _span(draft)
    return draft


def _type_sections(
    document: Document, data: dict[str, Any], written: Mapping[str, Any], parsed: Parsed, models: Models
) -> tuple[SweepSpec, frozenset[str], list[Complaint]]:
    """The typed sections, the broken ones, and the complaints that are left to the leaves of `parameters`."""
    whole = dict(data)
    if isinstance(data.get("pipeline"), Mapping):
        whole["pipeline"] = overlay(written, first(parsed, {}), models)
    broken: set[str] = set()
    left: list[Complaint] = []
    try:
        return validate(whole), frozenset(broken), []
    except ValidationError as error:
        for found in [*complaints(error, whole, (SweepSpec,)), *_guessed(error, whole)]:
            broken.add(str(found.path[0]) if found.path else "")
            leaf = _leaf_of(found, parsed)
            if leaf is None:
                document.problems.append(document.problem(found.path, found.message, key=found.on_key))
            elif found.kind == "rule":
                document.problems.append(document.problem(parsed.origins[leaf], found.message, key=True))
            else:
                left.append(found)
    while True:
        stand_in = {key: value for key, value in whole.items() if key not in broken and key in SweepSpec.model_fields}
        try:
            return validate({**_STAND_INS, **stand_in}), frozenset(broken), left
        except ValidationError as error:  # rules between fields are asked once the fields themselves are sound
            told = complaints(error, stand_in, (SweepSpec,))
            found_late = [one for one in told if one.path and one.path[0] not in broken]
            if not found_late:
                raise
            broken.update(str(one.path[0]) for one in found_late)
            document.problems += [document.problem(one.path, one.message, key=one.on_key) for one in found_late]


def _guessed(error: ValidationError, whole: dict[str, Any]) -> list[Complaint]:
    """What else is wrong where a `type` is unknown or missing: the rest of its section, read as the nearest type."""
    before = complaints(error, whole, (SweepSpec,))
    patched = json.loads(json.dumps(whole))
    guessed = False
    for found in before:
        if found.kind in ("union_tag_invalid", "union_tag_not_found"):
            section = patched
            for part in found.path[:-1]:
                section = section[part]
            name = (
                _nearest(section, model_at((SweepSpec,), whole, found.path[:-1])) if isinstance(section, dict) else None
            )
            if name is not None:
                section["type"] = name
                guessed = True
    if not guessed:
        return []
    try:
        validate(patched)
    except ValidationError as more:
        known = {found.path for found in before}
        return [found for found in complaints(more, patched, (SweepSpec,)) if found.path not in known]
    return []


def _nearest(section: Mapping[str, Any], models: Models) -> str | None:
    """The type that is spelled like the section's, else the one that knows most of its keys."""
    names = {name: model for model in models for name in type_names(model)}
    if (guess := close(str(section.get("type", "")), names)) is not None:
        return guess
    shared = {name: len(model.model_fields.keys() & section.keys() - {"type"}) for name, model in names.items()}
    best = max(shared, key=lambda name: shared[name], default=None)
    return best if best is not None and shared[best] > 0 else None


def validate(data: Mapping[str, Any]) -> SweepSpec:
    """Type a whole file as it is read: a list is a list, but text is no number and 1 is no boolean. A recipe fills in.

    Raises:
        ValidationError: with every mistake.
    """
    whole = {**data, "pipeline": filled(data["pipeline"], _workers(data))} if "pipeline" in data else data
    return SweepSpec.model_validate_json(json.dumps(whole), strict=True)


def _workers(data: Mapping[str, Any]) -> int:
    """Processes that train one trial of a file as it is read; 1 where it says that wrongly, which is told elsewhere."""
    try:
        return Resources.model_validate_json(json.dumps(data.get("resources", {})), strict=True).together
    except ValidationError:
        return 1


def type_config(config: Mapping[str, Any], workers: int = 1) -> AnyPipeline:
    """Type one pipeline configuration, strictly; a recipe fills in for so many workers a trial.

    Raises:
        ValidationError: with every mistake.
    """
    return PIPELINE_ADAPTER.validate_json(json.dumps(filled(config, workers)), strict=True)


def _leaf_of(found: Complaint, parsed: Parsed) -> str | None:
    """The path under `parameters` that sets what a complaint is about, or None."""
    if found.path[:1] != ("pipeline",):
        return None
    path = ".".join(str(part) for part in found.path[1:])
    return next((leaf for leaf in parsed.origins if path == leaf or path.startswith(f"{leaf}.")), None)


def first(parsed: Parsed, choices: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the first configuration, with some choices made otherwise."""

    def pick(name: str, domain: Domain) -> Any:
        if name in choices:
            return choices[name]
        if isinstance(domain, Interval):
            return int(domain.low) if domain.integer else domain.low
        return domain.values[0]

    return parsed.space.sample(pick)[0]


def _check_leaves(draft: Draft) -> None:
    """Every value on its own, in the first configuration that holds it."""
    for leaf in draft.parsed.leaves:
        config = overlay(draft.written, first(draft.parsed, leaf.choices), draft.models)
        try:
            type_config(config, draft.spec.resources.together)
        except ValidationError as error:
            for found in complaints(error, config, draft.models, "pipeline"):
                path = ".".join(str(part) for part in found.path)
                if found.kind != "rule" and (path == leaf.path or path.startswith(f"{leaf.path}.")):
                    draft.wrong(leaf.source, found.message)


def _check_disk(draft: Draft) -> None:
    """Files, models and modules that the pipeline names, written or swept."""
    for path, value in disk_values(draft.written):
        if not draft.swept(path) and (message := path_problem(path, value, draft.folder, draft.written.get("type"))):
            draft.wrong(("pipeline", *path.split(".")), message)
    for path, message in data_problems(draft.written.get("datasets"), draft.folder):
        if not draft.swept(path):
            draft.wrong(("pipeline", *path.split(".")), message)
    for leaf in draft.parsed.leaves:
        if message := path_problem(leaf.path, leaf.value, draft.folder, draft.written.get("type")):
            draft.wrong(leaf.source, message)


def _span(draft: Draft) -> None:
    """Cross-field rules on the whole grid, or on seeded draws of a larger space."""
    seen: set[str] = set()
    for parameters in itertools.islice(spanned(draft.parsed), GRID_CHECKED):
        config = overlay(draft.written, parameters, draft.models)
        try:
            draft.configs.append((parameters, type_config(config, draft.spec.resources.together)))
        except ValidationError as error:
            for found in complaints(error, config, draft.models, "pipeline"):
                if found.message not in seen:
                    seen.add(found.message)
                    _combination(draft, found, parameters)
    if seen:
        draft.configs.clear()


def spanned(parsed: Parsed) -> Iterator[dict[str, Any]]:
    """All configurations of a small grid, else draws with seed 0."""
    space = parsed.space
    if space.size is not None and space.size <= GRID_CHECKED:
        yield from (space.replay(choices) for choices in space.grid())
        return
    import random

    generator = random.Random(0)

    def draw(name: str, domain: Domain) -> Any:
        return generator.choice(domain.values) if isinstance(domain, Choice) else domain.scale(generator.random())

    yield first(parsed, {})
    for _ in range(DRAWS_CHECKED):
        yield space.sample(draw)[0]


def _combination(draft: Draft, found: Complaint, parameters: Mapping[str, Any]) -> None:
    path = ".".join(str(part) for part in found.path)
    values = ", ".join(f"{name}: {show(value)}" for name, value in itertools.islice(parameters.items(), 6))
    message = found.message
    if found.on_key:
        message = f"{message}; a key of one variant only belongs inside its arm of choose"
    draft.wrong(draft.source(path), f"{message} (with {values})" if values else message)
