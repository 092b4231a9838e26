"""What all `evaluate:` entries of a sweep file share. Only pydantic and the standard library."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from evaluators.field_texts import Documented

Direction = Literal["minimize", "maximize"]
Subject = Literal["model", "preference", "retrieval", "answer"]
"""What an evaluator scores: a model on rows (fine-tunes), its preferences, what was retrieved for questions, or answers to
questions (RAG)."""


class EvaluatorConfig(Documented):
    """What all entries of `evaluate:` share."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

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


def name_of(config: type[EvaluatorConfig]) -> str:
    """The `type` of an evaluator's entry."""
    return str(config.model_fields["type"].default)
