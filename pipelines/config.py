"""What one trial is: the `pipeline:` section. Frozen pydantic; only pydantic and the standard library are imported.

Names are Axolotl's where Axolotl has one. Any key can be swept; cross-field rules stand on the smallest class that sees
both fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from pipelines.fields import CLASS_PATTERN, HASH_PATTERN
from pipelines.fields import Config as Config
from pipelines.fields import wrong as wrong
from pipelines.rag.config import RagConfig as RagConfig


class DataFile(Config):
    """A dataset of its own."""

    path: str
    """File, folder or pattern of files (JSONL, JSON, CSV, TSV, Parquet, Arrow; relative to the sweep file), or hub id."""
    ds_type: Literal["json", "csv", "parquet", "arrow"] | None = None
    """Format of the files; by default what their suffix says."""
    name: str | None = None
    """Configuration of a hub data set, where it has several."""
    split: str | None = None
    """Split of a hub data set: `train` by default; `train[:10%]` is a part of it."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set; `submit` fills in the commit, so that all trials see the same rows."""
    streaming: bool = False
    """Rows are read from disk when they are needed and never held in memory; for `train` alone."""
    content_hash: str | None = Field(default=None, pattern=HASH_PATTERN)
    """SHA-256 of the file (of several: over all); filled in by `submit`, so that changed rows are refused."""
    type: Literal["chat", "prompt_completion", "text"]
    """Shape of a row: `chat` (a list of messages), `prompt_completion` (two texts), `text` (one)."""
    field_messages: str = "messages"
    """Key of the message list of `chat` rows."""
    field_prompt: str = "prompt"
    """Key of the prompt of `prompt_completion` rows."""
    field_completion: str = "completion"
    """Key of the completion of `prompt_completion` rows."""
    field_text: str = "text"
    """Key of the text of `text` rows."""
    group_by: str | None = None
    """Key whose value keeps rows together in splits and clusters errors; default: the prompt."""
    limit: int | None = Field(default=None, ge=1)
    """Rows used at most, the first ones in file order; all by default."""


class Fraction(Config):
    """A share of `train`, by hash of the prompt: stable and disjoint."""

    fraction: float = Field(gt=0, lt=1)
    """Share of the prompts of `train`."""


def _split_form(value: Any) -> str:
    if isinstance(value, Mapping):
        return "<file>" if len(DataFile.model_fields.keys() & value.keys()) > ("fraction" in value) else "<fraction>"
    return "<file>" if isinstance(value, DataFile) else "<fraction>"


HeldOut = Annotated[
    Annotated[DataFile, Tag("<file>")] | Annotated[Fraction, Tag("<fraction>")], Discriminator(_split_form)
]
"""A split that is not trained on: a file of its own, or a share of `train`."""


class Datasets(Config):
    """The four splits."""

    train: DataFile
    """What is trained on."""
    tune: HeldOut = Fraction(fraction=0.1)
    """Decides during the sweep."""
    select: HeldOut | None = None
    """Chooses soups; needed when there is a soup."""
    test: HeldOut | None = None
    """Opened once, by the final step."""
    on_duplicate: Literal["error", "drop_train"] = "error"
    """A prompt that stands in two splits' files: an error, or it is dropped from train."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that can't be used: an error that names it, or it is left out, counted and named in a warning."""

    @property
    def fractions(self) -> dict[str, float]:
        """The splits that are shares of `train`."""
        named = {"tune": self.tune, "select": self.select, "test": self.test}
        return {name: split.fraction for name, split in named.items() if isinstance(split, Fraction)}

    @property
    def files(self) -> dict[str, DataFile]:
        """The splits that are data sets of their own, `train` among them."""
        named = {"train": self.train, "tune": self.tune, "select": self.select, "test": self.test}
        return {name: split for name, split in named.items() if isinstance(split, DataFile)}

    @model_validator(mode="after")
    def only_train_is_streamed(self) -> Datasets:
        """Held-out rows are scored again and again, so they stay in memory (those taken from train by fraction do not)."""
        for name in ("tune", "select", "test"):
            if getattr(getattr(self, name), "streaming", False):
                raise wrong(f"{name}.streaming", "only train is streamed; delete the line")
        return self

    @model_validator(mode="after")
    def fractions_leave_rows_to_train_on(self) -> Datasets:
        """The fractions sum to less than 1."""
        total = math.fsum(self.fractions.values())
        if total >= 1:
            listed = " + ".join(f"{name} {value:g}" for name, value in self.fractions.items())
            name = next(iter(self.fractions))
            raise wrong(name, f"the fractions {listed} leave nothing to train on; they must sum to less than 1")
        return self


