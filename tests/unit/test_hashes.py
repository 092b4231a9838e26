"""The hashes that stand in checkpoints, ledgers, memo keys and pins: their values may never change."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import weights
from pipelines.data import files
from pipelines.finetune import checkpoint, model
from pipelines.hashes import file_hash, kept_hash, list_hash, record_hash
from pipelines.rag import model_folder
from pipelines.soups import arithmetic
from sweeps import sources

CONTENTS = {
    "model.safetensors": b"w" * 5000,
    "optimizer.safetensors": b"o",
    "config.json": b'{"a":1}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"t":1}',
    "tokenizer_config.json": b'{"chat_template":"x","padding_side":"left"}',
    "README.md": b"r",
    "sub/vocab.txt": b"v",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def two_files(folder: Path) -> str:
    return files.content_hash([str(folder / "config.json"), str(folder / "sub/vocab.txt")])


VALUES: dict[str, tuple[Any, str]] = {
    "weights": (weights.content_hash, "bcf0ad3b216cb38022bd461edf818376223c6f51c10ad3ad6e9b138745be5f7f"),
    "tokenizer": (
        lambda folder: weights.content_hash(folder, "tokenizer"),
        "9d1052e571d78d0b98a025a8759fc7bc63046a46b95c9e7b46b48ac7fdad3b5b",
    ),
    "what a tokenizer says": (model.tokenizer_hash, "60c9650ce5938df99de58dbe2ffe93773d182355841738feda42f75df9b6f499"),
    "soup": (arithmetic.folder_hash, "d1598594c3ff663ee0f826d55d57545c877c26a568a32fa50d7b6564bb718734"),
    "retriever's model": (model_folder.folder_hash, "45accda748d8df7ca09016829fe0b57d0d2dcdecc95daaf68f975f405b0deed9"),
    "rows of two files": (two_files, "0394cf2d75e88dca8a90ebac376566a5e45f3dc5e7361f611b3e738c3bcb0968"),
    "a sweep's weights": (sources.weights_hash, "66dcea6ed2fa03467e0515361f34fa2fd9701c92d6244bcd6cd31c64f37d6ad8"),
}


@pytest.mark.parametrize("what", VALUES)
def test_values_are_those_of_earlier_versions(what: str, folder: Path) -> None:
    hashed, value = VALUES[what]
    assert hashed(folder) == value


def test_a_soup_s_folder_hashes_as_the_checkpoint_it_becomes(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()
    before = arithmetic.folder_hash(folder)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    record = {"format": checkpoint.UNSEALED, "files": {name: {"sha256": value} for name, value in hashes.items()}}
    (folder / "complete.json").write_text(json.dumps(record))
    assert checkpoint.content_hash(folder) == before


def test_the_two_forms() -> None:
    assert record_hash({"b": "2", "a": "1"}) == hashlib.sha256(b'{"a": "1", "b": "2"}').hexdigest()
    assert list_hash([("b", "2"), ("a\udcff", "1")]) == hashlib.sha256(b"b\x002\na\xff\x001\n").hexdigest()


def test_a_file_that_changes_gets_another_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"other"):
        path.write_bytes(content)
        assert file_hash(path) == kept_hash(path) == hashlib.sha256(content).hexdigest()
