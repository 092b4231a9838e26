"""The reference's log-probabilities of answers: computed once for a model and a data set, shared through the memo.

Answers go through the model in fixed chunks, in the same batches whoever asks, so that what comes from the memo equals what
would be computed to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.computing import compute
from pipelines.finetune.data import Encoded
from pipelines.finetune.optimizers import random_state, set_random_state
from pipelines.lm import LocalLanguageModel
from pipelines.memo import Call, Cost, Memo
from pipelines.weights import content_hash

KIND = "reference_logprobs"
"""In the memo."""
FUNCTION = 1
"""Version of what is computed here; raise it when a value changes."""
CHUNK = 64
"""Answers of one entry of the memo."""
_KEPT = 4096
"""Entries that stay in memory where there is no memo."""
_log = logging.getLogger(__name__)

Open = Callable[[], AbstractContextManager[Any]]
"""Gives the reference model for a while."""


def log_probabilities(model: LocalLanguageModel, rows: Sequence[Encoded]) -> NDArray[np.float64]:
    """Summed log-probability of each row's trained-on tokens, in nats, (rows,): in chunks of `CHUNK` rows.

    The same rows in the same order go through a model in the same batches, whatever model it is.
    """
    found = [score for start in range(0, len(rows), CHUNK) for score in model.score(rows[start : start + CHUNK])]
    return -np.array([nats for nats, _, _ in found], dtype=np.float64)


class Reference:
    """What a model makes of answers, from the memo where it is known.

    Args:
        open_model: gives the model; not called while everything is known.
        folder: its files, by whose content it is known.
        tokenizer: with a padding token.
        batch_size: rows in one forward pass.
        precision: as in training.
        weights: what its weights were rounded to, where they were (`pipelines.finetune.model.ROUNDED`).
        device: `cpu` or `cuda`, whose random state is put back after a model was loaded.
        memo: the store; None keeps what was computed in `kept`.
        kept: entries that were computed before in this process.
    """

    def __init__(
        self,
        open_model: Open,
        folder: Any,
        tokenizer: Any,
        *,
        batch_size: int,
        precision: str,
        weights: str = "",
        device: str,
        memo: Memo | None,
        kept: dict[str, list[float]],
    ) -> None:
        self.open_model = open_model
        self._folder = folder
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._precision = precision
        self._weights = weights
        self._device = device
        self._memo = memo
        self._kept = kept
        self._owner = uuid.uuid4().hex

    def log_probabilities(self, rows: Sequence[Encoded]) -> NDArray[np.float64]:
        """Of each row's trained-on tokens, in nats, (rows,)."""
        chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        calls = [self._call(chunk) for chunk in chunks]
        by_key = {call.key: chunk for call, chunk in zip(calls, chunks, strict=True)}
        if self._memo is None:
            missing = [call for call in calls if call.key not in self._kept]
            if missing:
                for call, (value, _) in zip(missing, self._computed(missing, by_key), strict=True):
                    self._kept[call.key] = json.loads(value)
                while len(self._kept) > max(_KEPT, len(calls)):
                    del self._kept[next(iter(self._kept))]
            values = [self._kept[call.key] for call in calls]
        else:
            answers = compute(self._memo, calls, lambda wanted: self._computed(wanted, by_key), self._owner)
            values = [json.loads(answer) for answer in answers]
        return np.array([number for value in values for number in value], dtype=np.float64)

    def _call(self, chunk: Sequence[Encoded]) -> Call:
        said = json.dumps([[row.ids, sum(label < 0 for label in row.labels)] for row in chunk])
        return Call(
            KIND,
            FUNCTION,
            content_hash(self._folder),
            content_hash(self._folder, "tokenizer"),
            self._precision + self._weights,
            hashlib.sha256(said.encode()).hexdigest(),
            {"batch_size": self._batch_size},
        )

    def _computed(self, calls: Sequence[Call], by_key: dict[str, Sequence[Encoded]]) -> list[tuple[bytes, Cost]]:
        """Values and costs of these calls, by one pass with the model; the random state is as before."""
        random = random_state(self._device)
        found: list[tuple[bytes, Cost]] = []
        try:
            with self.open_model() as model:
                local = self.local(model)
                for call in calls:
                    chunk, began = by_key[call.key], time.monotonic()
                    value = json.dumps(log_probabilities(local, chunk).tolist()).encode()
                    tokens = sum(len(row.ids) for row in chunk)
                    found.append((value, Cost(time.monotonic() - began, tokens)))
        finally:
            set_random_state(random)
        _log.info("the reference's log-probabilities of %d answers", sum(len(by_key[call.key]) for call in calls))
        return found

    def local(self, model: Any) -> LocalLanguageModel:
        """A model as it is asked here."""
        return LocalLanguageModel(model, self._tokenizer, batch_size=self._batch_size, precision=self._precision)
