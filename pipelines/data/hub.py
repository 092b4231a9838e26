"""Data sets of the hub, by `datasets.load_dataset`: fetched once a machine into its cache, then mapped into memory.

The cache is locked by the library, so that several processes may ask at once. Code of a data set is never run. At the
door the revision becomes a commit, so that all trials and a resumed sweep see the same rows; where the hub can't be
reached and the library falls back on its cache, another commit's rows are refused.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipelines.config import DataFile
from pipelines.data.base import Record, refuse_twice
from pipelines.data.columns import quiet, rows_of, table_records
from pipelines.stage import UserError

_REMOTE = "hf://datasets/"
"""Before a hub id, so that a folder of that name under the working directory is not taken for it."""
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


class HubReader:
    """Implements `Reader` for one split of a hub data set; a place is the number of a row.

    Example:
        >>> HubReader(DataFile(path="openai/gsm8k", name="main", type="prompt_completion"), ["question"]).columns()
        ('question', 'answer')
    """

    def __init__(self, data: DataFile, columns: Sequence[str] | None = None) -> None:
        self.path = data.path
        self._split = data.split or "train"
        loaded = _load(data, self._split)
        self._names = tuple(loaded.column_names)
        wanted = [name for name in dict.fromkeys(columns or self._names) if name in self._names]
        refuse_twice(self.path, [name for name in self._names if name in wanted])
        self._table = loaded.data.table.select(wanted)

    def columns(self) -> tuple[str, ...] | None:
        """See `Reader`."""
        return self._names

    def where(self, line: int) -> str:
        """See `Reader`."""
        return f"{self.path} (split {self._split}), row {line}"

    def records(self) -> Iterator[Record]:
        """See `Reader`."""
        yield from table_records(self._table)

    def at(self, places: Iterable[int]) -> Iterator[dict[str, Any]]:
        """See `Reader`."""
        yield from rows_of(self._table, places)


def commit_of(path: str, revision: str | None) -> str:
    """The commit that a revision of a hub data set means now.

    Raises:
        UserError: if the hub can't be reached, or has no such data set or revision.
    """
    if revision is not None and _COMMIT.match(revision):
        return revision
    from huggingface_hub import HfApi

    with _hub_errors(path, revision):
        found = HfApi().dataset_info(path, revision=revision, timeout=30).sha
    if not found:
        raise UserError(f"{path}: the hub tells no commit of it; give revision: COMMIT")
    return str(found)


def _load(data: DataFile, split: str) -> Any:
    import datasets

    with quiet(), _hub_errors(data.path, data.revision):
        try:
            loaded = datasets.load_dataset(f"{_REMOTE}{data.path}", data.name, split=split, revision=data.revision)
        except ValueError as error:
            raise UserError(f"{data.path}: {_first_lines(error)}; `name` and `split` say what is read of it") from error
    if data.revision is not None and _COMMIT.match(data.revision):
        held = {part for file in loaded.cache_files for part in file["filename"].split(os.sep) if _COMMIT.match(part)}
        if held and data.revision not in held:
            raise UserError(
                f"{data.path}: the hub can't be reached, and the cache holds the commit {held.pop()[:12]}, not "
                f"{data.revision[:12]}, which this sweep was begun with"
            )
    return loaded


@contextlib.contextmanager
def _hub_errors(path: str, revision: str | None) -> Iterator[None]:
    """Name what the hub's libraries raise in the user's words."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    where = "" if revision is None else f" at revision {revision!r}"
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{path}: is gated; ask for access on its page, and export HF_TOKEN") from error
    except (RepositoryNotFoundError, DatasetNotFoundError) as error:
        raise UserError(
            f"{path}: there is no such file or folder (paths are relative to the sweep file), and no such data set{where} on "
            "the hub; a private one needs HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{path}: the hub has the data set, but no revision {revision!r} of it") from error
    except HfHubHTTPError as error:
        raise UserError(f"{path}: the hub has no answer for it{where} ({_first_lines(error)})") from error
    except (OfflineModeIsEnabled, ConnectionError, httpx.TransportError, FileNotFoundError) as error:
        raise UserError(
            f"{path}: there is no such file or folder (paths are relative to the sweep file), and the hub can't be reached "
            f"({_first_lines(error)}); fetch it once with a connection, or give the path of its files"
        ) from error
    except DatasetsError as error:
        raise UserError(f"{path}: can't be read as a data set{where} ({_first_lines(error)})") from error


def _first_lines(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