class SFTConfig(Config):
    """Supervised fine-tuning with TRL's SFTTrainer, LoRA or full."""

    type: Literal["sft"] = "sft"
    base_model: str
    """Hub id, folder, GGUF file, `package://module/path`, or `sweep://NAME/{best|soup|TRIAL}`."""
    base_model_hash: str | None = Field(default=None, pattern=HASH_PATTERN)
    """SHA-256 of the weights; filled in for `sweep://` sources, so that other weights make another trial."""
    datasets: Datasets
    """The four splits."""
    adapter: Literal["lora", "none"] = "lora"
    """`lora` trains a PEFT adapter, `none` all weights."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the adapter."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """Numerator of the adapter's scaling; default 2 x `lora_r`."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter."""
    lora_target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Modules that get an adapter, by the end of their names."""
    use_rslora: bool = False
    """Scale by alpha/sqrt(r) instead of alpha/r."""
    use_dora: bool = False
    """DoRA: train each row's length beside the adapter's direction; slower, and often better at small ranks."""
    unfrozen_parameters: tuple[str, ...] | None = None
    """With `adapter: none`: regular expressions for the beginnings of parameter names; only parameters that match are
    trained, the others stay as they are. All are trained by default."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the schedule after warm-up, laid out to the total."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps that warm up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """First-moment decay of AdamW."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Second-moment decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm; 0 turns clipping off."""
    micro_batch_size: int = Field(default=2, ge=1)
    """Rows in one forward pass of one device."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Forward passes an optimizer step; the loss is a mean over tokens of all of them."""
    eval_batch_size: int = Field(default=8, ge=1)
    """Rows in one forward pass of an evaluation."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps in all; give this or `num_epochs`."""
    num_epochs: float | None = Field(default=None, gt=0)
    """Passes over train in all; give this or `max_steps`."""
    sequence_len: int = Field(default=1024, ge=8)
    """Tokens a row at most; longer rows are cut at the end and counted."""
    sample_packing: bool = False
    """Fill sequences of `sequence_len` tokens with whole rows that don't see each other: no padding, more rows in a
    micro batch. `micro_batch_size` then counts packed sequences, so the length must be given as `max_steps`."""
    group_by_length: bool = False
    """Put rows of similar length into one micro batch, which saves padding."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """`bf16` and `fp16` are autocast over fp32 weights; `fp16` scales the loss, and is for GPUs without bf16."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time, equal weights."""
    seed_data: int = 0
    """Seed of the split hashes; the same in all trials."""
    loss_multiple: float = Field(default=5.0, gt=1)
    """A training loss past this multiple of the run's first one counts as diverged."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only if you trust it."""

    @model_validator(mode="after")
    def length_is_given_once(self) -> SFTConfig:
        """Exactly one of `max_steps` and `num_epochs`."""
        if self.max_steps is not None and self.num_epochs is not None:
            raise wrong("max_steps", "max_steps and num_epochs are both given; delete one")
        if self.max_steps is None and self.num_epochs is None:
            raise wrong("max_steps", "is missing; give the length of a run: max_steps (or num_epochs)")
        return self

    @model_validator(mode="after")
    def packed_runs_are_measured_in_steps(self) -> SFTConfig:
        """`sample_packing` with `max_steps`: how many packed sequences an epoch has is known only on a worker."""
        if self.sample_packing and self.max_steps is None:
            raise wrong(
                "sample_packing",
                "packs a number of rows that only training knows into a step; give max_steps, not epochs",
            )
        return self

    @model_validator(mode="after")
    def packing_and_length_groups_exclude_each_other(self) -> SFTConfig:
        """Packed sequences are all of one length."""
        if self.sample_packing and self.group_by_length:
            raise wrong("group_by_length", "packed sequences have no padding to save; delete it, or sample_packing")
        return self

    @model_validator(mode="after")
    def parameters_are_unfrozen_without_an_adapter(self) -> SFTConfig:
        """`unfrozen_parameters` with `adapter: none`, at least one, each a regular expression."""
        if self.unfrozen_parameters is None:
            return self
        if self.adapter != "none":
            raise wrong(
                "unfrozen_parameters", f"adapter is {self.adapter}, which trains its own weights; write adapter: none"
            )
        if not self.unfrozen_parameters:
            raise wrong("unfrozen_parameters", "is empty, so nothing would be trained; name some, or delete it")
        for pattern in self.unfrozen_parameters:
            if re.search(r"\[\d*:\d*\]\Z", pattern):
                raise wrong("unfrozen_parameters", f"{pattern!r} ends with a range of rows, which is not supported")
            try:
                re.compile(pattern)
            except re.error as error:
                raise wrong("unfrozen_parameters", f"{pattern!r} is no regular expression: {error}") from None
        return self

    def moot(self) -> dict[str, str]:
        """Keys that were given a value but have no effect, and why."""
        found: dict[str, str] = {}
        if self.adapter == "none":
            for name in sorted(self.model_fields_set):
                if name.startswith("lora_") or name in ("use_rslora", "use_dora"):
                    found[name] = "adapter is none"
        if self.group_by_length and self.micro_batch_size == 1:
            found["group_by_length"] = "micro_batch_size is 1"
        if self.lr_scheduler == "constant" and "warmup_ratio" in self.model_fields_set and self.warmup_ratio:
            found["warmup_ratio"] = "lr_scheduler is constant; constant_with_warmup warms up"
        return found


