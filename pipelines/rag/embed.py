"""Texts to vectors: what the memo has is not embedded again, the rest goes to the resident model in one batch.

One entry of the memo is one text of one use: a question and a passage that read alike differ where prefixes are given for
them. A sentence-transformers model may have prompts of its own for either; they are used where the file gives no prefix.
Vectors are stored and handed on in float32 as the model gives them; stores normalise where they need it.

Example:
    >>> embedder = build_embedder("wordllama", calls)
    >>> embedder.documents(["The lift is out of order."]).shape
    (1, 256)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.rag import EMBEDDERS
from pipelines.rag.models import embedding_model
from pipelines.stage import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.calls import Calls

METHOD = "embed"


class ModelEmbedder:
    """An embedding model, asked through `Calls`.

    Args:
        config: as the sweep file has it: a word or a section.
        calls: the lease's way to models.
        stage: what questions are embedded for, in `calls.usage`; what is embedded for the index is counted as `index`.

    Attributes:
        identity: everything the vectors depend on but the texts.
    """

    def __init__(self, config: Any, calls: Calls, stage: str = "embed") -> None:
        typed = embedding_model(config)
        self._calls = calls
        self._stage = stage
        self._query_prefix = getattr(typed, "query_prefix", "")
        self._document_prefix = getattr(typed, "document_prefix", "")
        record = typed.model_dump(mode="json", exclude={"query_prefix", "document_prefix"})
        self._spec = {**record, "kind": EMBEDDERS[typed.type]}
        self._has_uses = typed.type == "sentence_transformers"
        self._dimension: int | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything the vectors depend on but the texts (JSON)."""
        who = self._calls.identity(self._spec)
        prefixes = [self._query_prefix, self._document_prefix]
        return {"embed": who.model, "function": who.function, "versions": dict(who.versions), "prefixes": prefixes}

    def documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dimension) float32.

        Raises:
            UserError: if the model is not there, or what it gives is no vector of one length and finite.
        """
        return self._embed(texts, "document", self._document_prefix)

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dimension) float32; raises as `documents`."""
        return self._embed(texts, "query", self._query_prefix)

    def _embed(self, asked: Sequence[str], use: str, prefix: str) -> NDArray[np.float32]:
        if not asked:
            return np.zeros((0, self._dimension or 0), dtype=np.float32)
        texts = [prefix + text for text in asked]
        parameters = {"use": use} if self._has_uses and not prefix else {}
        stage = "index" if use == "document" else self._stage
        values = self._calls.ask(stage, self._spec, METHOD, texts, parameters)
        lengths = {len(value) for value in values}
        name = self._spec.get("model", self._spec["type"])
        if len(lengths) > 1 or next(iter(lengths)) % 4:
            raise UserError(
                f"embedding_model: {name} gave vectors of different lengths: {sorted(n // 4 for n in lengths)}"
            )
        vectors = np.frombuffer(b"".join(values), dtype="<f4").reshape(len(values), -1).astype(np.float32)
        if self._dimension is not None and vectors.shape[1] != self._dimension:
            raise UserError(
                f"embedding_model: {name} gave vectors of {vectors.shape[1]} numbers, but {self._dimension} before"
            )
        self._dimension = vectors.shape[1]
        if not np.isfinite(vectors).all():
            place = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise UserError(f"embedding_model: {name} gave a vector that is not finite for {texts[place][:80]!r}")
        return vectors


def build_embedder(config: Any, calls: Calls, stage: str = "embed") -> ModelEmbedder:
    """The embedder that an `embedding_model` names."""
    return ModelEmbedder(config, calls, stage)


def vector_bytes(vectors: NDArray[np.floating[Any]]) -> list[bytes]:
    """Each row as the memo stores it: little-endian float32."""
    return [row.astype("<f4").tobytes() for row in vectors]
