"""A lease's way to models for tests of RAG stages: a host that counts what it is asked, and a real memo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.calls import Answers, Calls, Host
from pipelines.hosts import LocalHost
from pipelines.memo import Cost, LocalMemo
from pipelines.rag.base import Chunk

TEXTS = (
    "The lift is tested every March by the city's engineer.",
    "The deposit is 300 euros and is paid back within a month.",
    "Cats and dogs are welcome on the ground floor.",
    "Bicycles stand in the cellar, beside the boiler.",
    "The boiler is serviced in autumn, before the heating season.",
    "Rubbish is collected on Mondays, paper on every other Friday.",
    "Guests may stay for two weeks; longer stays need the owner's word.",
    "The roof terrace closes at ten in the evening.",
    "A lost key costs 40 euros, and the lock is changed at once.",
    "In case of fire leave by the stairs and never take the lift.",
)
QUESTIONS = ("When is the lift tested?", "What does a lost key cost?", "May I keep a dog?", "xyzzy", "")


class CountingHost:
    """Hands everything on and keeps what was asked; without one below it, a text's vector is drawn from its hash."""

    def __init__(self, inner: Host | None = None, dimension: int = 8) -> None:
        self.asked: list[tuple[str, list[Any]]] = []
        self._inner = inner
        self.dimension = dimension

    def ask(self, spec: Mapping[str, Any], method: str, items: Sequence[Any], parameters: Mapping[str, Any]) -> Answers:
        self.asked.append((method, list(items)))
        if self._inner is not None:
            return self._inner.ask(spec, method, items, parameters)
        return [(drawn(str(item), self.dimension).tobytes(), Cost(0.5, 3)) for item in items]

    @property
    def items(self) -> list[Any]:
        """Everything that was asked."""
        return [item for _, items in self.asked for item in items]


def drawn(text: str, dimension: int = 8) -> Any:
    """A vector for a text, the same every time."""
    seed = list(text.encode()) or [0]
    return np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)


def chunks(texts: Sequence[str] = TEXTS) -> list[Chunk]:
    """One chunk a text, each a document of its own."""
    return [Chunk(f"d{i}", 0, len(text), text) for i, text in enumerate(texts)]


def make_calls(host: Host | None = None, folder: Path | None = None) -> Calls:
    """Calls to a host (real models in this process by default), with a memo where a folder is given."""
    return Calls(host or LocalHost(), None if folder is None else LocalMemo(folder), "test")
