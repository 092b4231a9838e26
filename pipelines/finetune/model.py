"""Base models: from a name to a folder of safetensors, and from there into memory, where one stays between tasks.

A name is a hub id, a folder, a GGUF file, `package://module/path`, or the folder of an adapter, which is folded into its
base; `layers://4/NAME` is one with some of its layers (`pipelines.cuts`). GGUF files, adapters and cuts are converted once, in
fp32, into the cache folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import struct
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from pipelines.config import FineTuneConfig
from pipelines.cuts import Keep, split_cut
from pipelines.finetune.adapters import attach
from pipelines.finetune.layers import cut
from pipelines.hashes import kept_hash, record_hash
from pipelines.once import made_once
from pipelines.packages import PACKAGE, first_line, hub_snapshot, lacks_code, named_path, own_code
from pipelines.stage import UserError
from pipelines.weights import content_hash

_CONVERSION = 1
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja"]
_ALTERNATIVES = (
    "Give a folder with safetensors, a GGUF file, package://module/path (a model inside an installed package) or "
    "sweep://NAME/best instead"
)
_TOKENIZER_FILES = (
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens",
    "added_tokens",
    "spiece",
    "sentencepiece",
    "chat_",
)
_SAYS_NOTHING = ("name_or_path", "tokenizer_file", "transformers_version", "is_local", "local_files_only")
"""Keys of `tokenizer_config.json` that say nothing about tokens."""


@dataclass
class LoadedModel:
    """A base model in memory.

    Attributes:
        model: the causal language model, fp32 or quantised, without any adapter.
        tokenizer: its tokenizer; its padding token is set.
        folder: where both were loaded from.
    """

    model: Any
    tokenizer: Any
    folder: Path


ROUNDED = {None: "", "load_in_8bit": " on int8", "load_in_4bit": " on nf4"}
"""What the memo's keys say of quantised weights."""


@dataclass(frozen=True)
class Quantised:
    """How linear weights are kept where they are not fp32.

    Attributes:
        key: the setting that asks for it.
        precision: what is computed in, `fp32`, `bf16` or `fp16`.
    """

    key: Literal["load_in_8bit", "load_in_4bit"]
    precision: str

    @classmethod
    def of(cls, config: FineTuneConfig) -> Quantised | None:
        """As the configuration says; None for fp32."""
        return None if config.quantised is None else cls(config.quantised, config.precision)

    def settings(self) -> BitsAndBytesConfig:
        """Transformers' form: 8 bits by rows (LLM.int8), or NF4 with nested quantisation.

        Raises:
            UserError: if bitsandbytes is not installed.
        """
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(f"{self.key}: needs the package bitsandbytes: pip install 'stockpot[bitsandbytes]'")
        warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
        if self.key == "load_in_8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=kinds[self.precision],
        )


def keep_scales(model: torch.nn.Module) -> None:
    """Have 4-bit weights stay as they were loaded on CPUs with bf16 instructions.

    There bitsandbytes packs them anew at the first scoring, for good: with scales rounded to bf16, so that a trial's steps after a
    milestone would be on other weights than those of one that was not scored, and not at all where a row is no multiple of 64.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


class BaseModels:
    """Keeps one base model in memory, so that the next task on it starts at once.

    Whoever changes the weights calls `drop`; whoever attaches an adapter detaches it.

    Args:
        cache: folder for converted models; a temporary one of this object where there is none.
    """

    def __init__(self, cache: str | None = None) -> None:
        self._own = tempfile.TemporaryDirectory(prefix="stockpot-")
        self.cache = Path(self._own.name if cache is None else cache)
        self._kept: tuple[tuple[Any, ...], LoadedModel] | None = None

    def load(
        self, source: str, *, trust_remote_code: bool = False, device: str = "cpu", quantised: Quantised | None = None
    ) -> LoadedModel:
        """The base model `source`, from memory where it is the one that was used last.

        Raises:
            UserError: if it can't be found or loaded.
        """
        folder = resolve(source, self.cache, trust_remote_code=trust_remote_code)
        key = (str(folder), trust_remote_code, device, quantised)
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            loaded = load_folder(folder, trust_remote_code=trust_remote_code, device=device, quantised=quantised)
            self._kept = (key, loaded)
        return self._kept[1]

    def drop(self) -> None:
        """Forget the model in memory: its weights are not the file's any more."""
        self._kept = None


def load_folder(
    folder: Path, *, trust_remote_code: bool = False, device: str = "cpu", quantised: Quantised | None = None
) -> LoadedModel:
    """Model (fp32 where it is not quantised, evaluation mode) and tokenizer from a folder of safetensors.

    Raises:
        UserError: if the folder holds no causal language model that can be loaded.
    """
    how = {} if quantised is None else {"quantization_config": quantised.settings(), "device_map": {"": device}}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            **how,
        )
    except (OSError, ValueError, KeyError) as error:
        told = own_code(error, "base_model") or f"{first_line(error)}. {_ALTERNATIVES}"
        raise UserError(f"base_model: {folder} can't be loaded: {told}") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"base_model: the tokenizer of {folder} has no end-of-text token, so rows can't be ended")
        tokenizer.pad_token = tokenizer.eos_token
    if quantised is None:
        model = model.to(device)
    else:
        keep_scales(model)
    return LoadedModel(model.eval(), tokenizer, folder)


