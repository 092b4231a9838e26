"""What one trial is: the `pipeline:` section. Frozen pydantic; only pydantic and the standard library are imported.

Each family has its own module; here they come together, told apart by `type`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from pipelines.data.config import DataFile as DataFile
from pipelines.data.config import Datasets as Datasets
from pipelines.data.config import Fraction as Fraction
from pipelines.data.config import HeldOut as HeldOut
from pipelines.fields import CLASS_PATTERN
from pipelines.fields import Config as Config
from pipelines.fields import wrong as wrong
from pipelines.finetune.config import FineTuneConfig as FineTuneConfig
from pipelines.finetune.config import PruneConfig as PruneConfig
from pipelines.finetune.config import RetrainPrunedConfig as RetrainPrunedConfig
from pipelines.finetune.config import SFTConfig as SFTConfig
from pipelines.finetune.distill_config import DistillConfig as DistillConfig
from pipelines.finetune.preference_config import DPOConfig as DPOConfig
from pipelines.finetune.recipes import filled
from pipelines.rag.config import RagConfig as RagConfig


class CustomConfig(Config):
    """A pipeline of your own: a class with `resource`, `run` and optionally `evaluate` (see CONTRIBUTING)."""

    type: Literal["custom"] = "custom"
    import_path: str = Field(pattern=CLASS_PATTERN)
    """`module:Class`, importable where trials run; the sweep file's folder is on the path."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Handed to the class; any key below can be swept as `kwargs.NAME`."""
    total: int = Field(ge=1)
    """The resource of a whole run."""
    metrics: dict[str, Literal["minimize", "maximize"]] = Field(default_factory=dict)
    """Scores it reports on `tune`, without the split, and which way is better."""
    asks_models: bool = False
    """It asks resident models through the memo (`pipelines.calls.make_calls`): trials then get 0.1 CPU by default."""

    def moot(self) -> dict[str, str]:
        """Nothing is known of the keys of a pipeline of your own."""
        return {}


AnyPipeline = SFTConfig | DistillConfig | RetrainPrunedConfig | DPOConfig | RagConfig | CustomConfig
"""A typed pipeline configuration."""
PipelineConfig = Annotated[AnyPipeline, Field(discriminator="type")]
PIPELINE_CONFIGS: tuple[type[Config], ...] = (
    SFTConfig,
    DistillConfig,
    RetrainPrunedConfig,
    DPOConfig,
    RagConfig,
    CustomConfig,
)
"""The members of `PipelineConfig`, for those who ask which keys there are."""
PIPELINE_ADAPTER: TypeAdapter[AnyPipeline] = TypeAdapter(PipelineConfig)
"""Types a configuration by its `type`."""


def total_resource(
    config: AnyPipeline,
    count_rows: Callable[[Datasets], int],
    count_questions: Callable[[RagConfig], int],
    workers: int = 1,
) -> int:
    """The resource of a whole run: optimizer steps of a fine-tune, questions of RAG, `total` of a pipeline of your own.

    Args:
        config: the trial's configuration.
        count_rows: counts the rows of train (`pipelines.splits.count_train`); called for `num_epochs` only.
        count_questions: counts the questions of tune (`pipelines.rag.questions.count_tune`).
        workers: processes that train one trial together, each with the configuration's rows a step.
    """
    if isinstance(config, CustomConfig):
        return config.total
    if isinstance(config, RagConfig):
        return count_questions(config)
    if config.max_steps is not None:
        return config.max_steps
    a_step = config.micro_batch_size * config.gradient_accumulation_steps * workers
    return max(1, math.ceil((config.num_epochs or 0.0) * math.ceil(count_rows(config.datasets) / a_step)))


def asks_models(config: AnyPipeline) -> bool:
    """Whether trials ask resident models through the memo; the others pay for neither."""
    return isinstance(config, RagConfig) or (isinstance(config, CustomConfig) and config.asks_models)


def shares_memo(config: AnyPipeline) -> bool:
    """Whether trials share what they compute through the memo, without resident models: the reference's log-probabilities."""
    return isinstance(config, DPOConfig)


def parse_pipeline(config: Mapping[str, Any], workers: int = 1) -> AnyPipeline:
    """The typed form of a resolved configuration, on a worker.

    Args:
        config: JSON.
        workers: processes that train one trial; it matters only where a recipe is still to be filled in.

    Raises:
        pydantic.ValidationError: never after the door has passed it.
    """
    return PIPELINE_ADAPTER.validate_python(filled(dict(config), workers))
