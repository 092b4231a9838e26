"""Preference tuning as the sweep file names it: `pipeline: {type: dpo}`. Only pydantic and the standard library are imported.

What each loss computes stands in `pipelines.finetune.preference_losses`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipelines.fields import HASH_PATTERN, Config, wrong
from pipelines.finetune.config import FineTuneConfig

PAIRED, UNPAIRED = "preference", "unpaired_preference"


class Loss(Config):
    """What every preference loss says of itself."""

    needs_reference: ClassVar[bool] = True
    """Whether the loss compares with the reference's log-probabilities."""


class Sigmoid(Loss):
    """DPO: the log-ratios of the two answers to the reference, compared by a logistic loss."""

    type: Literal["sigmoid"] = "sigmoid"
    beta: float = Field(default=0.1, gt=0)
    """How far the model is held to the reference; 0.01 to 0.5."""


class LNDPO(Loss):
    """LN-DPO: DPO on log-ratios per token, so that length wins nothing."""

    type: Literal["ln_dpo"] = "ln_dpo"
    beta: float = Field(default=5.0, gt=0)
    """As DPO's, but per token: 1 to 10."""


class SimPO(Loss):
    """SimPO: log-probabilities per token, with a margin and without a reference."""

    needs_reference: ClassVar[bool] = False

    type: Literal["simpo"] = "simpo"
    beta: float = Field(default=2.0, gt=0)
    """Scale of the log-probability per token; 2 to 10."""
    gamma_beta_ratio: float = Field(default=0.25, ge=0)
    """Margin that is asked for, as a share of beta; 0.25 to 0.55."""


class IPO(Loss):
    """IPO: the log-ratio per token is to be 1/(2 beta) higher, by a squared loss."""

    type: Literal["ipo"] = "ipo"
    beta: float = Field(default=0.1, gt=0)
    """The paper's tau: smaller asks for more."""


class Hinge(Loss):
    """SLiC's hinge on DPO's margin."""

    type: Literal["hinge"] = "hinge"
    beta: float = Field(default=0.1, gt=0)
    """Scale of the margin, of which 1 is asked for."""


class Robust(Loss):
    """Robust DPO: unbiased where a known share of the preferences is the wrong way round."""

    type: Literal["robust"] = "robust"
    beta: float = Field(default=0.1, gt=0)
    """As DPO's."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """Share of the preferences that are the wrong way round."""


class KTO(Loss):
    """KTO: each answer by itself, good or bad, against the reference and a baseline from answers to other prompts."""

    type: Literal["kto"] = "kto"
    beta: float = Field(default=0.1, gt=0)
    """As DPO's."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Weight of good answers."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Weight of bad answers."""


class ORPO(Loss):
    """ORPO: likelihood of the chosen answer and the odds ratio of the two, without a reference."""

    needs_reference: ClassVar[bool] = False

    type: Literal["orpo"] = "orpo"
    beta: float = Field(default=0.1, gt=0)
    """Weight of the odds ratio (the paper's lambda)."""


AnyLoss = Sigmoid | LNDPO | SimPO | IPO | Hinge | Robust | KTO | ORPO


def _written_out(value: Any) -> Any:
    """A bare word is its type."""
    return {"type": value} if isinstance(value, str) else value


class DPOConfig(FineTuneConfig):
    """Preference tuning with TRL's training loop: chosen answers against rejected ones, LoRA or full."""

    type: Literal["dpo"] = "dpo"
    loss: Annotated[Annotated[AnyLoss, Field(discriminator="type")], BeforeValidator(_written_out)] = Sigmoid()
    """What is minimised: a word (`sigmoid` is DPO), or a section with parameters."""
    reference: str | None = None
    """What the model is held to, named as `base_model`; by default the model that training starts from."""
    reference_hash: str | None = Field(default=None, pattern=HASH_PATTERN)
    """SHA-256 of the reference's weights; filled in for `sweep://` sources."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate; lower than in supervised fine-tuning."""
    micro_batch_size: int = Field(default=2, ge=1)
    """Pairs in one forward pass of one device (two rows each); answers, where rows are unpaired. KTO's baseline is a mean over
    them: with few it is noisy."""

    @model_validator(mode="after")
    def rows_are_preferences(self) -> DPOConfig:
        """Every data set is of type `preference`, or `unpaired_preference` with `loss: kto`; held in memory."""
        for name, data in self.datasets.files.items():
            place = f"datasets.{name}.type"
            if data.type not in (PAIRED, UNPAIRED):
                raise wrong(
                    place,
                    f"'{data.type}' rows have no rejected answer; dpo takes type: preference (chosen and rejected), or "
                    "unpaired_preference (completion and label) with loss: kto",
                )
            if data.type == UNPAIRED and self.loss.type != "kto":
                raise wrong(
                    place,
                    f"'{UNPAIRED}' rows have one answer each, but loss {self.loss.type} compares two; write loss: kto, or "
                    "give pairs (type: preference)",
                )
            if data.streaming:
                raise wrong(f"datasets.{name}.streaming", "preferences are held in memory; delete the line")
        return self
