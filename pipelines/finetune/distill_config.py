"""What a distillation is: teacher, the loss on its probabilities, the loss on its hidden states. Only pydantic is imported."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.fields import HASH_PATTERN, Config, wrong
from pipelines.finetune.config import FineTuneConfig

_SEVERAL = re.compile(r"sweep://.+/top-([1-9]\d*)/?")


class KLLoss(Config):
    """Soft labels: KL(teacher || student) over the whole vocabulary, x temperature²."""

    type: Literal["kl"] = "kl"
    weight: float = Field(default=1.0, gt=0)
    """Factor of this loss."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits of both are divided by it; above 1 unlikely tokens count more. The loss is multiplied by its square, so that its
    gradients keep their size."""


class JSDLoss(Config):
    """Soft labels: the generalised Jensen-Shannon divergence of GKD, x temperature²."""

    type: Literal["jsd"] = "jsd"
    weight: float = Field(default=1.0, gt=0)
    """Factor of this loss."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher in the mixture; 0 stands for its limit KL(teacher || student), 1 for KL(student || teacher)."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits of both are divided by it. The loss is multiplied by its square, so that its gradients keep their size."""


class NoSoftLoss(Config):
    """The teacher's probabilities are not used; with `hidden: {type: none}` the student is trained without a teacher."""

    type: Literal["none"] = "none"


SoftLoss = Annotated[KLLoss | JSDLoss | NoSoftLoss, Field(discriminator="type")]
"""What is minimised between the probabilities of teacher and student."""

LayerMap = Literal["skip", "last"] | tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...]
"""Which layers are compared."""


class _Hidden(Config):
    weight: float = Field(default=1.0, gt=0)
    """Factor of this loss."""
    layer_map: LayerMap = "skip"
    """Which layers are compared: `skip` gives each of the student's one of the teacher's at even distances, the last its last;
    `last` the teacher's last ones; or pairs [student's layer, teacher's layer], counted from 0."""

    @model_validator(mode="after")
    def a_student_layer_is_compared_once(self) -> _Hidden:
        """Pairs, each with another layer of the student."""
        if not isinstance(self.layer_map, str):
            students = [student for student, _ in self.layer_map]
            if not students:
                raise wrong("layer_map", "is empty; write skip, last, or pairs such as [[0, 7], [3, 29]]")
            if len(set(students)) < len(students):
                raise wrong("layer_map", f"{students} names a layer of the student twice; give it one of the teacher's")
        return self


class MSEHidden(_Hidden):
    """Squared error of hidden states, as a share of the teacher's squared length at that token."""

    type: Literal["mse"] = "mse"


class CosineHidden(_Hidden):
    """1 - cosine of hidden states, a token at a time."""

    type: Literal["cosine"] = "cosine"


class MIHidden(_Hidden):
    """MI-α of Distiller: the information that the student's hidden states have of the teacher's, bounded by a trained critic."""

    type: Literal["mi_alpha"] = "mi_alpha"
    alpha: float = Field(default=0.9, gt=0, le=1)
    """A token is told from the other trained-on tokens of its row. 1 is InfoNCE: least variance, but never more than the
    logarithm of their number; towards 0 less bias and more variance."""


class NoHidden(Config):
    """Hidden states are not compared."""

    type: Literal["none"] = "none"


HiddenLoss = Annotated[MSEHidden | CosineHidden | MIHidden | NoHidden, Field(discriminator="type")]
"""What is minimised between the hidden states of teacher and student."""


class DistillConfig(FineTuneConfig):
    """Distillation: a student learns from the rows and from a teacher's probabilities or hidden states on them.

    The loss is `hard_weight` x the rows' own loss + `loss.weight` x the soft one + `hidden.weight` x the hidden one, each a mean
    over trained-on tokens.
    """

    type: Literal["distill"] = "distill"
    adapter: Literal["lora", "lokr", "loha", "vera", "ia3", "none"] = "none"
    """`none` trains all weights, the others an adapter; see `sft`."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate."""
    teacher: str | tuple[str, ...]
    """The model to learn from: whatever `base_model` may be, or `sweep://NAME/top-K`, the ensemble of a sweep's best K runs; a
    list is an ensemble of these. An ensemble's probabilities are the mean of its members'. Its vocabulary is the student's."""
    teacher_hash: str | None = Field(default=None, pattern=HASH_PATTERN)
    """SHA-256 of the teacher's weights; filled in for `sweep://` sources."""
    loss: SoftLoss = KLLoss()
    """What is minimised between the probabilities of teacher and student."""
    hidden: HiddenLoss = NoHidden()
    """What is minimised between their hidden states. Widths that differ get a trained projection beside the student."""
    hard_weight: float = Field(default=1.0, ge=0)
    """Factor of the rows' own loss, the one that SFT minimises."""

    @property
    def needs_teacher(self) -> bool:
        """Whether anything is compared with a teacher."""
        return self.loss.type != "none" or self.hidden.type != "none"

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teacher's members by name; one for a single model."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher

    @model_validator(mode="after")
    def something_is_minimised(self) -> DistillConfig:
        """At least one of the three losses counts."""
        if not self.hard_weight and not self.needs_teacher:
            raise wrong("hard_weight", "is 0, and loss and hidden are none: nothing would be learnt; raise it")
        return self

    @model_validator(mode="after")
    def there_is_a_teacher(self) -> DistillConfig:
        """A list names at least one model."""
        if not self.teachers:
            raise wrong("teacher", "is empty; name a model, or several")
        return self

    @model_validator(mode="after")
    def hidden_states_are_one_models(self) -> DistillConfig:
        """The hidden states of different models have no mean."""
        many = len(self.teachers) > 1 or any(
            (found := _SEVERAL.fullmatch(name)) is not None and found[1] != "1" for name in self.teachers
        )
        if self.hidden.type != "none" and many:
            raise wrong(
                "hidden", f"{self.hidden.type} compares hidden states, and an ensemble has none; take one teacher"
            )
        return self
