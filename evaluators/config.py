"""The `evaluate:` entries of a sweep file, and the metrics each one reports. Only pydantic and the standard library."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

Direction = Literal["minimize", "maximize"]


class EvaluatorConfig(BaseModel):
    """What all entries of `evaluate:` share."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    metrics: ClassVar[dict[str, Direction]]

    when: Literal["rung", "end", "final"] | None = None
    """When it runs: at every milestone, at a run's end, or in the final step only. Default: `end` and `final`; the metric's own runs at rungs too."""
    limit: int | None = Field(default=None, ge=1)
    """Rows scored at most, the first ones by hash order; all by default."""


class LossConfig(EvaluatorConfig):
    """Mean negative log-likelihood a trained-on token, in nats."""

    metrics: ClassVar[dict[str, Direction]] = {"loss": "minimize"}

    type: Literal["loss"] = "loss"


class PerplexityConfig(EvaluatorConfig):
    """exp(loss); its error by the delta method."""

    metrics: ClassVar[dict[str, Direction]] = {"perplexity": "minimize"}

    type: Literal["perplexity"] = "perplexity"


class ExactMatchConfig(EvaluatorConfig):
    """Share of rows whose generated answer equals the reference, by batched greedy generation."""

    metrics: ClassVar[dict[str, Direction]] = {"exact_match": "maximize"}

    type: Literal["exact_match"] = "exact_match"
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens generated at most."""
    normalize: bool = False
    """Compare without case, punctuation, articles and extra blanks (SQuAD's rule)."""
    answer_regex: str | None = None
    """Compare only what this regular expression's first group (or the whole match) finds, last match counts: `#### (.*)` for GSM8K."""

    @field_validator("answer_regex")
    @classmethod
    def answer_regex_is_a_regular_expression(cls, value: str | None) -> str | None:
        """Python's `re` can compile it."""
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from None
        return value


class JSONFieldsConfig(EvaluatorConfig):
    """Generated JSON against a reference object: share of fields right, and share of answers that parse."""

    metrics: ClassVar[dict[str, Direction]] = {
        "json_fields": "maximize",
        "json_fields.exact": "maximize",
        "json_fields.valid": "maximize",
    }

    type: Literal["json_fields"] = "json_fields"
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens generated at most."""


AnyEvaluatorConfig = Annotated[
    LossConfig | PerplexityConfig | ExactMatchConfig | JSONFieldsConfig, Field(discriminator="type")
]

EVALUATOR_CONFIGS: tuple[type[EvaluatorConfig], ...] = get_args(get_args(AnyEvaluatorConfig)[0])
"""The members of `AnyEvaluatorConfig`, for those who ask which metrics there are."""

METRICS: dict[str, Direction] = {
    name: direction for config in EVALUATOR_CONFIGS for name, direction in config.metrics.items()
}
"""Every metric name any built-in evaluator reports, without its split."""
