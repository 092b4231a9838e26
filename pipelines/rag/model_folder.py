"""Where a model's files lie, and the hash of what they hold. No torch."""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.hashes import kept_hash, list_hash
from pipelines.packages import hub_snapshot, lacks_code, named_path
from pipelines.stage import UserError

SUFFIXES = (".json", ".txt", ".model", ".jinja", ".safetensors", ".py")
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_ALTERNATIVES = "Give a folder, or package://module/path (a model inside an installed package)"


def find_model(source: str, setting: str, *, code: bool = False) -> Path:
    """The folder of a model.

    Args:
        source: hub id, folder, or `package://module/path`.
        setting: what in the sweep file names it, for messages.
        code: also fetch the model's own Python code from a hub.

    Raises:
        UserError: if it is not there and can't be fetched.
    """
    folder = named_path(source, setting)
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(source):
        raise UserError(f"{setting}: {source}: there is no folder {folder}")
    wanted = [f"*{suffix}" for suffix in SUFFIXES if code or suffix != ".py"]

    def whole(local: Path) -> bool:
        return any(local.rglob("*.safetensors")) and not (code and lacks_code(local))

    return hub_snapshot(source, setting, wanted, whole, _ALTERNATIVES)


def folder_hash(folder: Path) -> str:
    """SHA-256 (hex) over names and contents of the files that a model is loaded from; kept by their times and sizes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in SUFFIXES)
    names = {path.relative_to(folder).as_posix(): path for path in files if not path.name.startswith(".")}
    return list_hash((name, kept_hash(path)) for name, path in names.items())


def pickled_weights(folder: Path) -> Path | None:
    """A file of weights that the library would unpickle, there being no safetensors beside it; it is in no `folder_hash`."""
    found = sorted(folder.rglob("pytorch_model.bin"))
    return next((path for path in found if not any(path.parent.glob("*.safetensors"))), None)
