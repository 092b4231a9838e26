"""The `evaluate:` entries of a sweep file, and the metrics each one reports. Only pydantic and the standard library."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Direction = Literal["minimize", "maximize"]
Subject = Literal["model", "preference", "retrieval", "answer"]
"""What an evaluator scores: a model on rows (fine-tunes), its preferences, what was retrieved for questions, or answers to
questions (RAG)."""


class EvaluatorConfig(BaseModel):
    """What all entries of `evaluate:` share."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    metrics: ClassVar[dict[str, Direction]]
    subjects: ClassVar[tuple[Subject, ...]] = ("model",)
    judged: ClassVar[bool] = False
    """Whether it asks `judge:`."""
    embeds: ClassVar[bool] = False
    """Whether it asks `pipeline.answer_embedding`."""
    example: ClassVar[str] = ""
    """How an entry is written that can't be left to defaults; its metrics are known only where the file has one."""
    rows: ClassVar[bool] = True
    """Whether it scores the rows of the pipeline's splits."""

    when: Literal["rung", "end", "final"] | None = None
    """When it runs: at every milestone, at a run's end, or in the final step only. Default: `end` and `final`; the metric's own runs at rungs too."""
    limit: int | None = Field(default=None, ge=1)
    """Rows scored at most, the first ones by hash order; all by default."""

    def reports(self) -> dict[str, Direction]:
        """The metrics of this entry; with settings of its own there may be more than `metrics` says."""
        return dict(self.metrics)

    @property
    def slot(self) -> str:
        """What two entries of a file may not share."""
        return name_of(type(self))

    def reporting(self, metric: str) -> EvaluatorConfig | None:
        """This entry, changed where needed to report a metric; None where it can't."""
        return self if metric in self.reports() else None


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


class MultipleChoiceConfig(EvaluatorConfig):
    """Share of questions whose right choice is the likeliest text after the question.

    As lm-evaluation-harness scores it: by the sum of a choice's log-probabilities, and by the sum divided by its characters
    (`acc_norm`) or bytes (`acc_bytes`). A row of the files is `{"question": "...", "choices": ["...", "..."], "gold": 0}`; `gold` is a place from 0, or the
    text of the right choice.
    """

    metrics: ClassVar[dict[str, Direction]] = {
        "multiple_choice": "maximize",
        "multiple_choice.acc_norm": "maximize",
        "multiple_choice.acc_bytes": "maximize",
    }
    example: ClassVar[str] = "{type: multiple_choice, tune: choices_tune.jsonl, test: choices_test.jsonl}"
    rows: ClassVar[bool] = False

    type: Literal["multiple_choice"] = "multiple_choice"
    tune: str | None = None
    """JSON lines that the sweep decides on; a split without a file is not scored."""
    select: str | None = None
    """JSON lines that choose soups."""
    test: str | None = None
    """JSON lines for the final step."""
    delimiter: str = " "
    """Between the question and a choice."""

    @model_validator(mode="after")
    def a_file_is_given(self) -> Self:
        """Some split has rows."""
        if not (self.tune or self.select or self.test):
            raise ValueError(f"there is no file of rows; write {self.example}")
        return self


LESS_IS_BETTER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter")
"""Metrics of lm-evaluation-harness that are better when smaller; all others are taken to be better when larger."""


class BenchmarkTask(BaseModel):
    """A task of `lm_eval`; its name alone is enough."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    name: str
    """As lm-evaluation-harness calls it: a task, a group or a tag."""
    metric: str | None = None
    """Which of its numbers counts: `acc_norm`, or with its filter `exact_match,flexible-extract`. Default: the first one."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Its share in the score of all tasks, `lm_eval`."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples in its prompt; the entry's by default."""

    @property
    def direction(self) -> Direction:
        """Which way is better."""
        return "minimize" if (self.metric or "").partition(",")[0] in LESS_IS_BETTER else "maximize"


class LMEvalConfig(EvaluatorConfig):
    """Public benchmarks through lm-evaluation-harness: each task as `lm_eval.<task>`, several also as one weighted mean.

    It comes with `pip install 'stockpot[lm-eval]'`. The mean, `lm_eval`, is there where all tasks go in one direction. What a task is published on (its test split, or its validation split where it has no other) is opened by the final
    step alone. During the sweep a task is scored on the validation split that it has beside a test split, dealt by hash
    between `tune` and `select`; a task without one is scored in the final step only.
    """

    metrics: ClassVar[dict[str, Direction]] = {}
    example: ClassVar[str] = "{type: lm_eval, tasks: [arc_easy]}"
    rows: ClassVar[bool] = False

    type: Literal["lm_eval"] = "lm_eval"
    tasks: tuple[BenchmarkTask, ...] = Field(min_length=1)
    """Names, or mappings of `name`, `metric`, `weight`, `num_fewshot`."""
    include_path: str | None = None
    """Folder of task files of your own (YAML), as lm-evaluation-harness reads them; data files they name are looked for beside them."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples in every prompt. Default: what each task says."""
    apply_chat_template: bool = False
    """Ask in the model's chat format."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Tokens generated at most. Default: what each task says, else 256."""
    limit: int | None = Field(default=None, ge=1)
    """Documents of each task scored at most, the first ones, as of `lm_eval --limit`."""

    @model_validator(mode="after")
    def tasks_stand_once(self) -> Self:
        """Each task has one name in the ledger."""
        names = [task.name for task in self.tasks]
        odd = next((name for name in names if not re.fullmatch(r"[^\s/,]+", name)), None)
        if odd is not None:
            raise ValueError(f"{odd!r} is no task's name; folders of task files stand under include_path")
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise ValueError(f"'{twice}' stands twice")
        if len({task.direction for task in self.tasks}) > 1 and any(task.weight != 1 for task in self.tasks):
            raise ValueError("of some tasks less is better and of others more, so weights can't make one score of them")
        return self

    def reports(self) -> dict[str, Direction]:
        """Every task, after the score of all where several go in one direction."""
        each: dict[str, Direction] = {f"lm_eval.{task.name}": task.direction for task in self.tasks}
        directions = set(each.values())
        return {"lm_eval": directions.pop(), **each} if len(each) > 1 and len(directions) == 1 else each

    @property
    def slot(self) -> str:
        """Its tasks: several entries may run at different times."""
        return f"lm_eval {' '.join(task.name for task in self.tasks)}"


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


def name_of(config: type[EvaluatorConfig]) -> str:
    """The `type` of an evaluator's entry."""
    return str(config.model_fields["type"].default)


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
