"""SHA-256 (hex) of files and of what lies in folders. No torch.

Which files of a folder count is told by who asks, since the hashes mean different things: what decides a model's answers
(`pipelines.weights`), what a checkpoint holds (`pipelines.finetune.checkpoint`), what a soup wrote
(`pipelines.soups.arithmetic`), what a retriever loads (`pipelines.rag.model_folder`), which rows a sweep is pinned to
(`pipelines.data.files`). The two forms below stand in checkpoints, ledgers, memo keys and pins, and can't be changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

_KEPT: dict[tuple[str, int, int], str] = {}


def file_hash(path: str | Path) -> str:
    """Of a file, as `sha256sum` prints it.

    Raises:
        OSError: if it can't be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept_hash(path: Path) -> str:
    """`file_hash`, remembered in the process by place, time and size: for files that are not written meanwhile.

    Raises:
        OSError: if it can't be read.
    """
    stat = path.stat()
    key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
    if key not in _KEPT:
        _KEPT[key] = file_hash(path)
    return _KEPT[key]


def record_hash(record: Mapping[str, object]) -> str:
    """Of JSON with sorted keys: of a folder, name -> hash of the file."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def list_hash(files: Iterable[tuple[str, str]]) -> str:
    """Of (name, hash) pairs, each a line, in their order."""
    lines = (f"{name}\0{digest}\n" for name, digest in files)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
