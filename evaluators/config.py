"""The `evaluate:` entries of a sweep file, and the metrics each one reports. Only pydantic and the standard library."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from evaluators.benchmark_config import LMEvalConfig, MultipleChoiceConfig
from evaluators.entry import Direction as Direction
from evaluators.entry import EvaluatorConfig as EvaluatorConfig
from evaluators.entry import Subject as Subject
from evaluators.entry import name_of as name_of


class LossConfig(EvaluatorConfig):
    """What training minimises: mean negative log-likelihood a trained-on token, in nats; of preference tuning, its loss a pair."""

    metrics: ClassVar[dict[str, Direction]] = {"loss": "minimize"}

    type: Literal["loss"] = "loss"


class PerplexityConfig(EvaluatorConfig):
    """exp(loss); its error by the delta method."""

    metrics: ClassVar[dict[str, Direction]] = {"perplexity": "minimize"}

    type: Literal["perplexity"] = "perplexity"


class PreferenceConfig(EvaluatorConfig):
    """Share of pairs whose chosen answer has the higher reward (a tie counts one half), and by how much; in every `dpo` sweep."""

    metrics: ClassVar[dict[str, Direction]] = {"reward_accuracy": "maximize", "reward_margin": "maximize"}
    subjects: ClassVar[tuple[Subject, ...]] = ("preference",)

    type: Literal["preference"] = "preference"


class KLConfig(EvaluatorConfig):
    """KL divergence to the reference, in nats an answer, on answers that the model itself draws; and their length in tokens."""

    metrics: ClassVar[dict[str, Direction]] = {"kl": "minimize", "response_length": "minimize"}
    subjects: ClassVar[tuple[Subject, ...]] = ("preference",)

    type: Literal["kl"] = "kl"
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens generated at most."""
    seed: int = 0
    """Of the draws; the same for all models."""


class WinRateConfig(EvaluatorConfig):
    """How often `judge:` finds the model's own answer better than another; each pair is judged in both orders, a tie is one half."""

    metrics: ClassVar[dict[str, Direction]] = {"win_rate": "maximize"}
    subjects: ClassVar[tuple[Subject, ...]] = ("preference",)
    judged: ClassVar[bool] = True

    type: Literal["win_rate"] = "win_rate"
    against: Literal["chosen", "reference"] = "chosen"
    """The row's chosen answer, or the answer of the model that training is held to."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens generated at most."""


class ExactMatchConfig(EvaluatorConfig):
    """Share of rows whose generated answer equals the reference, by batched greedy generation."""

    metrics: ClassVar[dict[str, Direction]] = {"exact_match": "maximize"}
    subjects: ClassVar[tuple[Subject, ...]] = ("model", "answer")

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


class RetrievalConfig(EvaluatorConfig):
    """What was retrieved against gold spans and gold documents; without `.at_`, over what the generator is given.

    `span_recall.at_5` counts the first 5 passages of every configuration, `span_recall.at_4000_characters` the first
    4,000 characters: the first is fair to small chunks, the second to large ones.
    """

    metrics: ClassVar[dict[str, Direction]] = {
        "span_recall": "maximize",
        "span_precision": "maximize",
        "span_iou": "maximize",
        "span_mrr": "maximize",
        "span_ndcg": "maximize",
        "span_map": "maximize",
        "document_recall": "maximize",
        "document_precision": "maximize",
        "document_mrr": "maximize",
        "document_ndcg": "maximize",
        "document_map": "maximize",
    }
    subjects: ClassVar[tuple[Subject, ...]] = ("retrieval",)

    type: Literal["retrieval"] = "retrieval"
    k: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = ()
    """Numbers of passages at which all metrics are reported too, as `.at_<k>`."""
    characters: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of characters at which all metrics are reported too, as `.at_<n>_characters`."""

    def reports(self) -> dict[str, Direction]:
        """Every metric as it is, and at every cut."""
        cuts = [f".at_{k}" for k in self.k] + [f".at_{n}_characters" for n in self.characters]
        return {name + cut: direction for cut in ["", *cuts] for name, direction in self.metrics.items()}

    def reporting(self, metric: str) -> EvaluatorConfig | None:
        """This entry with the metric's cut among its own."""
        found = re.fullmatch(r"(\w+?)\.at_([1-9]\d{0,8})(_characters)?", metric)
        if metric in self.reports() or found is None or found[1] not in self.metrics:
            return self if metric in self.reports() else None
        name, cut = ("characters", int(found[2])) if found[3] else ("k", int(found[2]))
        if name == "k" and cut > 1000:
            return None
        return self.model_copy(update={name: (*getattr(self, name), cut)})


