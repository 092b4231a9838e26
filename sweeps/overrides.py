"""`--set key=value`, and the bare words of a file (`method: tpe`) written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config import PIPELINE_CONFIGS
from sweeps.complaints import BARE
from sweeps.problems import Problem, close
from sweeps.spec import SweepSpec
from sweeps.yaml_source import Document, Place, read


def write_out(document: Document) -> None:
    """Turn bare words into sections, in place; their places stay the word's."""
    data = document.data
    for section, key in BARE.items():
        if isinstance(data.get(section), str):
            data[section] = {key: data[section]}
    if isinstance(data.get("track"), str | dict):
        data["track"] = [data["track"]]
    for section, key in (("evaluate", "type"), ("metric", "name"), ("track", "type")):
        if isinstance(data.get(section), list):
            data[section] = [{key: entry} if isinstance(entry, str) else entry for entry in data[section]]
    for entry in data["evaluate"] if isinstance(data.get("evaluate"), list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("tasks"), list):
            entry["tasks"] = [{"name": task} if isinstance(task, str) else task for task in entry["tasks"]]


def apply_sets(document: Document, sets: Sequence[str]) -> None:
    """Put `--set` arguments into the document, later ones over earlier ones; mistakes go to its problems."""
    for argument in sets:
        key, equals, text = argument.partition("=")
        via = f"--set {argument if len(argument) <= 60 else argument[:57] + '...'}"
        if not equals or not key.strip() or not all(key.strip().split(".")):
            document.problems.append(Problem("", "is not KEY=VALUE, with dots between nested keys", via=via))
            continue
        value = read(text.encode("utf-8", "replace"))
        if value.problems:
            document.problems += [Problem(key, problem.message, via=via) for problem in value.problems]
            continue
        path = _path(key.strip(), document.data)
        if (problem := _swept(path, document.data)) is not None:
            document.problems.append(Problem(key.strip(), problem, via=via))
        elif not _put(document.data, path, value.data):
            document.problems.append(Problem(key.strip(), "leads into a value that has no keys below it", via=via))
        else:
            document.override(path, value.data, via)
            write_out(document)


def _path(key: str, data: Mapping[str, Any]) -> Place:
    """Keys from the top; a key of the pipeline may leave `pipeline.` out, one of `parameters` keeps its dots."""
    words = key.split(".")
    if words[0] == "parameters" and len(words) > 1:
        return ("parameters", *_inside_parameters(words[1:], data.get("parameters")))
    if words[0] not in SweepSpec.model_fields:
        keys = {key for config in PIPELINE_CONFIGS for key in config.model_fields}
        if words[0] in keys or (close(words[0], keys) and not close(words[0], SweepSpec.model_fields)):
            words = ["pipeline", *words]
    return tuple(int(word) if word.isdecimal() and len(word) < 6 else word for word in words)


def _inside_parameters(words: list[str], raw: Any) -> list[str]:
    """The keys that are there already, longest first; what is left over is one dotted key."""
    found: list[str] = []
    while words and isinstance(raw, Mapping):
        for length in range(len(words), 0, -1):
            joined = ".".join(words[:length])
            if joined in raw:
                found, words, raw = [*found, joined], words[length:], raw[joined]
                break
        else:
            break
    return [*found, ".".join(words)] if words else found


def _swept(path: Place, data: Mapping[str, Any]) -> str | None:
    raw = data.get("parameters")
    if path[0] != "pipeline" or not isinstance(raw, Mapping):
        return None
    name = ".".join(str(part) for part in path[1:])
    if name in raw or f"pipeline.{name}" in raw:
        return f"is swept, so that this value would never be used; write --set parameters.{name}=[VALUE]"
    return None


def _put(data: Any, path: Place, value: Any) -> bool:
    *parents, last = path
    for part in parents:
        if isinstance(data, dict):
            if data.get(str(part)) is None:
                data[str(part)] = {}
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return False
    if isinstance(data, dict):
        data[str(last)] = value
        return True
    if isinstance(data, list) and isinstance(last, int) and last < len(data):
        data[last] = value
        return True
    return False
