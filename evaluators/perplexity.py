"""Loss and perplexity on held-out rows, with errors clustered by prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from evaluators import first_rows
from evaluators.base import Direction, Example, ItemSet, LanguageModel, PreferenceModel, Score, Split, summarise
from evaluators.config import LossConfig, PerplexityConfig
from evaluators.preference import preference_losses


class LossEvaluator:
    """What training minimises: the mean negative log-likelihood in nats a trained-on token, or the mean preference loss.

    Of a likelihood an item is a row's own mean, its weight the row's tokens, so that the weighted mean of the items is the token mean. A
    row without a trained-on token (an empty completion, or one that `sequence_len` cut away) is unscored.

    Example:
        >>> LossEvaluator(LossConfig()).evaluate(model, rows, "tune")[0].key
        'tune/loss'
    """

    metrics: Mapping[str, Direction] = LossConfig.metrics

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    def evaluate(self, model: LanguageModel, rows: Sequence[Example], split: Split) -> tuple[Score, ...]:
        """One score, `loss`."""
        if isinstance(model, PreferenceModel):
            return (preference_losses(model, first_rows(rows, self.config.limit), split),)
        return (row_losses("loss", model, first_rows(rows, self.config.limit), split),)


class PerplexityEvaluator:
    """exp(loss), with exp(loss) · se(loss) as its error (delta method).

    Its items are the rows' losses in nats, not their exponentials: the mean of exponentials is no perplexity, and paired
    comparisons belong on the scale where the score is a mean. A paired difference d of perplexities is therefore a
    difference in nats; exp(d) is their ratio.
    """

    metrics: Mapping[str, Direction] = PerplexityConfig.metrics

    def __init__(self, config: PerplexityConfig) -> None:
        self.config = config

    def evaluate(self, model: LanguageModel, rows: Sequence[Example], split: Split) -> tuple[Score, ...]:
        """One score, `perplexity`."""
        loss = row_losses("perplexity", model, first_rows(rows, self.config.limit), split)
        value = _exp(loss.value)
        return (replace(loss, value=value, se=value * loss.se if math.isfinite(value) else math.nan),)


def row_losses(name: str, model: LanguageModel, rows: Sequence[Example], split: Split) -> Score:
    """The token-mean loss of the rows as a score called `name`."""
    losses = model.token_losses(rows)
    items = [row.nats / row.tokens if row.tokens else math.nan for row in losses]
    item_set = ItemSet(
        ids=tuple(row.id for row in rows),
        weights=tuple(float(row.tokens) for row in losses),
        groups=tuple(row.group for row in rows),
    )
    return summarise(name, split, "minimize", item_set, items)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
