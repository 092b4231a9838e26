"""Loss, reward accuracy and reward margin of preference tuning, with errors clustered by prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evaluators import first_rows
from evaluators.base import (
    Direction,
    Example,
    GenerationRequest,
    ItemSet,
    LanguageModel,
    Preference,
    PreferenceModel,
    Score,
    Split,
    summarise,
)
from evaluators.config import KLConfig, PreferenceConfig


class PreferenceEvaluator:
    """Whether the chosen answers have the higher rewards, and by how much.

    The reward is the loss's own: log-ratio to the reference times beta (DPO), the same per token (LN-DPO), log-probability
    per token times beta (SimPO), ... A row of which training would have nothing left is unscored.

    Example:
        >>> PreferenceEvaluator(PreferenceConfig()).evaluate(model, rows, "tune")[0].key
        'tune/reward_accuracy'
    """

    metrics: Mapping[str, Direction] = PreferenceConfig.metrics

    def __init__(self, config: PreferenceConfig) -> None:
        self.config = config

    def evaluate(self, model: LanguageModel, rows: Sequence[Example], split: Split) -> tuple[Score, ...]:
        """Two scores: `reward_accuracy` and `reward_margin`.

        Raises:
            TypeError: if the model is not one that is tuned by preferences; the door has checked it.
        """
        if not isinstance(model, PreferenceModel):
            raise TypeError(f"a model tuned by preferences must be scored, but got {type(model).__name__}")
        kept = first_rows(rows, self.config.limit)
        found = model.preferences(kept)
        items = item_set(kept)
        accuracy = summarise("reward_accuracy", split, "maximize", items, [right(one.margin) for one in found])
        margin = summarise("reward_margin", split, "maximize", items, [one.margin for one in found])
        return accuracy, margin


class KLEvaluator:
    """Σ_t log π(y_t)/π_ref(y_t) over one answer a prompt, drawn from π at temperature 1: its mean is KL(π, π_ref).

    One answer's number can be below 0; the mean estimates the divergence without bias (Ahrabian et al. 2024, arXiv
    2407.15229). Answers longer than `max_new_tokens` count as far as they go.

    Example:
        >>> [score.key for score in KLEvaluator(KLConfig()).evaluate(model, rows, "tune")]
        ['tune/kl', 'tune/response_length']
    """

    metrics: Mapping[str, Direction] = KLConfig.metrics

    def __init__(self, config: KLConfig) -> None:
        self.config = config

    def evaluate(self, model: LanguageModel, rows: Sequence[Example], split: Split) -> tuple[Score, ...]:
        """Two scores: `kl`, and `response_length` in tokens, the one that ends an answer among them.

        Raises:
            TypeError: if the model is not one that is tuned by preferences; the door has checked it.
        """
        if not isinstance(model, PreferenceModel):
            raise TypeError(f"a model tuned by preferences must be scored, but got {type(model).__name__}")
        kept = first_rows(rows, self.config.limit)
        tokens, seed = self.config.max_new_tokens, self.config.seed
        requests = [GenerationRequest(row.prompt or "", tokens, temperature=1.0, seed=seed) for row in kept]
        found = model.divergences(requests)
        items = item_set(kept)
        lengths = [float(one.tokens) if one.tokens else math.nan for one in found]
        return (
            summarise("kl", split, "minimize", items, [one.nats for one in found]),
            summarise("response_length", split, "minimize", items, lengths),
        )


def preference_losses(model: PreferenceModel, rows: Sequence[Example], split: Split) -> Score:
    """The mean loss a row as a score called `loss`."""
    found: list[Preference] = model.preferences(rows)
    return summarise("loss", split, "minimize", item_set(rows), [one.loss for one in found])


def item_set(rows: Sequence[Example]) -> ItemSet:
    """The rows, each counted once."""
    return ItemSet(ids=tuple(row.id for row in rows), groups=tuple(row.group for row in rows))


def longer_chosen(rows: Sequence[Example]) -> float:
    """Share of pairs whose chosen answer is the longer one, in characters: the reward accuracy of preferring length alone.

    A tie counts one half; NaN without pairs. Preferring the shorter answer is right in the rest.
    """
    found = [right(float(len(row.completion) - len(row.rejected))) for row in rows if row.rejected is not None]
    return sum(found) / len(found) if found else math.nan


def right(margin: float) -> float:
    """1 where the chosen answer's reward is higher, 0 where it is lower, one half where they are equal."""
    return math.nan if math.isnan(margin) else 0.5 + 0.5 * ((margin > 0) - (margin < 0))
