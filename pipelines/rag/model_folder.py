"""Where a model's files lie, and the hash of what they hold. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipelines.data.base import Stamp, stamp_of
from pipelines.packages import PACKAGE, package_path
from pipelines.stage import UserError

SUFFIXES = (".json", ".txt", ".model", ".jinja", ".safetensors", ".bin")
_HASHES: dict[tuple[Stamp, ...], str] = {}
_KEPT = 16


def find_model(source: str, setting: str) -> Path:
    """The folder of a model.

    Args:
        source: hub id, folder, or `package://module/path`.
        setting: what in the sweep file names it, for messages.

    Raises:
        UserError: if it is not there and can't be fetched.
    """
    if source.startswith(PACKAGE):
        try:
            folder = package_path(source)
        except LookupError as error:
            raise UserError(
                f"{setting}: {source}: no package {error.args[0]!r} is installed here (pip install it where trials run)"
            ) from None
    else:
        folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.startswith((PACKAGE, "/", ".", "~")):
        raise UserError(f"{setting}: {source}: there is no folder {folder}")
    return _from_hub(source, setting)


def folder_hash(folder: Path) -> str:
    """SHA-256 (hex) over names and contents of the files that a model is loaded from; kept by their times and sizes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in SUFFIXES)
    names = {path.relative_to(folder).as_posix(): path for path in files if not path.name.startswith(".")}
    if any(path.suffix == ".safetensors" for path in names.values()):
        names = {name: path for name, path in names.items() if path.suffix != ".bin"}
    stamps = tuple(stamp_of(str(path)) for path in names.values())
    if stamps not in _HASHES:
        whole = hashlib.sha256()
        for name, path in names.items():
            with path.open("rb") as file:
                whole.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        while len(_HASHES) >= _KEPT:
            _HASHES.pop(next(iter(_HASHES)))
        _HASHES[stamps] = whole.hexdigest()
    return _HASHES[stamps]


def _from_hub(source: str, setting: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        return Path(snapshot_download(source, allow_patterns=wanted, local_files_only=True))
    except Exception:  # not in the cache, whatever the library calls that
        pass
    try:
        return Path(snapshot_download(source, allow_patterns=wanted, etag_timeout=10))
    except Exception as error:  # the library's, httpx's and the system's errors have no common base
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
        raise UserError(
            f"{setting}: {source!r} is no folder here and can't be fetched from the model hub ({reason}); give a folder, or "
            "package://module/path (a model inside an installed package)"
        ) from error
