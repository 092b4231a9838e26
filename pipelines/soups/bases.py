"""Tensors of the base model that adapters were trained on, read one at a time and only when a merge needs them."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open

from pipelines.stage import UserError
from pipelines.weights import NOT_WEIGHTS

TIED = {"lm_head": "model.embed_tokens"}
"""Output layer -> the embedding that it is tied to, for models whose configuration ties them."""


class BaseTensors:
    """The base model of adapters; nothing is looked up, converted or opened before the first question.

    Use as a context manager.

    Args:
        source: its name, as adapters give it.
        cache: where converted models are kept; a temporary folder by default.
    """

    def __init__(self, source: str | None, cache: Path | None = None) -> None:
        self._source, self._cache = source, cache
        self._stack = contextlib.ExitStack()
        self._folder: Path | None = None
        self._places: dict[str, Any] = {}

    def __enter__(self) -> BaseTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def folder(self) -> Path:
        """Where its safetensors lie.

        Raises:
            UserError: if the adapters name no base, or it can't be found.
        """
        if self._folder is None:
            from pipelines.finetune.model import resolve

            if not self._source:
                raise UserError("no soup: the adapters don't name their base model, which this merge has to read")
            cache = self._cache or Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="stockpot-")))
            folder = resolve(self._source, cache)
            for path in sorted(path for path in folder.glob("*.safetensors") if path.name not in NOT_WEIGHTS):
                file = self._stack.enter_context(safe_open(str(path), "pt"))
                self._places.update(dict.fromkeys(file.keys(), file))
            self._folder = folder
        return self._folder

    @property
    def names(self) -> list[str]:
        """Names of all tensors that its files hold, in the order of the files."""
        assert self.folder.is_dir(), "looked up and opened"
        return list(self._places)

    def has(self, name: str) -> bool:
        """Whether it has a tensor, tied ones included."""
        return self._stored(name) is not None

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it.

        Raises:
            UserError: if there is no such tensor.
        """
        stored = self._known(name)
        return tuple(self._places[stored].get_slice(stored).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor's values.

        Raises:
            UserError: if there is no such tensor.
        """
        stored = self._known(name)
        tensor: torch.Tensor = self._places[stored].get_tensor(stored)
        return tensor

    def pieces(self, name: str, numbers: int = 1 << 22) -> Iterator[slice]:
        """Slices along a tensor's first axis of at most so many numbers (one row at least)."""
        shape = self.shape(name)
        rows = max(1, numbers // max(1, math.prod(shape[1:])))
        yield from (slice(start, start + rows) for start in range(0, shape[0] if shape else 1, rows))

    def piece(self, name: str, rows: slice) -> torch.Tensor:
        """Rows of a tensor, alone read from the disk; a number is itself."""
        stored = self._known(name)
        if not self.shape(name):
            return self.tensor(name)
        piece: torch.Tensor = self._places[stored].get_slice(stored)[rows]
        return piece

    def _known(self, name: str) -> str:
        stored = self._stored(name)
        if stored is None:
            raise UserError(f"no soup: the base model {self.folder} has no {name}, which this merge has to read")
        return stored

    def _stored(self, name: str) -> str | None:
        folder = self.folder
        if name in self._places:
            return name
        module, _, kind = name.rpartition(".")
        other = f"{TIED.get(module, '')}.{kind}"
        if other not in self._places:
            return None
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return other if config.get("tie_word_embeddings", True) else None
