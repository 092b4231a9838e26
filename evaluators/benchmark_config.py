"""The `evaluate:` entries that have rows of their own: choice rows, and public benchmarks. Only pydantic and the standard library."""

from __future__ import annotations

import re
from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from evaluators.entry import Direction, EvaluatorConfig
from evaluators.field_texts import Documented


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


class BenchmarkTask(Documented):
    """A task of `lm_eval`; its name alone is enough."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

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
