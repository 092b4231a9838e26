"""Where a named file or model lies: a path, `package://module/path`, or a repository of the model hub. No torch.

A package is found without importing it: only its top-level name is looked up.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.stage import UserError

PACKAGE = "package://"
HUB_SECONDS = 5.0
"""How long the hub may take to say what it has."""


def package_path(source: str) -> Path:
    """The file or folder that a `package://` name stands for, whether or not it exists.

    Raises:
        LookupError: if no such package is installed here; it holds the package's name.
    """
    name, _, rest = source.removeprefix(PACKAGE).partition("/")
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except ValueError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(top)
    roots = [Path(location, *inner) / rest for location in spec.submodule_search_locations]
    return next((path for path in roots if path.exists()), roots[0])


def named_path(source: str, setting: str) -> Path:
    """The file or folder that a path or a `package://` name stands for, whether or not it exists.

    Args:
        source: the name.
        setting: what in the sweep file has it, for messages.

    Raises:
        UserError: if no such package is installed here.
    """
    if not source.startswith(PACKAGE):
        return Path(source).expanduser()
    try:
        return package_path(source)
    except LookupError as error:
        raise UserError(
            f"{setting}: {source}: no package {error.args[0]!r} is installed here (pip install it where trials run)"
        ) from None


def hub_snapshot(source: str, setting: str, files: Sequence[str], whole: Callable[[Path], bool], mend: str) -> Path:
    """A snapshot of a hub repository: the local one where it is whole, else fetched; fails within seconds.

    Args:
        source: hub id.
        setting: what in the sweep file has it, for messages.
        files: patterns of the files that are wanted.
        whole: whether a local snapshot has what is needed.
        mend: what to give instead, a sentence.

    Raises:
        UserError: if it can't be fetched.
    """
    from huggingface_hub import HfApi, snapshot_download

    with contextlib.suppress(OSError, ValueError):
        local = Path(snapshot_download(source, allow_patterns=list(files), local_files_only=True))
        if whole(local):
            return local
    try:
        revision = HfApi().model_info(source, timeout=HUB_SECONDS).sha
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(files), etag_timeout=HUB_SECONDS))
    except hub_failures() as error:
        raise UserError(
            f"{setting}: {source!r} is no folder here and can't be fetched from the model hub "
            f"({type(error).__name__}: {first_line(error)}). {mend}"
        ) from error


def hub_failures() -> tuple[type[Exception], ...]:
    """What the hub's library raises where the hub is out of reach, or has not what was asked for."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # whichever it speaks through: httpx, or httpx2

    return (HfHubHTTPError, httpx.HTTPError, OSError, ValueError)


def own_code(error: BaseException, key: str) -> str | None:
    """What to say where a library refused a model because Python that comes with it would run; None of other errors.

    Args:
        error: what the library raised.
        key: what in the sweep file names the model.
    """
    if "trust_remote_code" not in str(error):
        return None
    return (
        "it comes with Python of its own, which runs only where the sweep file says trust_remote_code: true beside "
        f"{key}; read that code first"
    )


def lacks_code(folder: Path) -> bool:
    """Whether a model's files name Python beside them that is not there: they were fetched without it."""
    return any(not (folder / f"{name}.py").is_file() for name in _named_code(folder))


def _named_code(folder: Path) -> Iterator[str]:
    """Modules of a model's own that its files name, as transformers and sentence-transformers do."""
    classes: list[Any] = []
    for file in ("config.json", "tokenizer_config.json"):
        record = _read(folder / file)
        named = record.get("auto_map") if isinstance(record, dict) else None
        for value in named.values() if isinstance(named, dict) else [named]:
            classes += value if isinstance(value, list) else [value]
    parts = _read(folder / "modules.json")
    classes += [part.get("type") for part in (parts if isinstance(parts, list) else []) if isinstance(part, dict)]
    for name in classes:
        # `--` stands after the name of another repository; longer paths are those of installed packages.
        if isinstance(name, str) and name.count(".") == 1 and "--" not in name:
            yield name.partition(".")[0]


def _read(path: Path) -> Any:
    """What a JSON file holds; None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def first_line(error: BaseException) -> str:
    """The first line of what an error says, else its type."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
