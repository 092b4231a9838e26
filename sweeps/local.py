"""What the local disk shows before anything starts: data files, models, modules. Nothing is imported or downloaded."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.data.files import is_hub_id, is_pattern
from sweeps.problems import close, show

PACKAGE, SWEEP, HUB_DATA = "package://", "sweep://", "hf://datasets/"
SPLITS = ("train", "tune", "select", "test")
MODEL_KEYS = ("base_model", "reference", "teacher")
"""Keys of a fine-tune that name a model."""
_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?\Z")
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def absolute(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A pipeline's configuration with every path made absolute; paths are relative to the sweep file's folder."""
    if config.get("type") == "rag":
        from sweeps.local_rag import absolute_rag

        return absolute_rag(config, folder)
    config = dict(config)
    datasets = config.get("datasets")
    if isinstance(datasets, Mapping):
        config["datasets"] = {name: _split(value, folder) for name, value in datasets.items()}
    for key in MODEL_KEYS:
        if isinstance(config.get(key), str):
            config[key] = absolute_model(config[key], folder)
        elif isinstance(config.get(key), list):
            config[key] = [absolute_model(text, folder) if isinstance(text, str) else text for text in config[key]]
    return config


def _split(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        return {**value, "path": absolute_data(value, folder)}
    return value


def absolute_data(value: Mapping[str, Any], folder: Path) -> str:
    """The path of a data set as trials get it: absolute, or a hub id."""
    return value["path"] if is_hub_data(value, folder) else str(absolute_path(value["path"], folder))


def is_hub_data(value: Mapping[str, Any], folder: Path) -> bool:
    """Whether a data set is the hub's: it reads OWNER/NAME, and no such thing is on the disk or a revision is given."""
    text = value["path"]
    return is_hub_id(text) and (value.get("revision") is not None or not _exists(absolute_path(text, folder)))


def absolute_path(text: str, folder: Path) -> Path:
    """A path as the file means it: `~` is the home folder, what is relative is relative to the sweep file."""
    path = Path(text)
    if text.startswith("~"):
        try:
            path = path.expanduser()
        except RuntimeError:
            return folder / text
    return Path(os.path.abspath(folder / path))


def absolute_model(text: str, folder: Path) -> str:
    """A base model's name with local paths made absolute; hub ids, `package://` and `sweep://` stay as they are."""
    if _REMOTE.match(text):
        return text
    path = absolute_path(text, folder)
    return str(path) if _path_like(text) or _exists(path) else text


def _path_like(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or text.endswith((".gguf", ".safetensors")) or text.count("/") > 1


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def path_problem(path: str, value: Any, folder: Path, pipeline: Any = None) -> str | None:
    """What is wrong with a value of the pipeline that names something on the disk, or None.

    Args:
        path: dotted path in the pipeline: `base_model`, `datasets.train.path`, `import_path`.
        value: as written.
        folder: the sweep file's.
        pipeline: `type` of the pipeline.
    """
    if pipeline == "rag":
        from sweeps.local_rag import rag_problem

        return rag_problem(path, value, folder)
    if path == "teacher" and isinstance(value, list):
        problems = (path_problem(path, text, folder) for text in value)
        return next((problem for problem in problems if problem), None)
    if not isinstance(value, str):
        return None
    if path in MODEL_KEYS:
        return model_problem(value, folder)
    if path == "import_path":
        return _module_problem(value, folder)
    if path in {f"datasets.{split}.path" for split in SPLITS}:
        return data_problem(value, folder)
    return None


def disk_values(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a pipeline's configuration that `path_problem` looks at."""
    if config.get("type") == "rag":
        from sweeps.local_rag import rag_values

        yield from rag_values(config)
        return
    for key in (*MODEL_KEYS, "import_path"):
        if config.get(key) is not None:
            yield key, config[key]
    datasets = config.get("datasets")
    for split in SPLITS:
        value = datasets.get(split) if isinstance(datasets, Mapping) else None
        if isinstance(value, Mapping) and "path" in value:
            yield f"datasets.{split}.path", value["path"]


def data_problem(text: str, folder: Path) -> str | None:
    """What is wrong with the name of a data file or folder, or None."""
    if text.startswith(HUB_DATA):
        return f"{show(text)} is remote; write the hub id alone: {text.removeprefix(HUB_DATA)}"
    if _REMOTE.match(text):
        return f"{show(text)} is remote; download the file, and give its path"
    path = absolute_path(text, folder)
    if _exists(path) or is_pattern(str(path)):
        return None
    near = _near(path)
    if is_hub_id(text) and not near:
        return None
    return f"{show(text)} is not there ({path}); {near}paths are relative to the sweep file"


def _near(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    guess = close(path.name, names)
    return f"did you mean '{guess}'? " if guess else ""


def model_problem(text: str, folder: Path) -> str | None:
    """What is wrong with the name of a model, or None."""
    if text.startswith(SWEEP):
        return None
    if text.startswith(PACKAGE):
        return _package_problem(text)
    if _REMOTE.match(text):
        return f"{show(text)} is no model; give a hub id, a folder, a GGUF file, package://MODULE/PATH or sweep://NAME/best"
    path = absolute_path(text, folder)
    if _exists(path):
        if path.is_file() and path.suffix != ".gguf":
            return f"{show(text)} is a file, but no GGUF file; name the folder of the model"
        return _unreadable(path)
    if _path_like(text):
        return f"{show(text)} is not there ({path}); {_near(path)}paths are relative to the sweep file"
    if not _HUB.match(text):
        return f"{show(text)} is neither a hub id (OWNER/NAME) nor a path that exists"
    return None


def _package_problem(text: str) -> str | None:
    module, _, inside = text.removeprefix(PACKAGE).partition("/")
    if not module.isidentifier() or not inside:
        return f"{show(text)} is not package://MODULE/PATH"
    root = package_folder(module)
    if root is None:
        return f"the package '{module}' is not installed; pip install --no-deps {module.replace('_', '-')}"
    path = root / inside
    if not _exists(path):
        return f"the package '{module}' has no '{inside}'; {_near(path)}it lies in {root}"
    return _unreadable(path)


def _unreadable(path: Path) -> str | None:
    """What is wrong with a GGUF file on a machine that can't read one."""
    if path.suffix != ".gguf" or importlib.util.find_spec("gguf") is not None:
        return None
    return f"{path.name} can't be read without the package 'gguf'; pip install --no-deps gguf"


def package_folder(module: str) -> Path | None:
    """Where an installed package lies, found without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))) if places else None


def _module_problem(text: str, folder: Path) -> str | None:
    module = text.partition(":")[0].split(".")[0]
    if module in sys.modules or module in sys.builtin_module_names:
        return None
    if importlib.machinery.PathFinder.find_spec(module, [str(folder), *sys.path]) is None:
        return f"there is no module '{module}', neither beside the sweep file nor installed"
    return None
