"""Retrievers: chunks for questions, each list made once.

A list is stored under everything it depends on but the question: the chunks' hash, the model's identity, the store and its
settings, versions. A retriever whose first j of k are the list of j (`prefix`) has its lists made in sizes of 64, 128, ...
so that one list serves every smaller k; of approximate stores each k has lists of its own. The index is built when the
first list is missing, and stays in the process for the next lease.

Example:
    >>> retriever = build_retriever(config.retrieve, chunks, calls)
    >>> retriever.retrieve(["When is the lift tested?"], 5)
    [[Hit(chunk=17, score=0.61), ...]]
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pipelines.calls import Calls
from pipelines.rag import RETRIEVERS, load_stage
from pipelines.rag.base import Chunk, Hit, Retriever

FUNCTION = 1
"""Version of what retrievers compute; raise it when lists change."""
FIRST_SIZE = 64
_KEPT = 12
_INDEXES: dict[str, Any] = {}


class MemoisedRetriever:
    """A retriever whose lists are kept in the memo.

    Args:
        inner: makes the lists.
        calls: the lease's way to the memo.

    Attributes:
        identity: the inner one's.
        prefix: the inner one's.
    """

    def __init__(self, inner: Retriever, calls: Calls) -> None:
        self._inner = inner
        self._calls = calls
        self.identity = inner.identity
        self.prefix = inner.prefix

    def retrieve(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.retrieve`."""
        size = k
        if self.prefix:
            size = FIRST_SIZE
            while size < k:
                size *= 2
        known = {**self.identity, "size": size}

        def missing(asked: list[Any]) -> list[bytes]:
            return [pack(found) for found in self._inner.retrieve(asked, size)]

        values = self._calls.once("retrieve", "retrieve", FUNCTION, known, list(questions), missing)
        return [unpack(value)[:k] for value in values]


def build_retriever(config: Any, chunks: Sequence[Chunk], calls: Calls) -> Retriever:
    """The retriever that `retrieve:` names, over all chunks.

    Args:
        config: a `pipelines.rag.stages.RetrieveConfig`.
        chunks: of the whole corpus; hits are indexes of these.
        calls: the lease's way to models and the memo.
    """
    inner: Retriever = load_stage(RETRIEVERS, config.type)(config, chunks, calls)
    return MemoisedRetriever(inner, calls)


def kept(kind: str, identity: Mapping[str, Any], build: Callable[[], Any]) -> Any:
    """What was built under an identity, built now where it is not there; the oldest goes when there are many."""
    key = f"{kind} {json.dumps(identity, sort_keys=True)}"
    if key not in _INDEXES:
        made = build()
        while len(_INDEXES) >= _KEPT:
            _INDEXES.pop(next(iter(_INDEXES)))
        _INDEXES[key] = made
    return _INDEXES[key]


def chunks_hash(chunks: Sequence[Chunk]) -> str:
    """SHA-256 (hex) over documents, offsets and texts of all chunks."""
    whole = hashlib.sha256()
    for chunk in chunks:
        head = json.dumps([chunk.document, chunk.start, chunk.end]).encode()
        whole.update(head + b"\0" + chunk.text.encode("utf-8", "surrogatepass") + b"\0")
    return whole.hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Versions of what changes a list."""
    return {name: version(name) for name in packages}


def pack(found: Sequence[Hit]) -> bytes:
    """A list as the memo holds it."""
    return b"".join(struct.pack("<id", hit.chunk, hit.score) for hit in found)


def unpack(value: bytes) -> list[Hit]:
    """The inverse of `pack`."""
    return [Hit(chunk, score) for chunk, score in struct.iter_unpack("<id", value)]
