"""A model's shape from headers that are written here byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from pipelines.finetune.shape import ShapeUnknown, gguf_header, read_shape

CONFIG = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 16, "vocab_size": 32, "tie_word_embeddings": True,
}  # fmt: skip
TENSORS = {
    "model.embed_tokens.weight": [32, 8],
    "model.layers.0.self_attn.q_proj.weight": [8, 8],
    "model.layers.0.mlp.gate_proj.weight": [16, 8],
    "model.norm.weight": [8],
}


def write_safetensors(path: Path, tensors: dict[str, list[int]]) -> None:
    header = json.dumps(
        {"__metadata__": {"format": "pt"}}
        | {name: {"dtype": "F32", "shape": size, "data_offsets": [0, 0]} for name, size in tensors.items()}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def folder(place: Path, config: dict[str, Any] | None = None, tensors: dict[str, list[int]] | None = None) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(config or CONFIG))
    write_safetensors(place / "model.safetensors", tensors or TENSORS)
    return place


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word)) + word.encode()


def write_gguf(path: Path, version: int = 3) -> Path:
    numbers = {
        "tiny.embedding_length": 8, "tiny.block_count": 1, "tiny.attention.head_count": 2,
        "tiny.attention.head_count_kv": 1, "tiny.feed_forward_length": 16,
    }  # fmt: skip
    fields = [text("general.architecture") + struct.pack("<I", 8) + text("tiny")]
    fields += [text(name) + struct.pack("<II", 4, value) for name, value in numbers.items()]
    fields.append(text("words") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("") + text("ccc"))
    fields.append(text("scores") + struct.pack("<IIQ3f", 9, 6, 3, 1.0, 2.0, 3.0))
    fields.append(text("on") + struct.pack("<I?", 7, True))
    tensors = {"token_embd.weight": [8, 32], "blk.0.attn_q.weight": [8, 8], "blk.0.ffn_gate.weight": [8, 16]}
    listed = [
        text(name) + struct.pack(f"<I{len(size)}Q", len(size), *size) + struct.pack("<IQ", 0, 0)
        for name, size in tensors.items()
    ]
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(fields))
    path.write_bytes(head + b"".join(fields + listed))
    return path


def test_a_folder_of_safetensors(tmp_path: Path) -> None:
    found = read_shape(str(folder(tmp_path / "m")))
    assert (found.hidden, found.layers, found.heads, found.kv_heads, found.head_dim) == (8, 1, 2, 1, 4)
    assert (found.intermediate, found.vocabulary, found.gated, found.tied) == (16, 32, True, True)
    assert found.parameters == 32 * 8 + 64 + 128 + 8
    assert found.linears == {"model.layers.0.self_attn.q_proj": (8, 8), "model.layers.0.mlp.gate_proj": (16, 8)}


def test_an_output_layer_of_its_own_and_shards(tmp_path: Path) -> None:
    place = folder(tmp_path / "m", {**CONFIG, "tie_word_embeddings": False})
    write_safetensors(place / "model-2.safetensors", {"lm_head.weight": [32, 8]})
    write_safetensors(place / "optimizer.safetensors", {"0.exp_avg": [1000, 1000]})
    found = read_shape(str(place))
    assert not found.tied
    assert found.parameters == 2 * 32 * 8 + 64 + 128 + 8


def test_a_gguf_file_and_its_folder(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    found = read_shape(str(path))
    assert (found.hidden, found.layers, found.heads, found.kv_heads, found.intermediate) == (8, 1, 2, 1, 16)
    assert (found.vocabulary, found.gated, found.tied) == (32, True, True)
    assert found.tensors["model.layers.0.mlp.gate_proj.weight"] == (16, 8)
    assert read_shape(str(tmp_path)) == found
    fields, _ = gguf_header(path)
    assert fields["on"] is True
    assert "words" not in fields


def test_an_adapter_has_its_base_s_shape(tmp_path: Path) -> None:
    base = folder(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    assert read_shape(str(adapter)) == read_shape(str(base))


def test_a_hub_id_that_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ShapeUnknown, match="not on this machine; fetch it once"):
        read_shape("owner/name")
    repository = tmp_path / "models--owner--name"
    folder(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert read_shape("owner/name").vocabulary == 32


def test_what_can_t_be_read_says_so(tmp_path: Path) -> None:
    adapter = tmp_path / "loop"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(adapter)}))
    cut = write_gguf(tmp_path / "cut.gguf")
    cut.write_bytes(cut.read_bytes()[:90])
    old = write_gguf(tmp_path / "old.gguf", version=1)
    broken = folder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\xff" * 64)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    for source in (adapter, cut, old, broken, empty, tmp_path / "none", "package://no_such_package/x.gguf"):
        with pytest.raises(ShapeUnknown):
            read_shape(str(source))
