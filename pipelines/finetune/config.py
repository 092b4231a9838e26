"""What one fine-tuning trial is: the keys that all kinds share, and each kind's own. Names are Axolotl's where it has one.

Any key can be swept; cross-field rules stand on the smallest class that sees both fields. Only pydantic and the standard
library are imported.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipelines.cuts import cut_name
from pipelines.data.config import Datasets
from pipelines.fields import HASH_PATTERN, Config, wrong

UNUSED: dict[str, tuple[str, ...]] = {
    "schedule_free_adamw": ("lr_scheduler",),
    "prodigy": ("learning_rate",),
    "adafactor": ("adam_beta1", "adam_beta2", "adam_epsilon"),
}
"""Keys that an optimizer has no use for."""
ADAPTER_KEYS: dict[str, tuple[str, ...]] = {
    "lora_r": ("lora", "lokr", "loha", "vera"),
    "lora_alpha": ("lora", "lokr", "loha"),
    "lora_dropout": ("lora", "vera"),
    "lora_target_modules": ("lora", "lokr", "loha", "vera", "ia3"),
    "use_rslora": ("lora",),
    "use_dora": ("lora",),
    "peft_init_lora_weights": ("lora",),
    "num_virtual_tokens": ("prompt_tuning",),
}
"""Key -> the adapters that it means something to."""
QUANTISED_ADAPTERS = ("lora", "vera", "ia3", "prompt_tuning")
"""Adapters that work on quantised weights."""
SPREADABLE = ("adamw", "nadamw")
"""Optimizers that can train a part of a weight as if it were the whole."""


class FineTuneConfig(Config):
    """What every fine-tune has in common; a kind of it adds its `type`, and what it trains on beside the rows."""

    spreadable: ClassVar[bool] = False
    """Whether its weights can be spread over workers: nobody looks at a whole one, and all workers run the model together."""
    type: str
    base_model: str
    """Hub id, folder, GGUF file, `package://module/path`, or `sweep://NAME/{best|soup|TRIAL}`."""
    base_model_hash: str | None = Field(default=None, pattern=HASH_PATTERN)
    """SHA-256 of the weights; filled in for `sweep://` sources, so that other weights make another trial."""
    keep_layers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """With `adapter: none`: train a model of some of `base_model`'s decoder layers: how many, at even distances with the first
    and the last among them, or which, counted from 0: [0, 9, 19, 29]. All by default."""
    datasets: Datasets
    """The four splits."""
    adapter: Literal["lora", "lokr", "loha", "vera", "ia3", "prompt_tuning", "none"] = "lora"
    """What is trained: `lora`, `lokr` (Kronecker products), `loha` (Hadamard products), `vera` (two vectors a module between
    random matrices), `ia3` (one vector a module), `prompt_tuning` (virtual tokens before every row), or `none`: all weights."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the adapter: of LoRA, LoKr, LoHa, and of VeRA's random matrices, which want a larger one (256)."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """Numerator of the scaling of LoRA, LoKr and LoHa; default 2 x `lora_r`."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter; of LoRA and VeRA."""
    lora_target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Modules that get an adapter, by the end of their names."""
    use_rslora: bool = False
    """Scale by alpha/sqrt(r) instead of alpha/r."""
    use_dora: bool = False
    """DoRA: train each row's length beside the adapter's direction; slower, and often better at small ranks."""
    peft_init_lora_weights: Literal["default", "pissa"] = "default"
    """`pissa` begins LoRA as the weights' largest singular directions instead of zero; the checkpoint is a plain adapter of
    2 x `lora_r` on the unchanged base model."""
    num_virtual_tokens: int = Field(default=20, ge=1)
    """Trained embeddings before every row, with `adapter: prompt_tuning`; they begin as tokens drawn from the vocabulary."""
    load_in_8bit: bool = False
    """Keep the base model's linear weights in 8 bits (bitsandbytes); the adapter stays fp32."""
    load_in_4bit: bool = False
    """Keep them in 4 bits: NF4 with nested quantisation (QLoRA)."""
    unfrozen_parameters: tuple[str, ...] | None = None
    """With `adapter: none`: regular expressions for the beginnings of parameter names; only parameters that match are
    trained, the others stay as they are. All are trained by default."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the schedule after warm-up, laid out to the total."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps that warm up."""
    optimizer: Literal["adamw", "nadamw", "schedule_free_adamw", "prodigy", "adafactor", "adamw_8bit"] = "adamw"
    """`nadamw` is AdamW with Nesterov's momentum; `schedule_free_adamw` averages weights in place of a schedule; `prodigy` finds
    the learning rate; `adafactor` keeps almost no state of a matrix; `adamw_8bit` keeps its state in 8 bits (bitsandbytes)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """First-moment decay."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Second-moment decay."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    prodigy_d_coef: float = Field(default=1.0, gt=0)
    """Prodigy: multiplies the learning rate that it finds."""
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
    group_by_length: bool = False
    """Put rows of similar length into one step and micro batch, which saves padding."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """`bf16` and `fp16` are autocast over fp32 weights; `fp16` scales the loss, and is for GPUs without bf16."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Where several workers train one trial (`resources`): `ddp` keeps the whole model on each, `fsdp` spreads weights,
    gradients and the optimizer's state over them, which takes less memory and more traffic."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time, equal weights."""
    seed_data: int = 0
    """Seed of the split hashes; the same in all trials."""
    loss_multiple: float = Field(default=5.0, gt=1)
    """A training loss past this multiple of the run's first one counts as diverged."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only if you trust it."""

    @model_validator(mode="after")
    def length_is_given_once(self) -> FineTuneConfig:
        """Exactly one of `max_steps` and `num_epochs`."""
        if self.max_steps is not None and self.num_epochs is not None:
            raise wrong("max_steps", "max_steps and num_epochs are both given; delete one")
        if self.max_steps is None and self.num_epochs is None:
            raise wrong("max_steps", "is missing; give the length of a run: max_steps (or num_epochs)")
        return self

    @model_validator(mode="after")
    def a_spread_model_is_trained_number_by_number(self) -> FineTuneConfig:
        """`parallel: fsdp` without a loss scale, and with optimizers that treat each number of a weight by itself."""
        if self.parallel == "fsdp" and not self.spreadable:
            raise wrong("parallel", f"fsdp is for type: sft, and this is {self.type}; write parallel: ddp")
        if self.parallel == "fsdp" and self.adapter not in ("lora", "none"):
            raise wrong("parallel", f"fsdp trains LoRA or all weights, not {self.adapter}; write parallel: ddp")
        if self.parallel == "fsdp" and (self.quantised or self.peft_init_lora_weights == "pissa"):
            raise wrong("parallel", "fsdp cuts base weights, which must be plain ones; write parallel: ddp")
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise wrong(
                "precision", "fp16 scales the loss, which parallel: fsdp does not support; write precision: bf16"
            )
        if self.parallel == "fsdp" and self.optimizer not in SPREADABLE:
            raise wrong(
                "optimizer",
                f"{self.optimizer} looks at whole weights, which parallel: fsdp cuts; take {' or '.join(SPREADABLE)}",
            )
        return self

    @model_validator(mode="after")
    def parameters_are_unfrozen_without_an_adapter(self) -> FineTuneConfig:
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

    @model_validator(mode="after")
    def phases_are_of_supervised_fine_tunes(self) -> FineTuneConfig:
        """The other kinds shuffle all rows together."""
        if self.datasets.strategy == "phased" and not isinstance(self, SFTConfig):
            raise wrong("datasets", f"strategy: phased is for sft; {self.type} shuffles all rows together; delete it")
        return self

    @model_validator(mode="after")
    def schedule_free_has_momentum(self) -> FineTuneConfig:
        """Schedule-free AdamW trains between two sequences of weights, at a share of beta1."""
        if self.optimizer == "schedule_free_adamw" and self.adam_beta1 == 0:
            raise wrong("adam_beta1", "schedule_free_adamw needs a beta1 above 0; 0.9 is its default")
        return self

    @model_validator(mode="after")
    def pissa_begins_plain_lora(self) -> FineTuneConfig:
        """PiSSA with LoRA's own form, on weights whose singular directions can be read."""
        if self.adapter != "lora" or self.peft_init_lora_weights != "pissa":
            return self
        if self.use_dora:
            raise wrong("peft_init_lora_weights", "pissa with use_dora is not supported; delete one of them")
        if self.quantised:
            raise wrong(
                "peft_init_lora_weights", f"pissa reads whole weights, not those of {self.quantised}; delete one"
            )
        return self

    @model_validator(mode="after")
    def quantised_weights_carry_an_adapter(self) -> FineTuneConfig:
        """4 or 8 bits, not both, under an adapter that never asks for the whole weight."""
        if self.load_in_8bit and self.load_in_4bit:
            raise wrong("load_in_4bit", "load_in_8bit and load_in_4bit are both true; delete one")
        if self.quantised and self.adapter not in QUANTISED_ADAPTERS:
            why = "trains all weights" if self.adapter == "none" else "adds to whole weights"
            names = ", ".join(QUANTISED_ADAPTERS)
            raise wrong(
                self.quantised, f"adapter {self.adapter} {why}, which {self.quantised} has not; write one of {names}"
            )
        return self

    @model_validator(mode="after")
    def layers_are_kept_without_an_adapter(self) -> FineTuneConfig:
        """`keep_layers` with `adapter: none`: an adapter of a cut model would fit no model that is somewhere."""
        if self.keep_layers is None:
            return self
        if self.adapter != "none":
            raise wrong(
                "keep_layers", f"adapter is {self.adapter}, and its base would lie nowhere; write adapter: none"
            )
        if not isinstance(self.keep_layers, int) and list(self.keep_layers) != sorted(set(self.keep_layers)):
            raise wrong("keep_layers", f"{list(self.keep_layers)} is not ascending; name each layer once, in order")
        if self.keep_layers == ():
            raise wrong("keep_layers", "is empty; give a number of layers, or name some")
        return self

    @property
    def starts_from(self) -> str:
        """The name of the model that a run begins from: `base_model`, with `keep_layers` a cut of it."""
        return cut_name(self.base_model, self.keep_layers)

    @property
    def packs(self) -> bool:
        """Whether rows are packed into sequences."""
        return False

    def _given(self, name: str) -> bool:
        """Whether a key has a value of its own: a resolved file names every key, most with its default."""
        return name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default

    @property
    def quantised(self) -> Literal["load_in_8bit", "load_in_4bit"] | None:
        """The key that asks for quantised base weights; None for fp32."""
        if self.load_in_4bit:
            return "load_in_4bit"
        return "load_in_8bit" if self.load_in_8bit else None

    def moot(self) -> dict[str, str]:
        """Keys that were given a value but have no effect, and why."""
        found: dict[str, str] = {}
        for name, adapters in ADAPTER_KEYS.items():
            if self.adapter not in adapters and self._given(name):
                found[name] = f"adapter is {self.adapter}"
        if self.group_by_length and self.micro_batch_size == 1:
            found["group_by_length"] = "micro_batch_size is 1"
        unused = UNUSED.get(self.optimizer, ()) + (() if self.optimizer == "prodigy" else ("prodigy_d_coef",))
        found |= {name: f"optimizer is {self.optimizer}" for name in unused if self._given(name)}
        flat = self.lr_scheduler == "constant" and self.optimizer != "schedule_free_adamw"
        if flat and "warmup_ratio" in self.model_fields_set and self.warmup_ratio:
            found["warmup_ratio"] = "lr_scheduler is constant; constant_with_warmup warms up"
        return found


