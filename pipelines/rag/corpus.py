"""The documents of a corpus: a file, a folder, or a pattern of files. No torch.

A document's text is what its reader gives, and gold spans and chunks are offsets into it: of Markdown and text files
exactly what `open(path, encoding="utf-8", newline="")` gives (line ends and a byte order mark as they stand), of HTML the
text of the page, of PDF its pages with a form feed between two. Its id is its path below the corpus folder, with forward
slashes; of JSONL each row is a document with an id of its own.

Example:
    >>> corpus = load_corpus(Corpus(path="/data/handbook"))
    >>> [document.id for document in corpus.documents]
    ['billing.md', 'team/oncall.md']
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

from pipelines.data.base import Stamp, refuse_changed, stamp_of
from pipelines.data.files import content_hash, is_pattern
from pipelines.rag import READERS, load_stage
from pipelines.rag.base import Document
from pipelines.rag.config import Corpus
from pipelines.stage import UserError

LARGEST = 256 * 2**20
"""Bytes of the largest file that is one document."""
ROWS = (".jsonl",)
"""Suffixes of files that hold many documents: they may be of any size."""
_SHOWN = 5
_KEPT = 4


class Reader(Protocol):
    """What `READERS` names: reads the documents of one file."""

    def __call__(self, path: str, name: str, section: Corpus) -> Iterable[tuple[Document, str]]:
        """Each document, and its place for people (`docs/a.md`, or `docs.jsonl, line 7`).

        Args:
            path: the file.
            name: its path below the corpus folder.
            section: the keys of a row.

        Raises:
            UserError: if the file can't be read.
        """
        ...


@dataclass(frozen=True)
class CorpusText:
    """A corpus as it was read.

    Attributes:
        documents: in the order of their ids; none is blank.
        hash: SHA-256 of the files, for `content_hash`.
        blank: id -> place of documents without text, which are left out.
        warnings: sentences for the user.
    """

    documents: tuple[Document, ...]
    hash: str
    blank: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @cached_property
    def texts(self) -> dict[str, str]:
        """Document id -> text."""
        return {document.id: document.text for document in self.documents}

    @cached_property
    def text_hash(self) -> str:
        """SHA-256 of ids and texts: what chunks and indexes depend on, whatever files and readers gave them."""
        digest = hashlib.sha256()
        for document in self.documents:
            for part in (document.id.encode(), document.text.encode()):
                digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()

    def find(self, name: str) -> str | None:
        """The id of the document that a question means: an id, or an id without its suffix where just one is called so."""
        return name if name in self.texts else self._by_stem.get(name)

    @cached_property
    def _by_stem(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for document in self.documents:
            if PurePosixPath(document.id).suffix.lower() in READERS:
                stem = str(PurePosixPath(document.id).with_suffix(""))
                found[stem] = None if stem in found else document.id
        return found


_CORPORA: dict[tuple[str, tuple[Stamp, ...]], CorpusText] = {}


def load_corpus(section: Corpus) -> CorpusText:
    """Read all documents; cached in the process by every file's place, time and size.

    Args:
        section: `corpus`, its path absolute.

    Raises:
        UserError: if there is nothing to read, a file can't be read or is no text, an id stands twice, a link leaves the
            folder, or the files are not those that `content_hash` tells.
    """
    root, files, strangers = _files(section.path)
    stamps = tuple(stamp_of(file) for file in files)
    key = (section.model_dump_json(), stamps)
    if key not in _CORPORA:
        while len(_CORPORA) >= _KEPT:
            del _CORPORA[next(iter(_CORPORA))]
        _CORPORA[key] = _read(section, root, files, strangers, stamps)
    return _CORPORA[key]


def _read(section: Corpus, root: Path, files: list[str], strangers: list[str], stamps: tuple[Stamp, ...]) -> CorpusText:
    found = content_hash(files)
    if section.content_hash is not None and found != section.content_hash:
        raise UserError(
            f"corpus: {section.path} has changed since the sweep was begun (SHA-256 {found[:12]}..., then "
            f"{section.content_hash[:12]}...), so scores could not be compared; put the old content back, or submit a new sweep"
        )
    documents: dict[str, Document] = {}
    places: dict[str, str] = {}
    for path, _, size in stamps:
        for document, place in _of_file(path, _name(path, root), size, section):
            if document.id in places:
                raise UserError(
                    f"corpus: the id {document.id!r} stands twice: {places[document.id]}, and {place}; "
                    "gold could mean either; rename one"
                )
            documents[document.id] = document
            places[document.id] = place
    for stamp in stamps:
        refuse_changed(stamp)
    kept = tuple(documents[name] for name in sorted(documents) if documents[name].text.strip())
    blank = {name: places[name] for name in sorted(documents) if not documents[name].text.strip()}
    if not kept:
        raise UserError(f"corpus: {section.path}: no document holds any text ({len(blank)} are empty)")
    return CorpusText(kept, found, blank, (*_unread(strangers, root), *_empty(blank)))


def _of_file(path: str, name: str, size: int, section: Corpus) -> Iterator[tuple[Document, str]]:
    suffix = Path(path).suffix.lower()
    if size > LARGEST and suffix not in ROWS:
        raise UserError(
            f"corpus: {path} has {size / 2**20:,.0f} MiB, but one document may have {LARGEST / 2**20:,.0f} MiB at most; "
            "split it, or write its parts as rows of a JSONL file"
        )
    reader: Reader = load_stage(READERS, suffix)
    for document, place in reader(path, name, section):
        for what, text in (("id", document.id), ("text", document.text)):
            if not _sound(text):
                raise UserError(
                    f"corpus: {place}: its {what} can't be written as UTF-8 (half of a surrogate pair); mend it"
                )
        yield document, place


def _sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _files(path: str) -> tuple[Path, list[str], list[str]]:
    """(folder that ids begin at, files to read in order of their names, files of unknown suffix)."""
    if os.path.isdir(path):
        root = Path(path)
        found = sorted(_walk(root))
    elif is_pattern(path):
        root = _fixed_part(path)
        found = sorted({file for file in glob.glob(path, recursive=True) if os.path.isfile(file)})
        for file in found:
            _refuse_strays(Path(file), root)
    else:
        root = Path(path).parent
        found = [path]
        stamp_of(path)
    known = [file for file in found if Path(file).suffix.lower() in READERS]
    strangers = [file for file in found if Path(file).suffix.lower() not in READERS]
    if not known:
        kinds = ", ".join(READERS)
        if found == [path]:
            raise UserError(f"corpus: {path} is of no kind that can be read ({kinds})")
        others = f", but {len(strangers)} of other kinds" if strangers else ""
        raise UserError(
            f"corpus: {path} holds no file that can be read ({kinds}){others}; `path` is relative to the sweep file"
        )
    return root, known, strangers


def _walk(root: Path) -> Iterator[str]:
    """Every file below a folder, hidden ones left out. A link to a place inside is passed over: it is read there."""
    for folder, folders, names in os.walk(root, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink() and not name.startswith("."):
                _refuse_strays(path, root)
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and not path.is_symlink() and path.is_file():
                yield str(path)


def _unreadable(error: OSError) -> None:
    raise UserError(f"corpus: {error.filename}: can't be read ({error.strerror})")


def _refuse_strays(path: Path, root: Path) -> None:
    """Check that a file lies in the corpus folder, whatever links lead to it."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise UserError(f"corpus: {path} is a link to nothing ({os.path.realpath(path)}); mend or delete it") from None
    if not target.is_relative_to(root.resolve()):
        raise UserError(
            f"corpus: {path} is a link that leaves the corpus folder (to {target}), so its content is not the corpus's; "
            "copy the file, or name the other folder"
        )


def _fixed_part(pattern: str) -> Path:
    """The folder before the first part of a pattern that is not literal."""
    parts = Path(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])


def _name(path: str, root: Path) -> str:
    name = Path(path).relative_to(root).as_posix()
    if not _sound(name):
        raise UserError(f"corpus: {path!r}: the name is not UTF-8, so no gold could name it; rename the file")
    return name


def _unread(strangers: list[str], root: Path) -> list[str]:
    if not strangers:
        return []
    listed = _listed([Path(file).relative_to(root).as_posix() for file in strangers])
    return [f"corpus: {len(strangers)} files are of no known kind and were left out: {listed}"]


def _empty(blank: Mapping[str, str]) -> list[str]:
    if not blank:
        return []
    return [f"corpus: {len(blank)} documents have no text and were left out: {_listed(list(blank.values()))}"]


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" * (len(names) > _SHOWN)
    return ", ".join(names[:_SHOWN]) + more
