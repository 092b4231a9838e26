"""A model that is tuned by preferences, as evaluators see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from evaluators.answers import Judge
from evaluators.base import Divergence, Example, Generation, GenerationRequest, LanguageModel, Preference, RowLoss
from pipelines.finetune.data import Encoded
from pipelines.finetune.pairs import Preferred
from pipelines.finetune.preference_config import KTO, AnyLoss
from pipelines.finetune.preference_losses import Answers, Judged, kto, kto_baseline, pair_losses
from pipelines.finetune.preference_objective import flat, pair_margins
from pipelines.finetune.reference import Reference, log_probabilities
from pipelines.lm import LocalLanguageModel


@dataclass
class PreferenceLanguageModel:
    """Implements `evaluators.base.LanguageModel` and `PreferenceModel`.

    The model's answers and the reference's go through the same batches: a model that is its reference has every margin 0.

    Attributes:
        inner: answers what is asked of any model; the memo may stand in front of it.
        local: the model itself.
        loss: what training minimises.
        encode: rows as tokens.
        reference: what the model is held to.
        find_judge: makes the sweep's judge.
    """

    inner: LanguageModel
    local: LocalLanguageModel
    loss: AnyLoss
    encode: Callable[[Sequence[Example]], list[Preferred]]
    reference: Reference
    find_judge: Callable[[], Judge | None]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """See `LanguageModel`."""
        return self.inner.generate(requests)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """See `LanguageModel`."""
        return self.inner.loglikelihood(pairs)

    def token_losses(self, rows: Sequence[Example]) -> list[RowLoss]:
        """See `LanguageModel`; of a pair the chosen answer counts."""
        return self.inner.token_losses(rows)

    def preferences(self, rows: Sequence[Example]) -> list[Preference]:
        """See `PreferenceModel`; KTO's baseline is taken over all of the rows."""
        encoded = self.encode(rows)
        whole = [row for row in encoded if row.whole]
        answers, strangers = flat(whole)
        if not answers:
            return [Preference(math.nan, math.nan)] * len(rows)
        tensors = self._answers(answers)
        if isinstance(self.loss, KTO):
            others = self._answers(strangers)
            good = torch.tensor([good for row in whole for good in row.good])
            judged = kto(self.loss, tensors, good, kto_baseline(others.log_ratios))
            found = iter(_of_answers(judged, good, whole))
        else:
            judged = pair_losses(self.loss, tensors)
            margins = pair_margins(judged)
            found = iter([Preference(*one) for one in zip(judged.losses.tolist(), margins.tolist(), strict=True)])
        return [next(found) if row.whole else Preference(math.nan, math.nan) for row in encoded]

    def divergences(self, requests: Sequence[GenerationRequest]) -> list[Divergence]:
        """See `PreferenceModel`."""
        answers = self.local.answered(requests)
        policy = log_probabilities(self.local, answers)
        with self.reference.open_model() as model:
            known = log_probabilities(self.reference.local(model), answers)
        return [
            Divergence(float(own - other), answer.trained) if answer.trained else Divergence(math.nan, 0)
            for own, other, answer in zip(policy, known, answers, strict=True)
        ]

    def reference_answers(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """See `PreferenceModel`."""
        with self.reference.open_model() as model:
            return self.reference.local(model).generate(requests)

    def judge(self) -> Judge | None:
        """See `PreferenceModel`."""
        return self.find_judge()

    def _answers(self, rows: Sequence[Encoded]) -> Answers:
        """In double precision."""
        tokens = np.array([row.trained for row in rows], dtype=np.float64)
        policy = log_probabilities(self.local, rows)
        known: NDArray[np.float64] = np.zeros(len(rows))
        if self.loss.needs_reference:
            known = self.reference.log_probabilities(rows)
        return Answers(torch.from_numpy(policy), torch.from_numpy(known), torch.from_numpy(tokens))


def _of_answers(judged: Judged, good: torch.Tensor, rows: Sequence[Preferred]) -> list[Preference]:
    """KTO's losses and rewards by row: of a pair the mean loss and the difference of the rewards."""
    signed = torch.where(good, judged.rewards, -judged.rewards).tolist()
    losses, found, place = judged.losses.tolist(), [], 0
    for row in rows:
        own = slice(place, place + len(row.answers))
        found.append(Preference(sum(losses[own]) / len(row.answers), sum(signed[own])))
        place = own.stop
    return found
