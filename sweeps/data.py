"""A sweep's data at the door: what the disk shows of it without reading rows, what it is pinned to, and reading it once.

A sweep sees one content of every file and one commit of every hub data set. `check_data` finds out which (the `pins`),
the resolved sweep keeps them, and whoever reads rows refuses others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import FineTuneConfig, RagConfig, parse_pipeline
from pipelines.data.files import GZIP, find_files, format_of, is_hub_id, is_pattern
from pipelines.stage import UserError
from sweeps.local import SPLITS, absolute_data, absolute_path, is_hub_data
from sweeps.problems import Problem, SpecError, show
from sweeps.rag_data import pin_rag, read_rag

if TYPE_CHECKING:
    from sweeps.load import LoadedSweep

HUB_KEYS = ("name", "split", "revision")
FILE_KEYS = ("ds_type", "content_hash")
_CONFIGURATIONS = 4096


def data_problems(datasets: Any, folder: Path) -> Iterator[tuple[str, str]]:
    """(dotted path, what is wrong) of data sets as the file writes them, beyond a path that leads nowhere.

    Args:
        datasets: the section `pipeline.datasets` as written.
        folder: the sweep file's.
    """
    for split in SPLITS:
        value = datasets.get(split) if isinstance(datasets, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(value.get("path"), str):
            continue
        text, hub = value["path"], is_hub_data(value, folder)
        what = f"{show(text)} is {'a hub data set' if hub else 'on the disk'}"
        for key in FILE_KEYS if hub else HUB_KEYS:
            if value.get(key) is not None:
                whose = "files" if hub else "hub data sets (OWNER/NAME)"
                yield f"datasets.{split}.{key}", f"is for {whose}, and {what}; delete it"
        if hub:
            continue
        path = absolute_path(text, folder)
        if not path.exists() and not is_pattern(str(path)):
            continue
        try:
            files = find_files(str(path), value.get("ds_type"))
            for file in files:
                format_of(file, value.get("ds_type"))
        except UserError as error:
            yield f"datasets.{split}.path", str(error)
            continue
        if value.get("streaming") is True and any(file.lower().endswith(GZIP) for file in files):
            yield f"datasets.{split}.streaming", f"{show(text)} is packed, and its rows have no place; unpack it"


def pin(config: Mapping[str, Any], folder: Path, pins: Mapping[str, str]) -> dict[str, Any]:
    """A pipeline's configuration with the commits and hashes of its data filled in.

    Args:
        config: as written, or complete.
        folder: the sweep file's.
        pins: as `LoadedSweep.pins`.
    """
    datasets = config.get("datasets")
    if config.get("type") == "rag":
        return pin_rag(config, folder, pins)
    if not pins or not isinstance(datasets, Mapping):
        return dict(config)
    return {**config, "datasets": {name: _pinned(value, folder, pins) for name, value in datasets.items()}}


def _pinned(value: Any, folder: Path, pins: Mapping[str, str]) -> Any:
    if not isinstance(value, Mapping) or not isinstance(value.get("path"), str):
        return value
    commit = pins.get(_hub_key(value["path"], value.get("revision")))
    if commit is not None:
        return {**value, "revision": commit}
    content = pins.get(absolute_data(value, folder))
    return value if content is None else {**value, "content_hash": content}


def _hub_key(path: str, revision: str | None) -> str:
    return f"{path}@{revision or ''}"


def check_data(loaded: LoadedSweep) -> LoadedSweep:
    """Read the data as trials will: empty splits, duplicates and unreadable rows are mistakes, small splits warnings.

    Hub data sets are fetched.

    Returns:
        The sweep with the warnings added, and its data pinned to what was read.

    Raises:
        SpecError: naming file and line of the data.
    """
    if isinstance(loaded.spec.pipeline, RagConfig):
        return _check_rag(loaded, loaded.spec.pipeline)
    if not isinstance(loaded.spec.pipeline, FineTuneConfig):
        return loaded
    from pipelines.splits import load_splits

    warnings: list[str] = []
    try:
        pins: dict[str, str] = {}
        for config in _configurations(loaded):
            pins |= _find_pins(config)
            splits = load_splits(_pinned_config(config, loaded.folder, pins).datasets, config.seed_data)
            warnings += [warning for warning in splits.warnings if warning not in warnings]
    except UserError as error:
        raise SpecError([Problem("pipeline.datasets", str(error))], loaded.spec.name) from None
    return _with_pins(loaded, pins, warnings)


def _check_rag(loaded: LoadedSweep, config: RagConfig) -> LoadedSweep:
    try:
        pins, warnings = read_rag(config)
    except UserError as error:
        raise SpecError([Problem("pipeline", str(error))], loaded.spec.name) from None
    return _with_pins(loaded, pins, warnings)


def _with_pins(loaded: LoadedSweep, pins: dict[str, str], warnings: list[str]) -> LoadedSweep:
    from sweeps.draft import validate

    spec = loaded.spec.model_dump(mode="json")
    spec["pipeline"] = pin(loaded.spec.pipeline.model_dump(mode="json", exclude_unset=True), loaded.folder, pins)
    return replace(loaded, warnings=(*loaded.warnings, *warnings), pins=pins, spec=validate(spec))


def refuse_changed_data(loaded: LoadedSweep) -> None:
    """Compare the files with those that a sweep was begun with; nothing is fetched.

    Raises:
        UserError: naming the file that has changed, or is not there any more.
    """
    if isinstance(loaded.spec.pipeline, RagConfig) and loaded.pins:
        read_rag(loaded.spec.pipeline)
    if not isinstance(loaded.spec.pipeline, FineTuneConfig) or not loaded.pins:
        return
    from pipelines.splits import refuse_other_content

    for config in _configurations(loaded):
        for data in config.datasets.files.values():
            refuse_other_content(data)


def _pinned_config(config: FineTuneConfig, folder: Path, pins: Mapping[str, str]) -> FineTuneConfig:
    typed = parse_pipeline(pin(config.model_dump(mode="json"), folder, pins))
    assert isinstance(typed, FineTuneConfig)
    return typed


def _find_pins(config: FineTuneConfig) -> dict[str, str]:
    """What each data set of a configuration is now."""
    from pipelines.splits import data_hash, refuse_other_content

    found: dict[str, str] = {}
    for data in config.datasets.files.values():
        if is_hub_id(data.path):
            from pipelines.data.hub import commit_of

            found[_hub_key(data.path, data.revision)] = commit_of(data.path, data.revision)
        else:
            refuse_other_content(data)
            found[data.path] = data_hash(data)
    return found


def _configurations(loaded: LoadedSweep) -> Iterator[FineTuneConfig]:
    """Configurations whose data differ: the first, those that swept keys make, and the baseline."""
    import itertools

    from sweeps.draft import first, spanned
    from sweeps.parameters import Parsed

    parsed = Parsed(space=loaded.space)
    swept = any(path.startswith("datasets.") for path in loaded.space.paths)
    drawn = itertools.islice(spanned(parsed), _CONFIGURATIONS) if swept else [first(parsed, {})]
    configs = itertools.chain(map(loaded.resolve, drawn), filter(None, [loaded.resolve_baseline()]))
    seen: set[str] = set()
    for config in configs:
        typed = parse_pipeline(config)
        assert isinstance(typed, FineTuneConfig)
        key = typed.datasets.model_dump_json(exclude={"train": {"limit"}})
        if key not in seen:
            seen.add(key)
            yield typed
