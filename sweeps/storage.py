"""The remote copy of a sweep: files by name under a URL, through fsspec, with typed outcomes.

The library's own settings are read from the environment by the library itself (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`,
`GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, ...); a sweep file holds none of them.

Example:
    >>> storage = open_storage("s3://bucket/runs/gsm8k-lora")
    >>> storage.put_new("ledger/000001.jsonl", b"...")
    True
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

StorageKind = Literal["gone", "denied", "full", "unreachable", "taken", "damaged"]
CONNECT_SECONDS, READ_SECONDS = 10, 60
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Scheme:
    """A kind of remote storage.

    Attributes:
        protocol: as fsspec calls it.
        package: that fsspec needs for it.
        extra: of our distribution, that brings the package.
        errors: `module:class` of what the package raises besides `OSError`.
        options: for fsspec.
        mend: what to look at where a request is refused.
    """

    protocol: str
    package: str
    extra: str
    errors: tuple[str, ...]
    options: Mapping[str, Any]
    mend: str


SCHEMES: dict[str, Scheme] = {
    "s3": Scheme(
        "s3",
        "s3fs",
        "s3",
        ("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError", "aiohttp:ClientError"),
        {
            "use_listings_cache": False,
            "config_kwargs": {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS},
        },
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL",
    ),
    "gs": Scheme(
        "gs",
        "gcsfs",
        "gcs",
        ("gcsfs.retry:HttpError", "google.auth.exceptions:GoogleAuthError", "aiohttp:ClientError"),
        {"use_listings_cache": False},
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    "az": Scheme(
        "az",
        "adlfs",
        "azure",
        ("azure.core.exceptions:AzureError", "aiohttp:ClientError"),
        {"use_listings_cache": False},
        "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    ),
}
"""Scheme of a URL -> what serves it."""
ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "azure": "az", "adl": "az"}
"""What others call them."""
_FULL = re.compile(r"quota|insufficientstorage|no space|\b507\b|storagefull")
_DENIED = re.compile(
    r"accessdenied|access denied|forbidden|credential|signaturedoesnotmatch|invalidaccesskey|unauthorized|authentication"
    r"|\b401\b|\b403\b"
)


class StorageError(RuntimeError):
    """Remote storage did not do what it was asked; the message says what to look at.

    Attributes:
        kind: `gone` (the bucket is not there), `denied`, `full`, `unreachable` (no answer, or an answer that may be another one
            later), `taken` (another driver has the sweep), `damaged` (what came back is not what was sent).
    """

    def __init__(self, kind: StorageKind, message: str) -> None:
        super().__init__(message)
        self.kind: StorageKind = kind


class Storage:
    """Files by name under one URL. Every method may raise `StorageError`; a name is a relative path.

    Args:
        filesystem: fsspec's.
        root: the URL without its scheme.
        url: for messages.
        errors: what the filesystem raises.
        mend: what to look at where a request is refused.
    """

    def __init__(
        self, filesystem: Any, root: str, url: str, errors: tuple[type[Exception], ...] = (OSError,), mend: str = ""
    ) -> None:
        self._files = filesystem
        self._root = root.rstrip("/")
        self._errors = errors
        self._mend = mend
        self.url = url

    def files(self, folder: str = "") -> dict[str, int]:
        """Bytes of every file below a folder, by name, or of the one file that is meant; empty where there is none.

        A name that would lead out of a folder on this machine, or means none there, is passed over: anybody may write a bucket.
        """
        with self._told(f"list {folder or 'it'}"):
            found = self._files.find(self._at(folder), detail=True)
        start = len(self._root.strip("/")) + 1
        named = {path.lstrip("/")[start:]: int(info["size"]) for path, info in found.items()}
        below = {name: size for name, size in named.items() if not folder or f"{name}/".startswith(f"{folder}/")}
        return {name: size for name, size in below.items() if _is_tame(name)}

    def get(self, name: str) -> bytes | None:
        """A small file's bytes, or None where there is none."""
        with self._told(f"read {name}"):
            try:
                return bytes(self._files.cat_file(self._at(name)))
            except FileNotFoundError:
                self._files.find(self._at(".probe"))  # raises where the bucket is gone
                return None

    def put(self, name: str, data: bytes) -> None:
        """Write a small file, over what is there."""
        with self._told(f"write {name}"):
            self._files.pipe_file(self._at(name), data)

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a small file where there is none; False where there is one."""
        with self._told(f"write {name}"):
            try:
                self._files.pipe_file(self._at(name), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno != errno.EINVAL or not self._files.exists(self._at(name)):
                    raise
                return False  # how s3fs says that a server other than Amazon's has one
            return True

    def send(self, file: Path, name: str, moved: Callable[[], None] = lambda: None) -> None:
        """Upload a file.

        Args:
            file: on this machine.
            name: there.
            moved: called whenever a piece of it has gone.

        Raises:
            FileNotFoundError: if it is not there any more.
        """
        from fsspec.callbacks import Callback

        with file.open("rb"):
            pass
        pieces = Callback(hooks={"moved": lambda size, value, **more: moved()})
        try:
            with self._told(f"write {name}"):
                self._files.put_file(str(file), self._at(name), callback=pieces)
        except StorageError as error:
            if error.kind == "gone" and not file.exists():  # it was deleted while it went
                raise FileNotFoundError(errno.ENOENT, "was deleted while it went", str(file)) from error
            raise

    def fetch(self, name: str, file: Path) -> None:
        """Download a file, written aside and moved.

        Raises:
            OSError: if this machine's disk is full.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with self._told(f"read {name}"):
                try:
                    self._files.get_file(self._at(name), str(aside))
                except FileNotFoundError as error:
                    self._files.find(self._at(".probe"))  # raises where the bucket is gone
                    raise StorageError("damaged", f"{self.url}: {name} is missing there") from error
            aside.replace(file)
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL_DISK:
                raise OSError(error.__cause__.errno, error.__cause__.strerror, str(file)) from error
            raise
        finally:
            aside.unlink(missing_ok=True)

    def folders(self) -> list[str]:
        """Names right below the URL that are folders, sorted."""
        with self._told("list it"):
            try:
                found = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                self._files.find(self._at(".probe"))  # raises where the bucket is gone
                return []
        return sorted(info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory")

    def written(self, name: str) -> float | None:
        """When a file was written by the storage's own clock, seconds since the epoch; None where there is none."""
        with self._told(f"look at {name}"):
            try:
                found: datetime = self._files.modified(self._at(name))
            except FileNotFoundError:
                return None
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are passed over."""
        for name in names:
            with self._told(f"remove {name}"), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._at(name))

    def prove(self) -> None:
        """Write, read and remove a file, so that what is wrong is said before anything begins."""
        name, text = f".probe-{uuid.uuid4().hex[:8]}", str(time.time()).encode()
        self.put(name, text)
        if self.get(name) != text:
            raise StorageError("damaged", f"{self.url}: what was written there can't be read back")
        self.delete([name])

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise told(error, f"{self.url}: can't {doing}", self._mend, self._root) from error


def _is_tame(name: str) -> bool:
    return not any(part in ("", ".", "..") or "\0" in part for part in name.split("/"))


def told(error: Exception, doing: str, mend: str = "", root: str = "") -> StorageError:
    """The typed error for what a filesystem raised.

    Args:
        error: what it raised.
        doing: what was tried.
        mend: what to look at where a request is refused.
        root: bucket and prefix, whose own words say nothing about what is wrong.
    """
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    low = f"{type(error).__name__} {_without(str(error), root)}".lower()
    code = getattr(error, "errno", None)
    look = f"; look at {mend}" if mend else ""
    if code in FULL_DISK or _FULL.search(low):
        return StorageError("full", f"{doing}: it is full ({text})")
    if isinstance(error, FileNotFoundError) or "nosuchbucket" in low or "containernotfound" in low:
        return StorageError("gone", f"{doing}: the bucket is not there ({text})")
    if isinstance(error, PermissionError) or code in (errno.EROFS, errno.EACCES, errno.EPERM) or _DENIED.search(low):
        return StorageError("denied", f"{doing}: it is refused ({text}){look}")
    return StorageError("unreachable", f"{doing}: no good answer ({text}){look}")


def _without(text: str, root: str) -> str:
    """A message without the names that it quotes: paths below `root`, addresses, and the bucket."""
    text = re.sub(r"\w+://\S+", "", text)
    if root:
        text = re.sub(rf"/?{re.escape(root)}[^\s'\"]*", "", text)
        text = re.sub(rf"(?<!\w){re.escape(root.partition('/')[0])}(?!\w)", "", text)
    return text


def problem(url: str) -> str | None:
    """What is wrong with a storage URL of a sweep file; None where nothing is. Asks nobody."""
    scheme, _, rest = url.partition("://")
    if scheme in ALIASES:
        return f"write {ALIASES[scheme]}://{rest} for {scheme}://"
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://bucket/prefix" for name in SCHEMES)
        return f"'{scheme}://' is no storage; give a folder, or {known}"
    if "@" in rest or "?" in rest or "#" in rest:
        return f"holds more than a bucket and a prefix; keys and endpoints come from the environment ({SCHEMES[scheme].mend})"
    parts = rest.rstrip("/").split("/")
    if not parts[0] or any(part in ("", ".", "..") for part in parts):
        return f"names no bucket, or an empty part; write {scheme}://bucket/prefix"
    return missing_package(scheme)


def missing_package(scheme: str) -> str | None:
    """The message where a scheme's package is not installed."""
    need = SCHEMES[scheme]
    if importlib.util.find_spec(need.package) is None:
        return f"{scheme}:// needs the package {need.package}, which is not installed: pip install 'stockpot[{need.extra}]'"
    return None


def open_storage(url: str) -> Storage:
    """The files under a URL.

    Raises:
        StorageError: if its kind is not known or not installed, or the library finds no credentials.
    """
    import fsspec

    wrong = problem(url)
    if wrong is not None:
        raise StorageError("denied", f"{url}: {wrong}")
    name, _, root = url.partition("://")
    scheme = SCHEMES[name]
    errors: tuple[type[Exception], ...] = (OSError, *(_error(text) for text in scheme.errors))
    refused: tuple[type[Exception], ...] = (*errors, ValueError)
    try:
        files = fsspec.filesystem(scheme.protocol, skip_instance_cache=True, **scheme.options)
    except refused as error:
        raise told(error, f"{url}: can't be opened", scheme.mend) from error
    return Storage(files, root, url, errors, scheme.mend)


def _error(text: str) -> type[Exception]:
    module, _, name = text.partition(":")
    found: type[Exception] = getattr(importlib.import_module(module), name)
    return found
