"""Where a model's files lie, and the hash of what they hold. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

from pipelines.data.base import Stamp, stamp_of
from pipelines.packages import PACKAGE, package_path
from pipelines.stage import UserError

SUFFIXES = (".json", ".txt", ".model", ".jinja", ".safetensors", ".py")
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_HUB_SECONDS = 5.0
_HASHES: dict[tuple[Stamp, ...], str] = {}
_KEPT = 16


def find_model(source: str, setting: str, *, code: bool = False) -> Path:
    """The folder of a model.

    Args:
        source: hub id, folder, or `package://module/path`.
        setting: what in the sweep file names it, for messages.
        code: also fetch the model's own Python code from a hub.

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
    if not _HUB_ID.fullmatch(source):
        raise UserError(f"{setting}: {source}: there is no folder {folder}")
    return _from_hub(source, setting, code)


def folder_hash(folder: Path) -> str:
    """SHA-256 (hex) over names and contents of the files that a model is loaded from; kept by their times and sizes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in SUFFIXES)
    names = {path.relative_to(folder).as_posix(): path for path in files if not path.name.startswith(".")}
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


def _from_hub(source: str, setting: str, code: bool) -> Path:
    """A snapshot of a hub repository: the local one where there is one, else fetched; fails within seconds."""
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    wanted = [f"*{suffix}" for suffix in SUFFIXES if code or suffix != ".py"]
    with contextlib.suppress(OSError, ValueError):
        local = Path(snapshot_download(source, allow_patterns=wanted, local_files_only=True))
        if any(local.rglob("*.safetensors")):
            return local
    try:
        revision = HfApi().model_info(source, timeout=_HUB_SECONDS).sha
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted, etag_timeout=_HUB_SECONDS))
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
        raise UserError(
            f"{setting}: {source!r} is no folder here and can't be fetched from the model hub ({reason}); give a folder, or "
            "package://module/path (a model inside an installed package)"
        ) from error
