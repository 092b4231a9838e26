"""What the stages of a RAG trial hand on, and the contract of each stage.

A stage is plain: texts, offsets and arrays in and out. Whatever runs a model is asked through `pipelines.calls.Calls`
(memo first, then a resident model), so a trial imports no torch and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from evaluators.answers import Passage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Document:
    """One document: gold spans and chunks are offsets into `text`."""

    id: str
    text: str


@dataclass(frozen=True)
class Chunk:
    """Characters `[start, end)` of a document; `text` is exactly those."""

    document: str
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Hit:
    """A retrieved chunk: its index among all chunks, and a score that is higher for the better."""

    chunk: int
    score: float


def passage_of(chunk: Chunk, score: float) -> Passage:
    """A chunk as a passage."""
    return Passage(chunk.document, chunk.start, chunk.end, chunk.text, score)


class Chunker(Protocol):
    """Cuts a document. Chunks are in the document's order, none is empty or blank, and each equals its slice."""

    def chunk(self, document: Document) -> list[Chunk]:
        """The document's chunks; none for a blank document."""
        ...


class VectorStore(Protocol):
    """Nearest neighbours among the vectors it was built with.

    Attributes:
        exact: whether `search` finds the true neighbours by construction.
    """

    exact: bool

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[Hit]]:
        """For each query the k nearest, best first; fewer where there are fewer chunks.

        A score is the cosine, the inner product, or minus the squared L2 distance. Ties are in the order of chunks.
        """
        ...


class Retriever(Protocol):
    """Finds chunks for questions.

    Attributes:
        identity: everything the lists depend on but the question (JSON); part of the memo's key.
        prefix: whether the first j of a list of k are the list of j: then one list serves every smaller k.
    """

    identity: Mapping[str, Any]
    prefix: bool

    def retrieve(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """For each question at most k hits, best first."""
        ...


class Reranker(Protocol):
    """Scores passages for a question, through the memo and a resident model; one score a (question, passage)."""

    def pair_scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """One number a (question, passage), as `scores`; all questions of a trial in one batch."""
        ...

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """One number a passage, higher for the better, NaN where it could not be scored."""
        ...