class SFTConfig(FineTuneConfig):
    """Supervised fine-tuning with TRL's SFTTrainer, LoRA or full."""

    spreadable: ClassVar[bool] = True
    type: Literal["sft"] = "sft"
    recipe: Literal["lab", "tulu"] | None = None
    """Defaults by name for whatever the file does not say: all weights trained at 2e-5, `lab` with 3,840 rows a step and a
    constant rate, `tulu` with 128 rows and a linear fall after 3 % warm-up (arXiv 2412.13337)."""
    sample_packing: bool = False
    """Fill sequences of `sequence_len` tokens with whole rows that don't see each other: no padding, more rows in a
    micro batch. `micro_batch_size` then counts packed sequences, so the length must be given as `max_steps`."""

    @property
    def packs(self) -> bool:
        """Whether rows are packed into sequences."""
        return self.sample_packing

    @model_validator(mode="after")
    def rows_hold_what_is_imitated(self) -> SFTConfig:
        """Pairs are trained on by their chosen answer; answers with a label may be bad ones."""
        for name, data in self.datasets.files.items():
            if data.type == "unpaired_preference":
                raise wrong(
                    f"datasets.{name}.type",
                    f"'{data.type}' rows hold bad answers too; {self.type} takes preference rows, whose chosen answer it "
                    "trains on, or write pipeline.type: dpo with loss: kto",
                )
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
    def packed_rows_have_no_prompt_before_each(self) -> SFTConfig:
        """Virtual tokens stand before a sequence, not before every row packed into it."""
        if self.sample_packing and self.adapter == "prompt_tuning":
            raise wrong(
                "sample_packing", "prompt_tuning puts its tokens before a row, not inside a packed sequence; delete it"
            )
        return self

    @model_validator(mode="after")
    def phases_and_length_groups_exclude_each_other(self) -> SFTConfig:
        """Length groups are made over all rows."""
        if self.group_by_length and self.datasets.strategy == "phased":
            raise wrong("group_by_length", "groups rows of all files; delete it, or datasets.strategy: phased")
        return self

    @model_validator(mode="after")
    def packing_and_length_groups_exclude_each_other(self) -> SFTConfig:
        """Packed sequences are all of one length."""
        if self.sample_packing and self.group_by_length:
            raise wrong("group_by_length", "packed sequences have no padding to save; delete it, or sample_packing")
        return self


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

    spreadable: ClassVar[bool] = False
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
        if self.adapter == "lora" and self.peft_init_lora_weights == "pissa":
            raise wrong(
                "peft_init_lora_weights", "the adapter's product is masked, and PiSSA's is half the weight; delete it"
            )
        if self.quantised:
            raise wrong(self.quantised, "a mask is of whole weights; delete it")
        return self
