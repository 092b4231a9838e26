"""Task files of lm-evaluation-harness, read without importing it: which names there are, and on what each is scored.

Only what `check` asks is read: names of tasks, groups and tags, and which splits a task has.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_NAMED = re.compile(r"^(?:task|group):[ \t]*['\"]?([^\s'\"\[#]+)", re.MULTILINE)
_TAGS = re.compile(
    r"^tag:[ \t]*(?P<one>[^\s#\[-][^\s#]*)?(?P<rest>(?:[ \t]*(?:#.*)?\n[ \t]*-[ \t]*\S+)*)", re.MULTILINE
)


@dataclass
class TaskFiles:
    """Names of a folder of task files.

    Attributes:
        files: task or group -> its file.
        tags: tag -> its tasks.
    """

    files: dict[str, Path] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """All of them."""
        return {*self.files, *self.tags}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe, and blind to `!function` and whatever other tags there are."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: str(node.value))


def harness_folder() -> Path | None:
    """The task files that come with lm-evaluation-harness; None where it is not installed."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "tasks"


@functools.lru_cache(maxsize=4)
def task_files(folder: Path) -> TaskFiles:
    """The names of a folder and what lies below it."""
    found = TaskFiles()
    for path in sorted(folder.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        name = _NAMED.search(text)
        if name is None:
            continue
        found.files.setdefault(name[1], path)
        for tag in _tags(text):
            found.tags.setdefault(tag, []).append(name[1])
    return found


def sources(include_path: Path | None, name: str) -> tuple[TaskFiles, ...]:
    """Where a name is looked for: in the user's own folder, and where that does not have it in the harness's."""
    own = () if include_path is None else (task_files(include_path),)
    if any(name in files.names for files in own):
        return own
    theirs = harness_folder()
    return own if theirs is None else (*own, task_files(theirs))


def scored_during(name: str, among: tuple[TaskFiles, ...]) -> bool:
    """Whether every task that a name stands for has a validation split beside a test split; None of a name is no task."""
    leaves = list(_leaves(name, among, frozenset()))
    return bool(leaves) and all(leaf.get("test_split") and leaf.get("validation_split") for leaf in leaves)


def _leaves(name: str, among: tuple[TaskFiles, ...], above: frozenset[str]) -> Iterator[Mapping[str, Any]]:
    """The configurations of the tasks that a name stands for; a task that can't be found has an empty one."""
    if name in above:
        return
    path = next((files.files[name] for files in among if name in files.files), None)
    if path is None:
        tagged = next((files.tags[name] for files in among if name in files.tags), None)
        for task in tagged or ():
            yield from _leaves(task, among, above | {name})
        if tagged is None:
            yield {}
        return
    config = _read(path)
    members = config.get("task")
    if not isinstance(members, list):
        yield config
        return
    for member in members:
        inner = member if isinstance(member, str) else member.get("task") or member.get("group")
        yield from _leaves(str(inner), among, above | {name})


def _read(path: Path) -> dict[str, Any]:
    """A task file with what it includes below it; empty where it can't be read."""
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    if not isinstance(config, dict):
        return {}
    included = config.pop("include", None) or []
    merged: dict[str, Any] = {}
    for other in [included] if isinstance(included, str) else included:
        if (path.parent / str(other)).resolve() != path.resolve():
            merged.update(_read(path.parent / str(other)))
    return {**merged, **config}


def _tags(text: str) -> Iterator[str]:
    found = _TAGS.search(text)
    if found is not None:
        yield from [found["one"]] if found["one"] else []
        yield from re.findall(r"-[ \t]*['\"]?([^\s'\"]+)", found["rest"] or "")
