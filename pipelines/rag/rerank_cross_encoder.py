"""Sentence-transformers cross-encoders: question and passage in one pass, as the kind `cross_encoder`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipelines.calls import Answers, Identity, Role
from pipelines.memo import Cost
from pipelines.rag.embed_sentences import load_model, model_identity
from pipelines.rag.rerank import METHOD, pack
from pipelines.stage import Devices, Services, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SETTING = "rerank.model"
FUNCTION = 1


class CrossEncoderModel:
    """A cross-encoder of one label, or of two of which the second means yes."""

    role: ClassVar[Role] = "reranker"
    remote: ClassVar[bool] = False

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model = model
        self._batch_size = batch_size

    @staticmethod
    def identify(spec: Mapping[str, Any]) -> Identity:
        """By the hash of the folder's files and the versions of the libraries."""
        return model_identity(spec, FUNCTION, SETTING)

    @staticmethod
    def load(spec: Mapping[str, Any], devices: Devices, services: Services) -> CrossEncoderModel:
        """Load it onto the GPU where there is one.

        Raises:
            UserError: when the package or the model is not there, or the model is no reranker.
        """
        model = load_model("CrossEncoder", spec, devices, SETTING)
        if model.num_labels not in (1, 2):
            raise UserError(
                f"{SETTING}: {spec['model']} tells {model.num_labels} labels apart; a reranker has one, or two (no and yes)"
            )
        return CrossEncoderModel(model, int(spec["batch_size"]))

    def answer(self, method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        """One probability a [question, passage]; the library batches pairs of similar length."""
        if method != METHOD:
            raise ValueError(f"a cross-encoder answers {METHOD!r}, but got {method!r}")
        from torch.nn import Identity as Same

        began = time.perf_counter()
        logits = self._model.predict(
            [tuple(item) for item in items],
            batch_size=self._batch_size,
            activation_fn=Same(),
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        seconds = (time.perf_counter() - began) / max(1, len(items))
        rows = np.asarray(logits, dtype=np.float64).reshape(len(items), -1)
        margins = rows[:, -1] - (rows[:, 0] if rows.shape[1] == 2 else 0.0)
        scored = zip(sigmoid(margins), self._tokens(items), strict=True)
        return [(pack(score), Cost(seconds, tokens)) for score, tokens in scored]

    def _tokens(self, items: Sequence[Any]) -> list[int]:
        questions, passages = [item[0] for item in items], [item[1] for item in items]
        return [len(ids) for ids in self._model.tokenizer(questions, passages, truncation=True)["input_ids"]]


def sigmoid(logits: NDArray[np.float64]) -> list[float]:
    """1 / (1 + exp(-x)) of each, in float64, without overflow."""
    return [float(value) for value in np.exp(-np.logaddexp(0.0, -logits))]
