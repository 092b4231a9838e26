"""The remote copy of a sweep: files by name under a URL, through fsspec, with typed outcomes.

Example:
    >>> storage = open_storage("s3://bucket/runs/gsm8k-lora")
    >>> storage.put_new("ledger/000001.jsonl", b"...")
    True
"""

from __future__ import annotations

import contextlib
import errno
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sweeps.schemes import SCHEMES, problem

StorageKind = Literal["gone", "denied", "full", "unreachable", "taken", "damaged"]
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_FULL = re.compile(r"quota|insufficientstorage|no space|\b507\b|storagefull")
_DENIED = re.compile(
    r"accessdenied|access denied|forbidden|credential|signaturedoesnotmatch|invalidaccesskey|unauthorized|authentication"
    r"|signingerror|\b401\b|\b403\b"
)
_GONE = re.compile(r"nosuchbucket|containernotfound")


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
            if not isinstance(found, dict):  # how adlfs says that it is a file
                found = {path: self._files.info(path) for path in found}
            if not found:
                self._ask_bucket()
        start = len(self._root.strip("/")) + 1
        named = {path.lstrip("/")[start:]: int(info["size"]) for path, info in found.items()}
        below = {name: size for name, size in named.items() if not folder or f"{name}/".startswith(f"{folder}/")}
        return {name: size for name, size in below.items() if _is_tame(name)}

    def get(self, name: str) -> bytes | None:
        """A small file's bytes, or None where there is none."""
        with self._told(f"read {name}"):
            try:
                return bytes(self._files.cat_file(self._at(name)))
            except FileNotFoundError as error:
                self._refuse_gone(error)
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
                    self._refuse_gone(error)
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
                self._ask_bucket()
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

    def _ask_bucket(self) -> None:
        """Raise where the bucket is gone."""
        try:
            self._files.cat_file(self._at(".probe"))
        except FileNotFoundError as error:
            self._refuse_gone(error)

    def _refuse_gone(self, missing: FileNotFoundError) -> None:
        """Raise where a file is missing because its bucket is.

        adlfs says so in what made it miss the file, and lists nothing where no container is; the others say so when asked to list.
        """
        cause, words = missing.__cause__, str(missing.__cause__).lower()
        if isinstance(cause, self._errors) and _GONE.search(words):
            raise cause
        if "blobnotfound" not in words:
            self._files.find(self._at(".probe"))

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
    code, status = getattr(error, "errno", None), _status(error)
    look = f"; look at {mend}" if mend else ""
    if code in FULL_DISK or status == 507 or _FULL.search(low):
        return StorageError("full", f"{doing}: it is full ({text})")
    if isinstance(error, FileNotFoundError) or _GONE.search(low):
        return StorageError("gone", f"{doing}: the bucket is not there ({text})")
    refused = isinstance(error, PermissionError) or code in (errno.EROFS, errno.EACCES, errno.EPERM)
    if refused or status in (401, 403) or _DENIED.search(low):
        return StorageError("denied", f"{doing}: it is refused ({text}){look}")
    return StorageError("unreachable", f"{doing}: no good answer ({text}){look}")


def _status(error: Exception) -> int | None:
    """HTTP's, by the names that azure, gcsfs and aiohttp give it."""
    found = [getattr(error, name, None) for name in ("status_code", "code", "status")]
    return next((int(value) for value in found if isinstance(value, int | str) and str(value).isdecimal()), None)


def _without(text: str, root: str) -> str:
    """A message without the names that it quotes: paths below `root`, addresses, and the bucket."""
    text = re.sub(r"\w+://\S+", "", text)
    if root:
        text = re.sub(rf"/?{re.escape(root)}[^\s'\"]*", "", text)
        text = re.sub(rf"(?<!\w){re.escape(root.partition('/')[0])}(?!\w)", "", text)
    return text


def open_storage(url: str) -> Storage:
    """The files under a URL.

    Raises:
        StorageError: if its kind is not known or not installed, or the library finds no credentials.
    """
    wrong = problem(url)
    if wrong is not None:
        raise StorageError("denied", f"{url}: {wrong}")
    name, _, root = url.partition("://")
    scheme = SCHEMES[name]
    errors = scheme.raised()
    try:
        files = scheme.opens()
    except errors as error:
        if isinstance(error, ValueError):
            raise StorageError("denied", f"{url}: can't be opened ({error}); look at {scheme.mend}") from error
        raise told(error, f"{url}: can't be opened", scheme.mend) from error
    return Storage(files, root, url, errors, scheme.mend)