def resolve(source: str, cache: Path, *, trust_remote_code: bool = False) -> Path:
    """The folder of safetensors that a name stands for; converts and downloads where needed.

    Args:
        source: hub id, folder, GGUF file, `package://module/path`, an adapter's folder, or `layers://` before one of them.
        cache: where converted models are kept.
        trust_remote_code: also fetch the model's own Python code from a hub.

    Raises:
        UserError: if nothing is there, with what could be given instead.
    """
    keep, whole = split_cut(source)
    if keep is not None:
        return _cut(resolve(whole, cache, trust_remote_code=trust_remote_code), keep, cache, trust_remote_code)
    if source.startswith("sweep://"):
        raise UserError(f"base_model: {source} must be resolved when the sweep file is read, but reached a worker")
    path = named_path(source, "base_model")
    if path.is_dir():
        return _resolve_folder(path, cache, trust_remote_code)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UserError(f"base_model: {path} is a file but no GGUF file. {_ALTERNATIVES}")
        return _from_gguf(path, cache)
    if source.startswith(PACKAGE) or not _HUB_ID.fullmatch(source) or path.suffix.lower() == ".gguf":
        raise UserError(f"base_model: {path} does not exist. {_ALTERNATIVES}")
    return _from_hub(source, trust_remote_code)


def origin(folder: Path) -> dict[str, str | None]:
    """What a checkpoint's `state.json` says of its base model, for soups: `base_hash` and `tokenizer_hash`."""
    return {"base_hash": content_hash(folder), "tokenizer_hash": tokenizer_hash(folder)}


def tokenizer_hash(folder: Path) -> str | None:
    """SHA-256 (hex) of what a folder's tokenizer files say, however they were written; None where there are none."""
    body = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and path.name.startswith(_TOKENIZER_FILES):
            body[path.name] = kept_hash(path)
            if path.name == "tokenizer_config.json":
                record = json.loads(path.read_text(encoding="utf-8"))
                said = {key: value for key, value in record.items() if key not in _SAYS_NOTHING}
                body[path.name] = record_hash(said)
    return record_hash(body) if body else None


def _resolve_folder(folder: Path, cache: Path, trust_remote_code: bool) -> Path:
    if (folder / "config.json").is_file():
        return folder
    if (folder / "adapter_config.json").is_file():
        return _folded(folder, cache, trust_remote_code)
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return _from_gguf(files[0], cache)
    held = f"{len(files)} GGUF files; name one" if files else "neither config.json, adapter_config.json nor a GGUF file"
    raise UserError(f"base_model: the folder {folder} has {held}. {_ALTERNATIVES}")


def _from_gguf(path: Path, cache: Path) -> Path:
    """The GGUF file as fp32 safetensors, converted once."""

    def convert(folder: Path) -> None:
        try:
            how = {"gguf_file": path.name, "local_files_only": True}
            tokenizer = AutoTokenizer.from_pretrained(path.parent, trust_remote_code=False, **how)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, dtype=torch.float32, trust_remote_code=False, **how
            )
        except ImportError as error:
            raise UserError(
                f"base_model: {path.name} needs the package gguf (pip install --no-deps gguf): {error}"
            ) from error
        except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
            raise UserError(f"base_model: {path} can't be read as GGUF: {first_line(error)}") from error
        for mark in ("is_quantized", "quantization_method", "hf_quantizer"):
            model.__dict__.pop(mark, None)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        _write(model, tokenizer, folder)

    return made_once(cache, f"gguf-{_CONVERSION}-{kept_hash(path)[:24]}", convert)


def _folded(adapter: Path, cache: Path, trust_remote_code: bool) -> Path:
    """An adapter's base with the adapter's products added to its weights in fp32, made once."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    source = config.get("base_model_name_or_path")
    if not source:
        raise UserError(f"base_model: {adapter} is an adapter that does not name its base model")
    if config.get("peft_type") == "PROMPT_TUNING":
        raise UserError(
            f"base_model: {adapter} holds virtual tokens that stand before every row, which can't be folded into weights; "
            f"begin from its base, {source}, or from an adapter of another kind"
        )
    base = resolve(source, cache, trust_remote_code=trust_remote_code)
    name = hashlib.sha256(f"{content_hash(base)}:{content_hash(adapter)}".encode()).hexdigest()[:24]

    def fold(folder: Path) -> None:
        loaded = load_folder(base, trust_remote_code=trust_remote_code)
        _write(attach(loaded.model, adapter).merge_and_unload(safe_merge=True), loaded.tokenizer, folder)

    return made_once(cache, f"folded-{_CONVERSION}-{name}", fold)


def _cut(whole: Path, keep: Keep, cache: Path, trust_remote_code: bool) -> Path:
    """A model with some of its decoder layers, made once."""
    name = record_hash({"model": content_hash(whole), "keep_layers": keep})[:24]

    def leave_out(folder: Path) -> None:
        loaded = load_folder(whole, trust_remote_code=trust_remote_code)
        cut(loaded.model, keep)
        _write(loaded.model, loaded.tokenizer, folder)

    return made_once(cache, f"layers-{_CONVERSION}-{name}", leave_out)


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a converted model, whichever of a trial's workers this is.

    In a process group Transformers lets the first process write alone, but a cache is a machine's, and any may be first there.
    """
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert (folder / "config.json").is_file(), f"a converted model has a config.json, but {folder} has none"


def _from_hub(source: str, trust_remote_code: bool) -> Path:
    """A snapshot of a hub repository."""

    def whole(local: Path) -> bool:
        there = (local / "config.json").is_file() and any(local.glob("*.safetensors"))
        return there and not (trust_remote_code and lacks_code(local))

    files = [*_HUB_FILES, *(["*.py"] if trust_remote_code else [])]
    return hub_snapshot(source, "base_model", files, whole, _ALTERNATIVES)