class PruneConfig(Config):
    """How weights are chosen that are set to zero."""

    method: Literal["magnitude", "wanda"] = "magnitude"
    """`magnitude`: the smallest ones; `wanda`: those that contribute least to their row's sum, by |weight| times the norm of
    its input over rows of train."""
    scope: Literal["global", "layer"] = "global"
    """Magnitude compares all matrices together, or prunes the same share of each; wanda prunes the same share of every row."""
    rows: int = Field(default=128, ge=1)
    """Wanda: rows whose inputs count, the first ones."""
    sequence_len: int = Field(default=1024, ge=8)
    """Wanda: tokens of such a row at most."""


class RetrainPrunedConfig(SFTConfig):
    """Supervised fine-tuning of a pruned model that keeps its zeros, with all weights or with an adapter (W + dW) * M."""

    type: Literal["retrain_pruned"] = "retrain_pruned"  # type: ignore[assignment]
    adapter: Literal["lora", "none"] = "none"
    """`none` trains all weights, `lora` an adapter whose product is masked; the checkpoint is a whole model either way."""
    mask_hash: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Mask that `base_model` must have (SHA-256, as `stockpot prune` prints it); default: whichever it has."""

    @model_validator(mode="after")
    def a_masked_adapter_is_plain_lora(self) -> RetrainPrunedConfig:
        """(W + dW) * M needs dW as a matrix: no dropout before it, no lengths of rows."""
        if self.adapter == "lora" and self.lora_dropout:
            raise wrong("lora_dropout", "the adapter's product is masked, which leaves no place for dropout; delete it")
        if self.adapter == "lora" and self.use_dora:
            raise wrong("use_dora", "the adapter's product is masked, which DoRA's lengths are not made for; delete it")
        return self


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


AnyPipeline = SFTConfig | RetrainPrunedConfig | RagConfig | CustomConfig
"""A typed pipeline configuration."""
PipelineConfig = Annotated[AnyPipeline, Field(discriminator="type")]
PIPELINE_CONFIGS: tuple[type[Config], ...] = (SFTConfig, RetrainPrunedConfig, RagConfig, CustomConfig)
"""The members of `PipelineConfig`, for those who ask which keys there are."""
PIPELINE_ADAPTER: TypeAdapter[AnyPipeline] = TypeAdapter(PipelineConfig)
"""Types a configuration by its `type`."""


def total_resource(
    config: AnyPipeline, count_rows: Callable[[Datasets], int], count_questions: Callable[[RagConfig], int]
) -> int:
    """The resource of a whole run: optimizer steps of a fine-tune, questions of RAG, `total` of a pipeline of your own.

    Args:
        config: the trial's configuration.
        count_rows: counts the rows of train (`pipelines.splits.count_train`); called for `num_epochs` only.
        count_questions: counts the questions of tune (`pipelines.rag.questions.count_tune`).
    """
    if isinstance(config, CustomConfig):
        return config.total
    if isinstance(config, RagConfig):
        return count_questions(config)
    if config.max_steps is not None:
        return config.max_steps
    a_step = config.micro_batch_size * config.gradient_accumulation_steps
    return max(1, math.ceil((config.num_epochs or 0.0) * math.ceil(count_rows(config.datasets) / a_step)))


def asks_models(config: AnyPipeline) -> bool:
    """Whether trials ask resident models through the memo; the others pay for neither."""
    return isinstance(config, RagConfig) or (isinstance(config, CustomConfig) and config.asks_models)


def parse_pipeline(config: Mapping[str, Any]) -> AnyPipeline:
    """The typed form of a resolved configuration, on a worker.

    Raises:
        pydantic.ValidationError: never after the door has passed it.
    """
    return PIPELINE_ADAPTER.validate_python(dict(config))