class TokenF1Config(EvaluatorConfig):
    """Words that answer and reference share, as F1 (SQuAD's rule); precision and recall beside it."""

    metrics: ClassVar[dict[str, Direction]] = {
        "token_f1": "maximize",
        "token_f1.precision": "maximize",
        "token_f1.recall": "maximize",
    }
    subjects: ClassVar[tuple[Subject, ...]] = ("answer",)

    type: Literal["token_f1"] = "token_f1"


class AnswerSimilarityConfig(EvaluatorConfig):
    """Cosine of the embeddings of answer and reference, by `pipeline.answer_embedding`."""

    metrics: ClassVar[dict[str, Direction]] = {"answer_similarity": "maximize"}
    subjects: ClassVar[tuple[Subject, ...]] = ("answer",)
    embeds: ClassVar[bool] = True

    type: Literal["answer_similarity"] = "answer_similarity"


class FaithfulnessConfig(EvaluatorConfig):
    """Share of the answer's statements that the context supports, by `judge:`."""

    metrics: ClassVar[dict[str, Direction]] = {"faithfulness": "maximize"}
    subjects: ClassVar[tuple[Subject, ...]] = ("answer",)
    judged: ClassVar[bool] = True

    type: Literal["faithfulness"] = "faithfulness"


class AnswerCorrectnessConfig(EvaluatorConfig):
    """F1 over the statements of answer and reference by `judge:`, and their similarity, weighted."""

    metrics: ClassVar[dict[str, Direction]] = {"answer_correctness": "maximize", "answer_correctness.f1": "maximize"}
    subjects: ClassVar[tuple[Subject, ...]] = ("answer",)
    judged: ClassVar[bool] = True
    embeds: ClassVar[bool] = True

    type: Literal["answer_correctness"] = "answer_correctness"
    weight: float = Field(default=0.75, ge=0, le=1)
    """Weight of the F1; the similarity has the rest."""


class AnswerRelevancyConfig(EvaluatorConfig):
    """Mean cosine of the question and questions that `judge:` makes from the answer alone; 0 for noncommittal answers."""

    metrics: ClassVar[dict[str, Direction]] = {"answer_relevancy": "maximize"}
    subjects: ClassVar[tuple[Subject, ...]] = ("answer",)
    judged: ClassVar[bool] = True
    embeds: ClassVar[bool] = True

    type: Literal["answer_relevancy"] = "answer_relevancy"
    questions: int = Field(default=3, ge=1)
    """Questions made from an answer."""


class ContextPrecisionConfig(EvaluatorConfig):
    """Average precision of the passages that `judge:` finds useful for the reference answer."""

    metrics: ClassVar[dict[str, Direction]] = {"context_precision": "maximize"}
    subjects: ClassVar[tuple[Subject, ...]] = ("retrieval",)
    judged: ClassVar[bool] = True

    type: Literal["context_precision"] = "context_precision"


class ContextRecallConfig(EvaluatorConfig):
    """Share of the reference answer's statements that the context supports, by `judge:`."""

    metrics: ClassVar[dict[str, Direction]] = {"context_recall": "maximize"}
    subjects: ClassVar[tuple[Subject, ...]] = ("retrieval",)
    judged: ClassVar[bool] = True

    type: Literal["context_recall"] = "context_recall"


AnyEvaluatorConfig = Annotated[
    LossConfig
    | PerplexityConfig
    | PreferenceConfig
    | KLConfig
    | WinRateConfig
    | ExactMatchConfig
    | JSONFieldsConfig
    | RetrievalConfig
    | TokenF1Config
    | AnswerSimilarityConfig
    | FaithfulnessConfig
    | AnswerCorrectnessConfig
    | AnswerRelevancyConfig
    | ContextPrecisionConfig
    | ContextRecallConfig
    | MultipleChoiceConfig
    | LMEvalConfig,
    Field(discriminator="type"),
]

EVALUATOR_CONFIGS: tuple[type[EvaluatorConfig], ...] = get_args(get_args(AnyEvaluatorConfig)[0])
"""The members of `AnyEvaluatorConfig`, for those who ask which metrics there are."""


def default_entries() -> list[EvaluatorConfig]:
    """An entry of each type that needs no settings."""
    return [config() for config in EVALUATOR_CONFIGS if not config.example]


METRICS: dict[str, Direction] = {
    name: direction for config in EVALUATOR_CONFIGS for name, direction in config.metrics.items()
}
"""Every metric name any built-in evaluator reports, without its split and without `.at_`."""


def metrics_of(*subjects: Subject) -> dict[str, Direction]:
    """The metric names of evaluators that can score one of the subjects."""
    return {
        name: direction
        for config in EVALUATOR_CONFIGS
        if set(config.subjects) & set(subjects)
        for name, direction in config.metrics.items()
    }
