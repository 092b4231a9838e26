"""Late interaction over token vectors of a sentence-transformers model, as the kind `maxsim`.

Score (ColBERT, Khattab & Zaharia 2020, arXiv 2004.12832): for each token of the question the largest cosine with a token of
the passage; here their mean, so that long questions don't score higher. Left out of the paper: training for it, the
[Q] and [D] markers, and the padding of questions with [MASK].
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipelines.calls import Answers, Identity, Role
from pipelines.memo import Cost, Unanswered
from pipelines.rag.embed_sentences import load_model, model_identity
from pipelines.rag.rerank import METHOD, pack
from pipelines.stage import Devices, Services, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SETTING = "rerank.model"
FUNCTION = 1
KEPT_BYTES = 256 * 2**20
"""Token vectors that stay in memory, so that a passage is read once for all questions."""


class MaxSimModel:
    """Token vectors of a model, and how well those of a passage cover those of a question."""

    role: ClassVar[Role] = "reranker"
    remote: ClassVar[bool] = False

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model = model
        self._batch_size = batch_size
        self._kept: dict[str, NDArray[np.float32]] = {}
        self._bytes = 0

    @staticmethod
    def identify(spec: Mapping[str, Any]) -> Identity:
        """By the hash of the folder's files and the versions of the libraries."""
        return model_identity(spec, FUNCTION, SETTING)

    @staticmethod
    def load(spec: Mapping[str, Any], devices: Devices, services: Services) -> MaxSimModel:
        """Load it onto the GPU where there is one.

        Raises:
            UserError: when the package or the model is not there, or it has no token vectors.
        """
        model = load_model("SentenceTransformer", spec, devices, SETTING)
        if not hasattr(getattr(model, "tokenizer", None), "get_special_tokens_mask"):
            raise UserError(f"{SETTING}: {spec['model']} has no transformers tokenizer, so it has no token vectors")
        return MaxSimModel(model, int(spec["batch_size"]))

    def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """One score a [question, passage]; none where one of them has no token."""
        if method != METHOD:
            raise ValueError(f"maxsim answers {METHOD!r}, but got {method!r}")
        began = time.perf_counter()
        vectors = self._vectors(list(dict.fromkeys(text for item in items for text in item)))
        scores = [max_sim(vectors[question], vectors[passage]) for question, passage in items]
        cost = Cost((time.perf_counter() - began) / max(1, len(items)))
        nothing = Unanswered("a question or a passage without a token")
        return [(nothing if score is None else pack(score), cost) for score in scores]

    def _vectors(self, texts: list[str]) -> dict[str, NDArray[np.float32]]:
        """Each text's token vectors, of length 1; what was used longest ago makes room."""
        new = [text for text in texts if text not in self._kept]
        found = {text: self._kept.pop(text) for text in texts if text in self._kept}
        rows = self._model.encode(
            new, batch_size=self._batch_size, output_value=None, prompt="", show_progress_bar=False
        )
        for text, row in zip(new, rows, strict=True):
            found[text] = self._tokens(row)
            self._bytes += found[text].nbytes
        self._kept.update(found)
        while self._bytes > KEPT_BYTES and self._kept:
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes
        return found

    def _tokens(self, row: Mapping[str, Any]) -> NDArray[np.float32]:
        """(tokens, dimension) of length 1, without special tokens and padding."""
        ids = row["input_ids"].tolist()
        special = self._model.tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        wanted = [place for place, mark in enumerate(special) if not mark]
        vectors: NDArray[np.float32] = row["token_embeddings"][wanted].float().cpu().numpy()
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def max_sim(question: NDArray[np.float32], passage: NDArray[np.float32]) -> float | None:
    """Mean over the question's tokens of the largest cosine with one of the passage's; None where one has no token.

    Args:
        question: (tokens, dimension) of length 1.
        passage: (tokens, dimension) of length 1.
    """
    if not len(question) or not len(passage):
        return None
    return float((question @ passage.T).max(axis=1).mean(dtype=np.float64))
