"""Retrievers: chunks for questions, each list made once.

A list is stored under everything it depends on but the question: the chunks' hash, the model's identity, the store and its
settings, versions. A retriever whose first j of k are the list of j (`prefix`) has its lists made in sizes of 64, 128, ...
so that one list serves every smaller k; of approximate stores each k has lists of its own. The index is built when the
first list is missing, and stays in the process for the next lease. What a list cost is its search alone: vectors have
costs of their own.

Example:
    >>> retriever = build_retriever(config.retrieve, chunks, calls)
    >>> retriever.retrieve(["When is the lift tested?"], 5)
    [[Hit(chunk=17, score=0.61), ...]]
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pipelines.calls import Answers, Calls
from pipelines.memo import Cost
from pipelines.rag import RETRIEVERS, load_stage
from pipelines.rag.base import Chunk, Hit

FUNCTION = 2
"""Version of what retrievers compute; raise it when lists change."""
FIRST_SIZE = 64
KEPT_BYTES = 2**30
"""Vectors and indexes of one process, about; the one that was used last always stays."""

Search = Callable[[int], list[list[Hit]]]
"""From k to the hits of each question."""


class Maker(Protocol):
    """What `RETRIEVERS` names: makes lists anew, from its configuration, all chunks and `Calls`.

    Attributes:
        identity: as in `Retriever`.
        prefix: as in `Retriever`.
    """

    identity: Mapping[str, Any]
    prefix: bool

    def ready(self, questions: Sequence[str]) -> Search:
        """Everything that comes before the search: the index, the questions' vectors."""
        ...

    def store_recall(self, questions: Sequence[str], k: int) -> float | None:
        """As `MemoisedRetriever.store_recall`, computed anew."""
        ...


class MemoisedRetriever:
    """A retriever whose lists are kept in the memo; implements `Retriever`.

    Args:
        maker: makes the lists.
        calls: the lease's way to the memo.
    """

    def __init__(self, maker: Maker, calls: Calls) -> None:
        self._maker = maker
        self._calls = calls
        self.identity = maker.identity
        self.prefix = maker.prefix

    def retrieve(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.retrieve`."""
        size = k
        if self.prefix:
            size = FIRST_SIZE
            while size < k:
                size *= 2

        def missing(asked: list[Any]) -> Answers:
            search = self._maker.ready(asked)
            began = time.perf_counter()
            lists = search(size)
            cost = Cost((time.perf_counter() - began) / max(1, len(asked)))
            return [(pack(found), cost) for found in lists]

        known = {**self.identity, "size": size}
        values = self._calls.once("retrieve", "retrieve", FUNCTION, known, list(questions), missing)
        return [unpack(value)[:k] for value in values]

    def prepare(self, question: str) -> None:
        """Build the index now, even where every list is known; what its vectors cost may come from the memo."""
        self._maker.ready([question])

    def store_recall(self, questions: Sequence[str], k: int) -> float | None:
        """Recall of the vector store against exact search, once for these questions; None without a store.

        Args:
            questions: what is searched for.
            k: neighbours; where lists are fused or chosen from, their `candidates` take its place.
        """

        def missing(asked: list[Any]) -> Answers:
            began = time.perf_counter()
            found = self._maker.store_recall(questions, k)
            return [(json.dumps(found).encode(), Cost(time.perf_counter() - began)) for _ in asked]

        item = {"questions": list(questions), "k": k}
        [value] = self._calls.once("store_recall", "store_recall", FUNCTION, self.identity, [item], missing)
        recall: float | None = json.loads(value)
        return recall


def build_retriever(config: Any, chunks: Sequence[Chunk], calls: Calls) -> MemoisedRetriever:
    """The retriever that `retrieve:` names, over all chunks; nothing is embedded or built yet.

    Args:
        config: a `pipelines.rag.stages.RetrieveConfig`.
        chunks: of the whole corpus; hits are indexes of these.
        calls: the lease's way to models and the memo.
    """
    return MemoisedRetriever(load_stage(RETRIEVERS, config.type)(config, chunks, calls), calls)


_KEPT: dict[str, tuple[Any, int]] = {}
_lock = threading.RLock()


def kept(kind: str, identity: Mapping[str, Any], build: Callable[[], Any], nbytes: Callable[[Any], int]) -> Any:
    """What was built under an identity, built now where it is not there; what was used longest ago makes room.

    Args:
        kind: `vectors`, `store`, ...
        identity: everything it depends on, JSON.
        build: makes it.
        nbytes: about what it takes in memory.
    """
    key = f"{kind} {json.dumps(identity, sort_keys=True)}"
    with _lock:
        if key in _KEPT:
            _KEPT[key] = _KEPT.pop(key)
        else:
            made = build()
            _KEPT[key] = (made, nbytes(made))
            while len(_KEPT) > 1 and sum(size for _, size in _KEPT.values()) > KEPT_BYTES:
                del _KEPT[next(iter(_KEPT))]
        return _KEPT[key][0]


def chunks_hash(chunks: Sequence[Chunk]) -> str:
    """SHA-256 (hex) over the texts of all chunks, in order: all that lists of indexes depend on."""
    whole = hashlib.sha256()
    for chunk in chunks:
        text = chunk.text.encode("utf-8", "surrogatepass")
        whole.update(len(text).to_bytes(8, "big") + text)
    return whole.hexdigest()


def pack(found: Sequence[Hit]) -> bytes:
    """A list as the memo holds it."""
    return b"".join(struct.pack("<id", hit.chunk, hit.score) for hit in found)


def unpack(value: bytes) -> list[Hit]:
    """The inverse of `pack`."""
    return [Hit(chunk, score) for chunk, score in struct.iter_unpack("<id", value)]
